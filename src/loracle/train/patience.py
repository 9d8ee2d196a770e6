"""Early stopping: each member ends by itself once its evaluation loss has not fallen for so many evaluations in a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


class Patience:
    """``limit`` evaluations without a lower loss are borne (null: any number). ``stopped_at``: the step, or None, of each."""

    def __init__(self, members: int, limit: int | None) -> None:
        self.limit = limit
        self.best = [math.inf] * members
        self.waited = [0] * members
        self.stopped_at: list[int | None] = [None] * members
        self.gone = [False] * members  # diverged: nothing to wait for

    @property
    def all_stopped(self) -> bool:
        """Whether nobody is left to train."""
        ended = [g or at is not None for g, at in zip(self.gone, self.stopped_at, strict=True)]
        return all(ended) and any(at is not None for at in self.stopped_at)

    def after(self, step: int, losses: Sequence[float], gone: Sequence[bool]) -> list[bool]:
        """Take note of an evaluation after ``step``; who is stopped now, or was before."""
        self.gone = list(gone)
        for k, loss in enumerate(losses):
            better = loss < self.best[k]
            self.best[k] = loss if better else self.best[k]
            self.waited[k] = 0 if better else self.waited[k] + 1
            if self.limit is not None and self.waited[k] >= self.limit and self.stopped_at[k] is None and not gone[k]:
                self.stopped_at[k] = step
        return [at is not None for at in self.stopped_at]

    def as_state(self) -> dict[str, Any]:
        """For a checkpoint (infinities as null)."""
        best = [None if math.isinf(value) else value for value in self.best]
        return {"best": best, "waited": self.waited, "stopped_at": self.stopped_at, "gone": self.gone}

    def restore(self, state: dict[str, Any]) -> None:
        """What ``as_state`` gave."""
        self.best = [math.inf if value is None else value for value in state["best"]]
        self.waited, self.stopped_at = list(state["waited"]), list(state["stopped_at"])
        self.gone = list(state["gone"])
