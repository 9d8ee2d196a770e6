"""How alike the learned updates are (cosine of delta-W), always beside the null.

The null is two 16-bit runs that start alike and see the data in another order: what a change that nobody
would call a change does. A similarity inside the null says nothing against quantization. Input is the
``pairs`` of similarity.json; one pair gives one value, the mean over its layers, and the interval is over
seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from loracle.verdict.noninferiority import UNDECIDED, Verdict, verdict
from loracle.verdict.paired import MIN_SEEDS, Interval

THRESHOLD = 0.95

Pair = Mapping[str, Any]


@dataclass(frozen=True)
class LayerBand:
    """One layer: mean cosine over seeds with its interval, and the null's mean and range (None where
    unknown).
    """

    layer: int | str
    mean: float
    interval: Interval | None
    n: int
    null_mean: float | None
    null_range: Interval | None
    null_n: int


@dataclass(frozen=True)
class SimilarityVerdict:
    """On "the mean cosine is above the threshold"; ``below_null`` is None where the null cannot tell."""

    verdict: Verdict
    estimate: float | None
    interval: Interval | None
    n: int
    null_mean: float | None
    null_range: Interval | None
    null_n: int
    below_null: bool | None
    text: str


def pair_value(pair: Pair, key: str = "cosine") -> float:
    """Mean of ``key`` over the pair's layers that have it; NaN when none has."""
    values = [float(layer[key]) for layer in pair.get("layers", []) if _is_number(layer.get(key))]
    return float(np.mean(values)) if values else math.nan


def null_pairs(pairs: Sequence[Pair], rank: Any, targets: Any) -> tuple[list[Pair], bool]:
    """The null pairs of the same rank and targets; all null pairs (and False) when there are none such."""
    null = [p for p in pairs if p.get("kind") == "null"]
    same = [p for p in null if p.get("rank") == rank and _same_targets(p.get("targets"), targets)]
    return (same, True) if same else (null, False)


def layer_profile(pairs: Sequence[Pair], null: Sequence[Pair], level: float = 0.95) -> list[LayerBand]:
    """Mean cosine by layer over ``pairs`` (one arm's, one pair a seed), beside the null's, in the order of
    layers.
    """
    arm, other = _by_layer(pairs), _by_layer(null)
    bands = []
    for layer in sorted(arm, key=lambda x: (isinstance(x, str), x)):
        values, beside = arm[layer], other.get(layer, [])
        mean = float(np.mean(beside)) if beside else None
        bands.append(
            LayerBand(
                layer,
                float(np.mean(values)),
                mean_interval(values, level),
                len(values),
                mean,
                _range(beside),
                len(beside),
            )
        )
    return bands


def judge(
    values: Sequence[float], null: Sequence[float], threshold: float = THRESHOLD, level: float = 0.95
) -> SimilarityVerdict:
    """The claim "cosine > threshold" from one value a seed, beside the null's values."""
    seen = [v for v in values if math.isfinite(v)]
    beside = [v for v in null if math.isfinite(v)]
    interval = mean_interval(seen, level)
    below = _below(seen, beside, level)
    decided = verdict(interval, threshold, "higher") if beside else UNDECIDED
    return SimilarityVerdict(
        verdict=decided,
        estimate=float(np.mean(seen)) if seen else None,
        interval=interval,
        n=len(seen),
        null_mean=float(np.mean(beside)) if beside else None,
        null_range=_range(beside),
        null_n=len(beside),
        below_null=below,
        text=_null_text(beside, below, decided),
    )


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval | None:
    """Student's interval of a mean cosine over seeds, kept within [-1, 1]; None below three."""
    if len(values) < MIN_SEEDS:
        return None
    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.5 + level / 2, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return max(-1.0, mean - half), min(1.0, mean + half)


def _below(values: Sequence[float], null: Sequence[float], level: float) -> bool | None:
    """Whether the values are shown to lie below the null (Welch's test, one-sided error (1 - level) / 2)."""
    if len(values) < 2 or len(null) < 2:
        return None
    if np.var(values) + np.var(null) == 0:
        return float(np.mean(values)) < float(np.mean(null))
    p = float(stats.ttest_ind(values, null, equal_var=False, alternative="less").pvalue)
    return p < (1.0 - level) / 2.0


def _null_text(null: Sequence[float], below: bool | None, decided: Verdict) -> str:
    if not null:
        return "there is no null to hold it against, so it cannot be read"
    count = f"{len(null)} pair{'s' if len(null) > 1 else ''} of 16-bit runs that differ in data order alone"
    beside = f"the null, {count}, has {np.mean(null):.3f} ({min(null):.3f} to {max(null):.3f})"
    if below is None:
        return f"{beside}; too few pairs to tell the two apart"
    if below:
        return f"{beside}: quantization changes the update more than data order does"
    aside = "" if decided == "supported" else ", so it says nothing against quantization"
    return f"{beside}: not shown to be less alike than that{aside}"


def _by_layer(pairs: Sequence[Pair]) -> dict[Any, list[float]]:
    """Per layer one value a pair: the mean over the layer's modules."""
    result: dict[Any, list[float]] = {}
    for pair in pairs:
        within: dict[Any, list[float]] = {}
        for layer in pair.get("layers", []):
            if _is_number(layer.get("cosine")):
                within.setdefault(layer["layer"], []).append(float(layer["cosine"]))
        for name, values in within.items():
            result.setdefault(name, []).append(float(np.mean(values)))
    return result


def _range(values: Sequence[float]) -> Interval | None:
    return (float(min(values)), float(max(values))) if values else None


def _same_targets(a: Any, b: Any) -> bool:
    return _names(a) == _names(b)


def _names(targets: Any) -> list[str]:
    return sorted(targets) if isinstance(targets, (list, tuple)) else [str(targets)]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
