"""Methods side by side: each cell against LoRA of the same precision, paired by seed. No verdict is given.

No question is put about methods, so there is no margin; what is given is the paired difference with its interval and
whatever else differs between the two. A learning rate of its own is common, and then the comparison is of recipes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loracle.verdict import claims
from loracle.verdict.claims import Claim, Measured
from loracle.verdict.confounds import Guard, precision_label
from loracle.verdict.evidence import Pairing, Record, StudyEvidence, pair
from loracle.verdict.scope import check, method_of, rank_of


@dataclass(frozen=True)
class AgainstLora:
    """A cell and the one it is held against: seeds that both have, and what differs beside the method."""

    reference: Record
    pairing: Pairing
    guard: Guard


def methods(found: StudyEvidence) -> list[str]:
    """The study's methods, LoRA first, then in the plan's order."""
    names = list(dict.fromkeys(method_of(cell) for cell in found.cells.values()))
    return sorted(names, key=lambda name: name != "lora")


def against_lora(found: StudyEvidence, cell: Record) -> AgainstLora | None:
    """The comparison of a cell with LoRA (or else the study's first method) of its precision; None where there is none.

    Of several the one is taken that differs least; of these that of the same rank, else of the largest.
    """
    first = methods(found)[0]
    if method_of(cell) == first:
        return None
    others = [c for c in found.cells.values() if method_of(c) == first and _precision(c) == _precision(cell)]
    if not others:
        return None
    compared = [AgainstLora(c, *_paired(found, cell, c)) for c in others]
    return min(compared, key=lambda x: (len(x.guard.confounds), *_distance(cell, x.reference)))


def measured(found: StudyEvidence, compared: AgainstLora, claim: Claim) -> Measured | None:
    """The claim's paired estimate over the common seeds; None where it cannot be taken."""
    seeds: Sequence[int] = compared.pairing.seeds
    if not seeds:
        return None
    try:
        return claim.measure(found, compared.pairing, seeds)
    except ValueError:
        return None


def loss_change(found: StudyEvidence, compared: AgainstLora) -> Measured | None:
    """The log ratio of the two's evaluation losses."""
    return measured(found, compared, claims.degradation())


def score_change(found: StudyEvidence, compared: AgainstLora, name: str) -> Measured | None:
    """The difference of a task score, a fraction of 1."""
    return measured(found, compared, claims.task_score(name)) if name in claims.SCORES else None


def _paired(found: StudyEvidence, cell: Record, other: Record) -> tuple[Pairing, Guard]:
    pairing = pair(found, cell, other)
    return pairing, check(found, cell, other, "method", pairing=pairing)


def _precision(cell: Record) -> str:
    return precision_label(cell.get("precision"))


def _distance(cell: Record, other: Record) -> tuple[bool, int]:
    rank = rank_of(other) or 0
    return rank_of(cell) is not None and rank != rank_of(cell), -rank
