"""Names for memory: code that knows what its tensors are for says so, and a ledger that is watching counts them there.

``with counted_as("logits_and_loss"): …`` labels what is allocated within, and what autograd allocates for it later.
``reached("backward")`` marks a moment of the step. With nobody watching both cost a comparison. One observer at a time: it watches
the thread that trains, which is the only one that calls these.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

MANAGED = "managed"
"""What lies in CUDA's managed memory (paged optimizers): in no figure of what torch has allocated."""
WITHOUT: AbstractContextManager[None] = nullcontext()


class Observer(Protocol):
    """Who watches: the forecast's tracker, or the probe's clock of peaks."""

    def counted_as(self, component: str) -> AbstractContextManager[None]:
        """Within the block allocations are ``component``."""
        ...

    def reached(self, moment: str) -> None:
        """The step has come to ``moment``."""
        ...


_observer: Observer | None = None


def counted_as(component: str) -> AbstractContextManager[None]:
    """Within the block allocations belong to ``component`` of the ledger; the innermost label counts."""
    return WITHOUT if _observer is None else _observer.counted_as(component)


def reached(moment: str) -> None:
    """The code is at ``moment``: ``forward``, ``backward`` or ``step`` (of an optimizer step), ``idle`` (after it)."""
    if _observer is not None:
        _observer.reached(moment)


@contextmanager
def watched_by(observer: Observer) -> Iterator[None]:
    """Within the block ``observer`` hears of every label and moment."""
    global _observer
    before, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = before
