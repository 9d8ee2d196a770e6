"""What quantization costs where other modules are adapted: target variants of one precision, held against each other.

The cost of a variant is the log ratio of its evaluation loss to its 16-bit twin's; two variants are compared by the difference of
their costs, seed by seed and item by item, so what the variants differ in themselves cancels. Holm over pairs of variants.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loracle.verdict import claims, entries, evidence, paired
from loracle.verdict.comparisons import ALPHA
from loracle.verdict.confounds import differences
from loracle.verdict.evidence import Record, StudyEvidence, pair
from loracle.verdict.multiplicity import holm_alphas
from loracle.verdict.paired import Interval, Paired
from loracle.verdict.parts import CONFOUNDED, REJECTED, SUPPORTED, UNDECIDED, Part
from loracle.verdict.scope import arms, check, scope_of

NAME = "target variants differ"
LIMITS = "Variants share matrices and differ in the number of trained parameters, too."


@dataclass(frozen=True)
class Pairwise:
    """Two variants: the difference of their costs (log ratios), what beside the targets differs, and why there is none."""

    first: Record
    second: Record
    measured: Paired | None
    confounds: tuple[str, ...]
    records: tuple[str, ...]
    problem: str = ""


def groups(found: StudyEvidence) -> list[list[Record]]:
    """Quantized cells that differ in targets alone, two or more together."""
    together: list[list[Record]] = []
    for arm in arms(found):
        for group in together:
            if _apart(group[0], arm) == ("targets",):
                group.append(arm)
                break
        else:
            together.append([arm])
    return [group for group in together if len(group) > 1]


def parts(found: StudyEvidence, bundle: Any) -> list[Part]:
    """One part for each group of variants."""
    return [_part(found, group, bundle) for group in groups(found)]


def _part(found: StudyEvidence, group: Sequence[Record], bundle: Any) -> Part:
    pairs = [_pairwise(found, a, b, bundle) for a, b in itertools.combinations(group, 2)]
    sound = [p for p in pairs if p.measured is not None and not p.confounds]
    p_values = [p.measured.p_value(0.0) if p.measured else None for p in sound]
    alphas = holm_alphas(p_values, ALPHA)
    intervals = [p.measured.interval(1 - a) if p.measured else None for p, a in zip(sound, alphas, strict=True)]
    margin = math.log1p(claims.LOSS_MARGIN)
    state = _state(pairs, intervals, margin)
    shown = [
        f"{_name(p)} {entries.percent(p.measured.estimate)}{_around(i, a)}"
        for p, i, a in zip(sound, intervals, alphas, strict=True)
        if p.measured
    ]
    shown += [
        f"{_name(p)} {'confounded by ' + ', '.join(p.confounds) if p.confounds else p.problem}"
        for p in pairs
        if p not in sound
    ]
    text = f"What quantization adds to the evaluation loss, one variant less another: {'; '.join(shown)}."
    text += _close(state, margin)
    largest = max(range(len(sound)), key=lambda i: abs(_estimate(sound[i])), default=None)
    given: dict[str, Any] = {"margin": margin, "adjusted": len(sound) > 1}
    if largest is not None:
        measured = sound[largest].measured
        given |= {"estimate": _estimate(sound[largest]), "interval": intervals[largest], "level": 1 - alphas[largest]}
        given |= {
            "n": measured.n_seeds if measured else 0,
            "arm": sound[largest].first["id"],
            "reference": sound[largest].second["id"],
        }
    scope = {k: v for k, v in scope_of(found, group[0]).items() if k != "targets"}
    return Part(
        NAME, "what quantization costs differs between the modules that are adapted", state, f"{text} {LIMITS}",
        "eval_loss_log_ratio_difference", given, list(dict.fromkeys(r for p in pairs for r in p.records)),
        list(dict.fromkeys(x for p in pairs for x in p.confounds)), scope,
    )  # fmt: skip


def _pairwise(found: StudyEvidence, first: Record, second: Record, bundle: Any) -> Pairwise:
    """The difference of two variants' costs over the seeds that all four cells have."""
    one, two = (pair(found, arm, found.cells[str(arm["reference"])]) for arm in (first, second))
    seeds = [seed for seed in one.seeds if seed in two.seeds]
    guards = [check(found, p.arm, p.reference, "precision", bundle, p) for p in (one, two)]
    guards += [_guard(found, a, b, bundle) for a, b in ((first, second), (one.reference, two.reference))]
    confounds = tuple(dict.fromkeys(x for g in guards if g.confounded for x in g.confounds))
    records = (*one.run_ids(found, seeds), *two.run_ids(found, seeds))
    if not seeds:
        return Pairwise(first, second, None, confounds, (), "no seed has all four runs")
    try:
        costs = [paired.log_ratio_influence(*evidence.losses(found, p, seeds)[:2]) for p in (one, two)]
        if costs[0].shape != costs[1].shape:
            raise ValueError("scored on different items")
        return Pairwise(first, second, paired.crossed(costs[0] - costs[1]), confounds, records)
    except ValueError as error:
        return Pairwise(first, second, None, confounds, records, str(error))


def _guard(found: StudyEvidence, a: Record, b: Record, bundle: Any) -> Any:
    return check(found, a, b, "targets", bundle, pair(found, a, b))


def _state(pairs: Sequence[Pairwise], intervals: Sequence[Interval | None], margin: float) -> str:
    """Shown to differ; or all shown to lie within the margin; or neither."""
    if all(p.confounds for p in pairs):
        return CONFOUNDED
    known = [i for i in intervals if i is not None]
    if any(not low <= 0 <= high for low, high in known):
        return SUPPORTED
    whole = len(known) == len(pairs)
    return REJECTED if whole and all(-margin < low and high < margin for low, high in known) else UNDECIDED


def _close(state: str, margin: float) -> str:
    if state == REJECTED:
        return f" Every difference is shown to be smaller than {entries.percent(margin)[1:]}, and none is shown."
    return " A difference that is not shown may still be there." if state == UNDECIDED else ""


def _around(interval: Interval | None, alpha: float) -> str:
    if interval is None:
        return " (no interval below three seeds)"
    return f" ({entries.level_text(1 - alpha)} interval {entries.bounds(interval, entries.percent)})"


def _estimate(found: Pairwise) -> float:
    return found.measured.estimate if found.measured else 0.0


def _name(found: Pairwise) -> str:
    return f"{_targets(found.first)} less {_targets(found.second)}"


def _targets(cell: Record) -> str:
    targets = cell.get("targets")
    return "+".join(map(str, targets)) if isinstance(targets, list | tuple) else str(targets)


def _apart(a: Record, b: Record) -> tuple[str, ...]:
    left, right = a.get("config"), b.get("config")
    return differences(left, right).changed if isinstance(left, Mapping) and isinstance(right, Mapping) else ()
