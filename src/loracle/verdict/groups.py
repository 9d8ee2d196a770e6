"""What quantization does to single groups of evaluation rows (``task.group``): a mean over all rows can hide it.

Per group: the arm's change against its 16-bit reference, paired by seed and item as everywhere (``paired``). Against the
other groups: the gap, this group's change less that of the rows of all others. Both come from the same adapters, so the
gap's seed part is the variance of the per-seed gaps; the rows are different ones, so its item parts add up (Welch's
degrees of freedom). Gaps of more than two groups are Holm-adjusted. No claim is judged here: a gap is shown, or not shown,
and "not shown" is not "equal". Checked by simulation (``tests/verdict/test_verdict_groups.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from loracle.verdict import evidence, paired
from loracle.verdict.evidence import Pairing, Record, StudyEvidence, pair
from loracle.verdict.multiplicity import holm_alphas
from loracle.verdict.noninferiority import Difference, Direction, difference
from loracle.verdict.paired import Array, Interval, Paired
from loracle.verdict.scope import check

LOSS = "eval_loss"
MIN_ITEMS = 10
"""Rows that a group needs for an interval; with fewer, too little is known of how its rows differ."""


@dataclass(frozen=True)
class GroupEffect:
    """One group: means over seeds of both arms (nats per scored token, or a score from 0 to 1), ``change`` of the arm (log
    ratio, or difference of scores) and ``gap``, that change less the other groups'. Below ``MIN_ITEMS`` rows neither has
    an interval; ``gap`` is None where there is no other group."""

    group: str
    items: int
    reference: float
    arm: float
    change: Paired
    gap: Paired | None
    gap_alpha: float
    hit: Difference

    @property
    def interval(self) -> Interval | None:
        """95% interval of the change, this group by itself."""
        return self.change.interval() if self.items >= MIN_ITEMS else None

    @property
    def gap_interval(self) -> Interval | None:
        """Interval of the gap at ``1 - gap_alpha``."""
        return self.gap.interval(1.0 - self.gap_alpha) if self.gap is not None else None


@dataclass(frozen=True)
class GroupEffects:
    """All groups of one comparison; ``ungrouped`` evaluation rows name no group and are in none."""

    arm: Record
    reference: Record
    metric: str
    n: int
    ungrouped: int
    confounds: tuple[str, ...]
    effects: tuple[GroupEffect, ...]


def group_effects(found: StudyEvidence, arm: Record, metric: str) -> GroupEffects | None:
    """``metric`` (``eval_loss`` or a score of single items) of a quantized cell against its reference, by group.

    None where no row names a group, no seed is paired, or not every run has the metric.
    """
    reference = found.cells.get(str(arm.get("reference")))
    pairing = pair(found, arm, reference) if reference is not None else None
    if reference is None or pairing is None or not pairing.seeds:
        return None
    try:
        a, b, tokens, groups = _matrices(found, pairing, metric)
    except ValueError:
        return None
    names = sorted({g for g in groups if g is not None})
    masks = [np.asarray([g == name for g in groups]) for name in names]
    masks = [m for m in masks if m.sum() >= 2]
    names = [n for n in names if sum(g == n for g in groups) >= 2]
    if not names:
        return None
    known = np.any(masks, axis=0)
    rows = [_effect(name, m, known & ~m, a, b, tokens, metric) for name, m in zip(names, masks, strict=True)]
    guard = check(found, arm, reference, "precision", pairing=pairing)
    ungrouped = int(len(groups) - known.sum())
    return GroupEffects(
        arm, reference, metric, len(pairing.seeds), ungrouped, guard.confounds, tuple(_adjusted(rows, metric))
    )


def _matrices(found: StudyEvidence, pairing: Pairing, metric: str) -> tuple[Array, Array, Array, Sequence[str | None]]:
    """Arm and reference ``[n_seeds, n_items]``, what an item's level is divided by, and its group."""
    if metric == LOSS:
        a, b, tokens = evidence.losses(found, pairing, pairing.seeds)
        return a, b, tokens, evidence.item_groups(found, pairing, pairing.seeds)
    a, b = evidence.task_scores(found, pairing, pairing.seeds, metric)
    return a, b, np.ones(a.shape[1]), evidence.item_groups(found, pairing, pairing.seeds, metric)


def _effect(
    name: str,
    mask: npt.NDArray[np.bool_],
    others: npt.NDArray[np.bool_],
    a: Array,
    b: Array,
    tokens: Array,
    metric: str,
) -> GroupEffect:
    change, by_seed = _change(a[:, mask], b[:, mask], metric)
    levels = [float((x[:, mask].sum(axis=1) / tokens[mask].sum()).mean()) for x in (a, b)]
    gap = None
    if min(int(mask.sum()), int(others.sum())) >= MIN_ITEMS:
        rest, rest_by_seed = _change(a[:, others], b[:, others], metric)
        gap = _gap(change, rest, by_seed - rest_by_seed)
    return GroupEffect(name, int(mask.sum()), levels[1], levels[0], change, gap, 0.05, "not shown")


def _change(a: Array, b: Array, metric: str) -> tuple[Paired, Array]:
    """The paired change, and its values by seed."""
    if metric == LOSS:
        return paired.log_ratio(a, b), np.log(a.sum(axis=1) / b.sum(axis=1))
    return paired.mean_difference(a, b), (a - b).mean(axis=1)


def _gap(one: Paired, rest: Paired, by_seed: Array) -> Paired:
    """The difference of two changes over other rows of the same runs."""
    n = len(by_seed)
    parts = [(x.item_var, x.item_df) for x in (one, rest)]
    total = sum(v for v, _ in parts)
    spread = sum(v**2 / df for v, df in parts if df > 0)
    return Paired(
        estimate=float(by_seed.mean()),
        seed_var=float(by_seed.var(ddof=1)) / n if n > 1 else math.nan,
        item_var=total,
        n_seeds=n,
        n_items=one.n_items + rest.n_items,
        item_df=total**2 / spread if spread > 0 else min(df for _, df in parts),
    )


def _adjusted(rows: Sequence[GroupEffect], metric: str) -> list[GroupEffect]:
    """Levels of the gaps by Holm. Two groups have one gap between them, told twice."""
    p_values = [row.gap.p_value() if row.gap is not None else None for row in rows]
    alphas = holm_alphas(p_values) if len(rows) > 2 else [0.05] * len(rows)
    better: Direction = "lower" if metric == LOSS else "higher"
    leveled = [replace(row, gap_alpha=alpha) for row, alpha in zip(rows, alphas, strict=True)]
    return [replace(row, hit=difference(row.gap_interval, better, 0.0) or "not shown") for row in leveled]
