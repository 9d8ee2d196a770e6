"""Supported, rejected or undecided: an interval against a margin, and what would decide it.

Beside the verdict on the written claim stands the plain difference (the interval against no effect):
"real, but within the margin" is a legal and common answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from loracle.verdict.paired import MIN_SEEDS, Array, Interval, Paired, half_width

Verdict = Literal["supported", "rejected", "undecided"]
Difference = Literal["better", "worse", "not shown"]
Direction = Literal["lower", "higher"]

SUPPORTED: Verdict = "supported"
REJECTED: Verdict = "rejected"
UNDECIDED: Verdict = "undecided"

MAX_FURTHER_SEEDS = 50
POWER = 0.80


def verdict(interval: Interval | None, bound: float, better: Direction) -> Verdict:
    """Whether the truth is on the good side of ``bound``; ``better`` says which side of a number is good."""
    if interval is None:
        return UNDECIDED
    low, high = interval if better == "lower" else (-interval[1], -interval[0])
    limit = bound if better == "lower" else -bound
    if high < limit:
        return SUPPORTED
    return REJECTED if low > limit else UNDECIDED


def difference(interval: Interval | None, better: Direction, no_effect: float = 0.0) -> Difference | None:
    """The interval against ``no_effect``; None where no interval exists."""
    if interval is None:
        return None
    if interval[0] <= no_effect <= interval[1]:
        return "not shown"
    below = interval[1] < no_effect
    return "better" if below == (better == "lower") else "worse"


def signed_bound(margin: float, better: Direction) -> float:
    """The margin (a positive loss) as a bound on ``arm - reference``."""
    if not (math.isfinite(margin) and margin >= 0):
        raise ValueError(f"a margin is a finite number from 0 up, not {margin}")
    return margin if better == "lower" else -margin


@dataclass(frozen=True)
class Needs:
    """Further seeds for a decision: ``low`` gives even odds, ``high`` 80% predictive probability."""

    low: int | None
    high: int | None
    text: str

    def as_dict(self) -> dict[str, Any]:
        known = self.low is not None and self.high is not None
        return {"seeds": [self.low, self.high] if known else None, "text": self.text}


def further_seeds(contrast: Paired, alpha: float = 0.05, draws: int = 2000, seed: int = 0) -> Needs:
    """How many more seeds would decide whether ``contrast`` (estimate minus bound) is off 0.

    Predictive draws under the reference prior 1/sigma: the spread from its scaled inverse chi-square, the
    mean given the spread from its normal, then the coming seeds. The items stay the same ones, so their part
    of the variance does not shrink: where that alone hides the answer, no number of seeds will do.
    """
    if contrast.n_seeds < MIN_SEEDS:
        return too_few(contrast.n_seeds)
    chance = predictive_power(contrast, alpha, draws, seed)
    low, high = _first(chance, 0.5), _first(chance, POWER)
    if high is None or low is None:
        return Needs(None, None, _not_decidable(contrast, alpha))
    if low == high:
        return Needs(low, high, f"{high} further seeds decide it with {POWER:.0%} probability")
    return Needs(low, high, f"{low} to {high} further seeds (even odds with {low}, {POWER:.0%} with {high})")


def too_few(n_seeds: int) -> Needs:
    """Below three seeds no spread is known, so neither is the number that would decide."""
    few = MIN_SEEDS - n_seeds
    return Needs(None, None, f"an interval needs at least {few} further seed{'s' if few > 1 else ''}")


def predictive_power(contrast: Paired, alpha: float, draws: int = 2000, seed: int = 0) -> Array:
    """``[MAX_FURTHER_SEEDS]``: probability that 1, 2, … further seeds decide."""
    rng = np.random.default_rng(seed)
    n, mean = contrast.n_seeds, contrast.estimate
    squares = (n - 1) * contrast.seed_var * n
    sigma = np.sqrt(squares / rng.chisquare(n - 1, draws))[:, None]
    truth = mean + sigma / math.sqrt(n) * rng.standard_normal((draws, 1))
    coming = truth + sigma * rng.standard_normal((draws, MAX_FURTHER_SEEDS))
    total = n + np.arange(1, MAX_FURTHER_SEEDS + 1)
    means = (n * mean + np.cumsum(coming, axis=1)) / total
    spread = squares + n * mean**2 + np.cumsum(coming**2, axis=1) - total * means**2
    seed_var = np.maximum(spread, 0.0) / (total - 1) / total
    half = half_width(seed_var, np.full_like(seed_var, contrast.item_var), total, contrast.item_df, alpha)
    return np.asarray((np.abs(means) > half).mean(axis=0), float)


def _first(chance: Array, wanted: float) -> int | None:
    reached = np.flatnonzero(chance >= wanted)
    return int(reached[0]) + 1 if len(reached) else None


def _not_decidable(contrast: Paired, alpha: float) -> str:
    items_alone = half_width(0.0, contrast.item_var, contrast.n_seeds, contrast.item_df, alpha)
    if items_alone >= abs(contrast.estimate):
        return f"not decidable by seeds (the {contrast.n_items} evaluation items limit it: more items might)"
    return f"not decidable by seeds (more than {MAX_FURTHER_SEEDS})"
