"""Comparisons of an arm with its reference, judged as a family: looks, Holm, confounds, verdicts.

``judge_family`` gives every comparison its level and verdict; ``statements`` writes them down.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from loracle.verdict import noninferiority
from loracle.verdict.claims import Claim, Measured
from loracle.verdict.confounds import Guard
from loracle.verdict.evidence import Pairing, StudyEvidence
from loracle.verdict.multiplicity import holm_alphas
from loracle.verdict.noninferiority import UNDECIDED, Difference, Needs
from loracle.verdict.paired import MIN_SEEDS, Interval
from loracle.verdict.sequential import Look, check_looks, look_alpha, looks_reached

ALPHA = 0.05

State = Literal["supported", "rejected", "undecided", "confounded"]


@dataclass(frozen=True)
class Comparison:
    """One arm against one reference under one claim. ``labels`` name the two in sentences."""

    claim: Claim
    pairing: Pairing
    scope: Mapping[str, Any]
    guard: Guard
    labels: tuple[str, str]
    note: str = ""


@dataclass(frozen=True)
class Judged:
    """A comparison with its verdict; ``problem`` says why it could not be measured, ``look`` at which planned look
    it was judged (None: none is planned, or none is reached).
    """

    comparison: Comparison
    verdict: State
    difference: Difference | None
    measured: Measured | None
    interval: Interval | None
    alpha: float
    seeds: tuple[int, ...]
    needs: Needs | None
    problem: str = ""
    look: Look | None = None
    primary: bool = False
    adjusted: bool = False
    exploratory: bool = False


def judge_family(
    found: StudyEvidence,
    family: Sequence[Comparison],
    looks: Sequence[int] | None = None,
    adjust: bool = True,
) -> list[Judged]:
    """Verdicts of comparisons that share one error; ``adjust=False`` gives each the full level.

    With ``looks`` each is taken at the planned numbers of seeds only, and its first decision stands. A
    decided comparison has left Holm's family: as long as none was wrong, those left hold every true null
    hypothesis.
    """
    if not looks:
        return _stage(found, family, None, ALPHA, adjust)
    fixed, alpha = check_looks(looks), look_alpha(looks)
    latest = {i: _too_early(c, fixed[0], alpha) for i, c in enumerate(family)}
    for look in fixed:
        open_ = [i for i in latest if latest[i].verdict == UNDECIDED]
        judged = _stage(found, [family[i] for i in open_], look, alpha, adjust)
        for i, answer in zip(open_, judged, strict=True):
            if look in looks_reached(fixed, len(family[i].pairing.ended)):
                latest[i] = _at(Look(look, fixed), answer)
    return [replace(latest[i], adjusted=adjust and len(family) > 1) for i in range(len(family))]


def _stage(
    found: StudyEvidence, family: Sequence[Comparison], look: int | None, alpha: float, adjust: bool
) -> list[Judged]:
    """All of a family judged at one number of seeds; confounded ones take no share of the error."""
    taken = [_measure(found, c, c.pairing.take(look)) for c in family]
    counted = [i for i, c in enumerate(family) if not c.guard.confounded]
    p_values = [taken[i].p_value(family[i].claim.bound) if _has_seeds(taken[i]) else None for i in counted]
    levels = holm_alphas(p_values, alpha) if adjust else [alpha] * len(counted)
    alphas = dict(zip(counted, levels, strict=True))
    adjusted = adjust and len(counted) > 1
    return [replace(_judge(c, taken[i], alphas.get(i, alpha)), adjusted=adjusted) for i, c in enumerate(family)]


@dataclass(frozen=True)
class _Taken:
    measured: Measured | None
    seeds: tuple[int, ...]
    problem: str = ""

    def p_value(self, bound: float) -> float | None:
        return None if self.measured is None else self.measured.p_value(bound)


def _has_seeds(taken: _Taken) -> bool:
    """Whether an interval exists that could exclude the bound (an unbounded one could not)."""
    return taken.measured is not None and taken.measured.interval(1.0 - ALPHA) is not None


def _measure(found: StudyEvidence, comparison: Comparison, seeds: tuple[int, ...]) -> _Taken:
    if not seeds:
        return _Taken(None, (), "no seed has both a finished run and a finished reference run")
    try:
        return _Taken(comparison.claim.measure(found, comparison.pairing, seeds), seeds)
    except ValueError as error:
        return _Taken(None, seeds, str(error))


def _judge(comparison: Comparison, taken: _Taken, alpha: float) -> Judged:
    claim, measured = comparison.claim, taken.measured
    interval = measured.interval(1.0 - alpha) if measured is not None else None
    state: State = noninferiority.verdict(interval, claim.bound, claim.better)
    difference = noninferiority.difference(interval, claim.better, claim.no_effect)
    needs = None
    if comparison.guard.confounded:
        state, difference = "confounded", None
    elif state == UNDECIDED and measured is not None and math.isfinite(measured.estimate):
        needs = noninferiority.further_seeds(measured.contrast(claim.bound), alpha)
    elif state == UNDECIDED and len(taken.seeds) < MIN_SEEDS:
        needs = noninferiority.too_few(len(taken.seeds))
    return Judged(comparison, state, difference, measured, interval, alpha, taken.seeds, needs, taken.problem)


def _too_early(comparison: Comparison, first: int, alpha: float) -> Judged:
    """Before the first look nothing is decided, whatever the figures."""
    have = len(comparison.pairing.ended)
    few = max(first - have, 1)
    needs = Needs(None, None, f"the first planned look is at {first} seeds, {few} more than there are")
    problem = f"{have} seeds have ended and the first planned look is at {first}"
    state: State = "confounded" if comparison.guard.confounded else UNDECIDED
    return Judged(comparison, state, None, None, None, alpha, comparison.pairing.seeds, needs, problem)


def _at(look: Look, judged: Judged) -> Judged:
    """After the last look nothing is added any more, so nothing is needed."""
    return replace(judged, look=look, needs=None if look.last else judged.needs)
