"""Every pairwise comparison that a report makes, with what its two arms differ in.

One row for each pair and what it is compared for. A quantized cell without a 16-bit twin is held against its nearest 16-bit
cell, with all that differs, because that is the comparison a reader would make.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from loracle.verdict import variants
from loracle.verdict.confounds import Guard
from loracle.verdict.evidence import Record, StudyEvidence, pair
from loracle.verdict.methods import against_lora
from loracle.verdict.mixing import uniform_twin
from loracle.verdict.resources import guarded
from loracle.verdict.scope import arms, check, pairs, rank_groups

QUALITY = ("degradation", "gain_kept", "task_metric", "rank_threshold", "similarity")
RESOURCES = ("memory", "speed")


@dataclass(frozen=True)
class Compared:
    """``what`` it is compared for; ``guard.swept`` and ``guard.confounds`` are the differences. ``judged``: whether a claim is
    judged on it at all.
    """

    what: str
    arm: Record
    reference: Record
    guard: Guard
    judged: bool = True

    @property
    def differences(self) -> tuple[str, ...]:
        return (*([self.guard.swept] if self.guard.swept else []), *self.guard.confounds)


def comparisons(found: StudyEvidence) -> list[Compared]:
    """All of them: precisions, memory and speed, mixed precisions, ranks, targets, methods."""
    return [
        *_precisions(found),
        *_mixed(found),
        *_ranks(found),
        *_targets(found),
        *_methods(found),
    ]


def _precisions(found: StudyEvidence) -> Iterator[Compared]:
    """Memory and speed stand in the same row where probes add no difference of their own."""
    for arm, reference in pairs(found):
        quality = check(found, arm, reference, "precision", _bundle(found, QUALITY), pair(found, arm, reference))
        resources = guarded(found, arm, reference, _bundle(found, RESOURCES))[2]
        if (quality.confounds, quality.recipe) == (resources.confounds, resources.recipe):
            yield Compared("losses, scores, updates, memory, speed", arm, reference, quality)
        else:
            yield Compared("losses, scores, updates", arm, reference, quality)
            yield Compared("memory, speed", arm, reference, resources)


def _mixed(found: StudyEvidence) -> Iterator[Compared]:
    for arm in arms(found):
        uniform = uniform_twin(found, arm)
        if uniform is not None:
            guard = check(found, arm, uniform, "precision", None, pair(found, arm, uniform))
            yield Compared("share of the gap closed", arm, uniform, guard)


def _ranks(found: StudyEvidence) -> Iterator[Compared]:
    for group in rank_groups(found, list(found.cells.values())):
        top = group[max(group)]
        for rank in sorted(group, reverse=True)[1:]:
            cell = group[rank]
            guard = check(found, cell, top, "rank", _bundle(found, ("rank_threshold",)), pair(found, cell, top))
            yield Compared("rank against the largest", cell, top, guard)


def _targets(found: StudyEvidence) -> Iterator[Compared]:
    for group in variants.groups(found):
        for a, b in itertools.combinations(group, 2):
            guard = check(found, a, b, "targets", None, pair(found, a, b))
            yield Compared("cost of quantization by targets", a, b, guard)


def _methods(found: StudyEvidence) -> Iterator[Compared]:
    for cell in found.cells.values():
        compared = against_lora(found, cell)
        if compared is not None:
            yield Compared("method", cell, compared.reference, compared.guard, judged=False)


def _bundle(found: StudyEvidence, names: tuple[str, ...]) -> Any:
    """How the first of the questions that was asked declares its arms."""
    return next((q.get("compare") for name in names for q in found.questions if q["name"] == name), None)
