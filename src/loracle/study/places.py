"""Where the next job may run: on which GPU, beside which others, and within what memory. Pure.

A GPU holds one job whose need is not known, or several whose needs together stay within the budget (fits.py). A job that is
alone (a probe: it measures time) shares its GPU with none. Without GPUs there is one place, the CPU, and memory is not counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from loracle.study.spares import Kind


class Asks(Protocol):
    """What a job asks of its place."""

    @property
    def threads(self) -> int:
        """CPU threads that it works with."""

    @property
    def needs_bytes(self) -> int | None:
        """Predicted peak on a GPU; None is unknown."""

    @property
    def alone(self) -> bool:
        """Whether nothing else may run there."""


class Place(NamedTuple):
    """A GPU by its id, or the CPU (None)."""

    gpu: str | None


@dataclass(frozen=True)
class Places:
    """``gpus`` by id (where there is but one its name does not matter), ``budget_bytes`` of each (None: no two jobs share
    one), ``cores`` of the machine."""

    gpus: tuple[str, ...] = ()
    budget_bytes: int | None = None
    cores: int = 1

    def free(self, job: Asks, running: Sequence[tuple[Place, Asks]], workers: int) -> Place | None:
        """The place for ``job`` beside those that run, the least loaded one; None: it has to wait."""
        if len(running) >= workers:
            return None
        if not self.gpus:
            waits = running and (job.alone or any(other.alone for _, other in running))
            return None if waits else Place(None)
        most = math.ceil(workers / len(self.gpus))
        loads = [(Place(gpu), [other for at, other in running if at.gpu == gpu]) for gpu in self.gpus]
        open_ = [(at, here) for at, here in loads if not here or (len(here) < most and self._joins(job, here))]
        least = min(open_, key=lambda load: (len(load[1]), _total(load[1])), default=None)
        return least and least[0]

    def _joins(self, job: Asks, here: Sequence[Asks]) -> bool:
        """Whether ``job`` may run beside those that are ``here``."""
        together = [job, *here]
        if self.budget_bytes is None or any(other.alone or other.needs_bytes is None for other in together):
            return False
        return _total(together) <= self.budget_bytes

    def visible(self, place: Place) -> str | None:
        """What ``CUDA_VISIBLE_DEVICES`` is set to; with one GPU, or none, it is left as it is."""
        return place.gpu if len(self.gpus) > 1 else None

    def kinds(self, threads: int, count: int) -> list[Kind]:
        """The kinds of the first ``count`` jobs on an idle machine."""
        return [
            (threads, self.visible(Place(self.gpus[i % len(self.gpus)] if self.gpus else None))) for i in range(count)
        ]

    def ahead(
        self, running: Sequence[tuple[Place, Asks]], queue: Iterable[Asks], following: Sequence[Kind]
    ) -> Counter[Kind]:
        """The spare workers to have ready: for the next of ``queue`` on the GPUs that will be free for them, then for what
        is ``following``; never more than there are idle cores, and on a CPU none beside a job that measures time."""
        if not self.gpus and any(job.alone for _, job in running):
            return Counter()
        busy = len(running) if self.gpus else sum(job.threads for _, job in running)
        coming = [(job.threads, self.visible(place)) for job, (place, _) in zip(queue, running, strict=False)]
        if len(coming) < len(running):  # the queue ends with these
            coming += following
        return Counter(coming[: max(0, self.cores - busy)])


def _total(jobs: Sequence[Asks]) -> int:
    return sum(job.needs_bytes or 0 for job in jobs)
