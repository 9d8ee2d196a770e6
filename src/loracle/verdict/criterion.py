"""H1: "if the cosine of ΔW with LoRA and with QLoRA is above 0.95, QLoRA is always preferable".

Two parts. Is the cosine above 0.95, beside what data order alone does to it? And does the criterion tell anything: a
quantized cell below 0.95 that is shown to cost nothing beyond the margin, or one above that is shown to cost more, rejects it as
a rule. Preferable means here: not more than the margin of evaluation loss lost; what memory it saves is a question of its
own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loracle.verdict import entries
from loracle.verdict.entries import Entry
from loracle.verdict.evidence import Record, StudyEvidence
from loracle.verdict.likeness import null_of, pairs_of, similarity_entries
from loracle.verdict.paired import Interval
from loracle.verdict.parts import CONFOUNDED, NOT_ASKED, PARTLY, REJECTED, SUPPORTED, UNDECIDED, Part, combine, whole
from loracle.verdict.scope import rank_of
from loracle.verdict.similarity import THRESHOLD, Pair, layer_profile, mean_interval, pair_value

CLAIM = (
    f"if the cosine of the updates learned with LoRA and with QLoRA is above {THRESHOLD:g}, QLoRA is always preferable"
)
ABOVE = f"the cosine is above {THRESHOLD:g}"
RULE = f"the criterion “above {THRESHOLD:g}” tells which quantized cells stay within the margin"
NULL_FAILS = "two 16-bit runs that differ in data order alone do not reach it either"


@dataclass(frozen=True)
class Case:
    """One quantized cell: what its similarity and its degradation say."""

    likeness: Entry
    cost: Entry
    null: float | None

    @property
    def signs(self) -> tuple[str, str]:
        return str(self.likeness["verdict"]), str(self.cost["verdict"])


@dataclass(frozen=True)
class Depth:
    """Cosines at the first, the middle and the last layer (the null's beside them), and late third less early third."""

    layers: tuple[Any, ...]
    cosines: tuple[float, ...]
    null: tuple[float | None, ...]
    late_less_early: float | None
    interval: Interval | None
    n: int


def answer(found: StudyEvidence, degradation: Sequence[Entry], bundle: Any) -> list[Entry]:
    """H1 as a whole, then its parts."""
    likeness = [e for e in similarity_entries(found, {"margin": None, "compare": bundle}) if e["estimate"] is not None]
    costs = {str(e["arm"]): e for e in degradation}
    cases = [Case(e, costs[str(e["arm"])], _null(found, e)) for e in likeness if str(e["arm"]) in costs]
    if not cases:
        missing = "no quantized cell has a 16-bit twin whose learned updates were compared (question similarity)"
        return [whole("H1", CLAIM, NOT_ASKED, f"Not asked: {missing}.")]
    parts = [_above(cases), _rule(cases)]
    state = _overall(cases, parts[1].verdict)
    text = f"{_WORDS[state]} {_limits(cases)}"
    return [whole("H1", CLAIM, state, text, parts), *(part.entry("H1") for part in parts)]


def depth(found: StudyEvidence, cell: Record) -> Depth | None:
    """How the likeness runs over the layers of a cell; None where it was not measured."""
    pairs = pairs_of(found, cell)
    null, _, _ = null_of(found, rank_of(cell), cell.get("targets"))
    bands = [band for band in layer_profile(pairs, null) if isinstance(band.layer, int)]
    if len(bands) < 2:
        return None
    shown = [bands[0], *([bands[len(bands) // 2]] if len(bands) > 2 else []), bands[-1]]
    third = max(1, len(bands) // 3)
    early, late = ({b.layer for b in part} for part in (bands[:third], bands[-third:]))
    ends = [(_mean(p, early), _mean(p, late)) for p in pairs]
    slopes = [last - first for first, last in ends if first is not None and last is not None]
    return Depth(
        tuple(b.layer for b in shown),
        tuple(b.mean for b in shown),
        tuple(b.null_mean for b in shown),
        float(np.mean(slopes)) if slopes else None,
        mean_interval(slopes),
        len(slopes),
    )


@dataclass(frozen=True)
class Moment:
    """The mean cosine over a cell's pairs after ``step``, the null's beside it."""

    step: int
    cosine: float
    n: int
    null: float | None


def along(found: StudyEvidence, cell: Record) -> list[Moment]:
    """Likeness along training, by step; empty where adapters were not kept at the evaluation points."""
    null, _, _ = null_of(found, rank_of(cell), cell.get("targets"))
    own, beside = _by_step(pairs_of(found, cell)), _by_step(null)
    means = {step: float(np.mean(values)) for step, values in beside.items()}
    return [Moment(step, float(np.mean(own[step])), len(own[step]), means.get(step)) for step in sorted(own)]


def _by_step(pairs: Sequence[Pair]) -> dict[int, list[float]]:
    values: dict[int, list[float]] = {}
    for point in (point for pair in pairs for point in pair.get("along") or []):
        if point.get("cosine") is not None:
            values.setdefault(int(point["step"]), []).append(float(point["cosine"]))
    return values


def _mean(pair: Pair, layers: set[Any]) -> float | None:
    found = [x["cosine"] for x in pair.get("layers", []) if x.get("layer") in layers and x.get("cosine") is not None]
    return float(np.mean(found)) if found else None


def _null(found: StudyEvidence, likeness: Entry) -> float | None:
    """The null's mean cosine beside a cell."""
    cell = found.cells[str(likeness["arm"])]
    pairs, _, _ = null_of(found, rank_of(cell), cell.get("targets"))
    values = [value for p in pairs if math.isfinite(value := pair_value(p))]
    return float(np.mean(values)) if values else None


def _above(cases: Sequence[Case]) -> Part:
    """Over all cells; the figures are those of the least alike."""
    states = [str(c.likeness["verdict"]) for c in cases if c.likeness["verdict"] != CONFOUNDED]
    state = combine(states or [CONFOUNDED])
    least = min(cases, key=lambda c: c.likeness["estimate"]).likeness
    low = [c.likeness for c in cases if c.likeness["verdict"] == REJECTED]
    text = f"Of {_cells(len(cases))} {states.count(SUPPORTED)} above {THRESHOLD:g}, {states.count(REJECTED)} below,"
    text += f" {states.count(UNDECIDED)} undecided; least alike: {least['statement']}"
    inside = [e for e in low if e["difference"] == "not shown"]
    unknown = [e for e in low if e["difference"] is None]
    if inside:
        text += f" In {len(inside)} of the {len(low)} below it the null is not shown to be more alike:"
        text += " that says nothing against quantization."
    if unknown:
        text += f" In {len(unknown)} of the {len(low)} below it the null has too few pairs to tell."
    given = {
        k: least[k] for k in ("estimate", "interval", "n", "level", "margin", "arm", "reference", "needs", "difference")
    }
    return Part(
        ABOVE, f"in every quantized cell {ABOVE}", state, text, "delta_w_cosine", given=given,
        records=_records([c.likeness for c in cases]), confounds=_confounds(cases),
    )  # fmt: skip


def _rule(cases: Sequence[Case]) -> Part:
    """Whether the criterion goes with the degradation, cell by cell."""
    idle = [c for c in cases if c.signs == (REJECTED, SUPPORTED)]
    false = [c for c in cases if c.signs == (SUPPORTED, REJECTED)]
    same = {c.signs for c in cases if c.signs in ((SUPPORTED, SUPPORTED), (REJECTED, REJECTED))}
    told = [c for c in cases if set(c.signs) <= {SUPPORTED, REJECTED}]
    if idle or false:
        state, text = REJECTED, " ".join(filter(None, (_idle(idle), _false(false))))
    elif len(same) == 2:
        state, text = SUPPORTED, f"In all of {_cells(len(told))} in which both are decided the two go together."
    elif not told:
        state, text = UNDECIDED, "In no cell are both the cosine and the degradation decided."
        if all(CONFOUNDED in c.signs for c in cases):
            state, text = CONFOUNDED, "Every cell's comparison is confounded."
    else:
        side = "above it and within the margin" if (SUPPORTED, SUPPORTED) in same else "below it and beyond the margin"
        state = UNDECIDED
        text = f"{_cells(len(told)).capitalize()} with both decided: all {side}. A rule is tested by cells on both sides of it."
    text += (
        f" Both decided in {len(told)} of {_cells(len(cases))}; each answer at its own level, not corrected over cells."
    )
    shown = [*idle, *false] or told or list(cases)
    given = {"n": min((min(c.likeness["n"], c.cost["n"]) for c in shown), default=0), "level": shown[0].cost["level"]}
    records = _records([e for c in shown for e in (c.likeness, c.cost)])
    return Part(
        "the criterion is informative", RULE, state, text, given=given, records=records, confounds=_confounds(cases)
    )


def _idle(cases: Sequence[Case]) -> str:
    if not cases:
        return ""
    shown = "; ".join(f"{_name(c)} cosine {c.likeness['estimate']:.3f}, loss {_cost(c)}" for c in cases)
    return f"Below {THRESHOLD:g} and yet no degradation beyond the margin in {_cells(len(cases))} ({shown})."


def _false(cases: Sequence[Case]) -> str:
    if not cases:
        return ""
    shown = "; ".join(f"{_name(c)} cosine {c.likeness['estimate']:.3f}, loss {_cost(c)}" for c in cases)
    return f"Above {THRESHOLD:g} and yet degraded beyond the margin in {_cells(len(cases))} ({shown})."


def _cost(case: Case) -> str:
    interval = case.cost["interval"]
    text = entries.percent(case.cost["estimate"])
    return f"{text} ({entries.bounds(tuple(interval), entries.percent)}, n = {case.cost['n']})" if interval else text


def _name(case: Case) -> str:
    scope: Mapping[str, Any] = case.cost["scope"]
    return f"{scope.get('precision')}{entries.where(scope)}:"


def _overall(cases: Sequence[Case], rule: str) -> str:
    """An implication whose premise is met nowhere is not tested; one that is met and holds is part of the answer."""
    if rule in (REJECTED, SUPPORTED, CONFOUNDED):
        return rule
    return PARTLY if any(c.signs == (SUPPORTED, SUPPORTED) for c in cases) else UNDECIDED


_WORDS = {
    SUPPORTED: "Above the threshold goes with staying within the margin, below it with not staying there.",
    PARTLY: "Where the cosine is above the threshold the loss stays within the margin; whether a cosine below it would tell "
    "anything was not tested.",
    REJECTED: "The threshold does not tell which quantized cells may be used: measure the loss instead.",
    UNDECIDED: "The records do not test it: no cell is shown to be above the threshold with its loss decided.",
    CONFOUNDED: "The arms differ in more than the precision, so no verdict.",
}


def _limits(cases: Sequence[Case]) -> str:
    null = [c.null for c in cases if c.null is not None]
    text = ""
    if null and max(null) < THRESHOLD:
        text = f"The null itself is below the threshold ({min(null):.3f} to {max(null):.3f}): {NULL_FAILS}. "
    return text + "“Always” is beyond any one study: this is about its base, task and cells."


def _cells(count: int) -> str:
    return f"{count} cell{'' if count == 1 else 's'}"


def _records(given: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(r for e in given for r in e["records"]))


def _confounds(cases: Sequence[Case]) -> list[str]:
    return list(dict.fromkeys(x for c in cases for e in (c.likeness, c.cost) for x in e["confounds"]))
