"""Data order: which rows a run sees at which step, a pure function of (order seed, step)."""

from __future__ import annotations

import numpy as np


def epoch_order(seed: int, epoch: int, rows: int) -> np.ndarray:
    """The permutation of ``range(rows)`` in one epoch."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(rows)


class DataOrder:
    """A run's endless stream of row numbers: one permutation after another, batches running over epoch ends."""

    def __init__(self, seed: int, rows: int) -> None:
        self.seed = seed
        self.rows = rows
        self._cached: dict[int, np.ndarray] = {}

    def take(self, start: int, count: int) -> list[int]:
        """Row numbers at stream positions ``[start, start + count)``."""
        out: list[int] = []
        while len(out) < count:
            epoch, offset = divmod(start + len(out), self.rows)
            if epoch not in self._cached:
                self._cached = {epoch: epoch_order(self.seed, epoch, self.rows)}
            out += self._cached[epoch][offset : offset + count - len(out)].tolist()
        return out
