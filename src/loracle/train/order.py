"""Data order: which rows a run sees at which step, a pure function of (order seed, step)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

GROUPED = 50  # batches that are sorted by length together


def epoch_order(seed: int, epoch: int, rows: int) -> np.ndarray:
    """The permutation of ``range(rows)`` in one epoch."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(rows)


def grouped(order: np.ndarray, lengths: np.ndarray, batch: int, generator: np.random.Generator) -> np.ndarray:
    """``order`` with rows of like length in one batch: sorted within stretches of 50 batches, then the batches shuffled.

    The stretch is that of Transformers' ``LengthGroupedSampler``; its batches go by falling length, ours in random order, so
    that length does not drift with the step. A last, shorter batch stays last.
    """
    stretches = [order[i : i + GROUPED * batch] for i in range(0, len(order), GROUPED * batch)]
    ranked = np.concatenate([part[np.argsort(-lengths[part], kind="stable")] for part in stretches])
    whole = len(ranked) // batch * batch
    batches = ranked[:whole].reshape(-1, batch)
    return np.concatenate([generator.permutation(batches).reshape(-1), ranked[whole:]])


class DataOrder:
    """A run's endless stream of row numbers: one permutation after another, batches running over epoch ends.

    With ``lengths`` (one a row) each batch of ``batch`` rows is of like length.
    """

    def __init__(self, seed: int, rows: int, lengths: Sequence[int] | None = None, batch: int = 1) -> None:
        self.seed = seed
        self.rows = rows
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.batch = batch
        self._cached: dict[int, np.ndarray] = {}

    def take(self, start: int, count: int) -> list[int]:
        """Row numbers at stream positions ``[start, start + count)``."""
        found: list[int] = self.numbers(start, count).tolist()
        return found

    def numbers(self, start: int, count: int) -> np.ndarray:
        """The same as ``take`` as an array."""
        parts, missing = [np.empty(0, dtype=np.int64)], count
        while missing > 0:
            epoch, offset = divmod(start + count - missing, self.rows)
            if epoch not in self._cached:
                self._cached = {epoch: self._epoch(epoch)}
            parts.append(self._cached[epoch][offset : offset + missing])
            missing -= len(parts[-1])
        return np.concatenate(parts)

    def _epoch(self, epoch: int) -> np.ndarray:
        order = epoch_order(self.seed, epoch, self.rows)
        if self.lengths is None:
            return order
        return grouped(order, self.lengths, self.batch, np.random.Generator(np.random.PCG64([self.seed, epoch, 1])))
