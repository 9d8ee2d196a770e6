"""Item bootstrap: how far a figure of one model hangs on which items were drawn. It says nothing about other seeds."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

DRAWS, SEED, LEVEL = 2000, 0, 0.95
METHOD = "95%, item bootstrap (percentile, 2,000 resamples), on this model only"

Interval = tuple[float, float]
Statistic = Callable[[np.ndarray], float]
"""Item numbers of a resample ``[n]`` → the figure over them."""


def item_interval(items: int, statistic: Statistic) -> tuple[Interval | None, str | None]:
    """(interval, None), or (None, why there is none): Efron's percentile interval of ``statistic`` over ``items`` items."""
    if items < 2:
        return None, "one item has no interval"
    generator = np.random.default_rng(SEED)
    values = np.array([statistic(generator.integers(0, items, items)) for _ in range(DRAWS)])
    if not np.isfinite(values).all():
        return None, "the figure is not finite"
    if np.ptp(values) == 0:
        return None, "every item scores alike, so resampling them shows no spread"
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return (float(low), float(high)), None


def mean_of(values: np.ndarray) -> Statistic:
    """The mean of an item's score."""
    return lambda items: float(values[items].mean())


def ratio_of(sums: np.ndarray, counts: np.ndarray) -> Statistic:
    """Σ sums / Σ counts: the loss per scored token."""
    return lambda items: float(sums[items].sum() / counts[items].sum())


def perplexity_of(sums: np.ndarray, counts: np.ndarray) -> Statistic:
    """exp of the loss per scored token; infinity where that overflows."""
    loss = ratio_of(sums, counts)
    return lambda items: math.exp(value) if (value := loss(items)) < 700 else math.inf


def f1_of(predicted: np.ndarray, true: np.ndarray, labels: int, weighted: bool) -> Statistic:
    """Macro or weighted F1 over all ``labels``, as ``tasks.metrics.classification_scores`` counts it."""

    def figure(items: np.ndarray) -> float:
        guess, right = predicted[items], true[items]
        hits = np.bincount(right[guess == right], minlength=labels)
        there = np.bincount(right, minlength=labels)
        total = np.bincount(guess, minlength=labels) + there
        f1 = np.divide(2 * hits, total, out=np.zeros(labels), where=total > 0)
        return float((f1 * there).sum() / there.sum() if weighted else f1.mean())

    return figure
