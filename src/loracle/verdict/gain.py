"""Gain kept: the share of the tuning gain that an arm keeps.

    g = (base_loss - arm_loss) / (base_loss - reference_loss)

base_loss is the untrained base in 16 bits, losses in nats per token. A ratio of two uncertain means, so
Fieller's method: g is in the interval when the mean of ``(base - arm) - g (base - reference)`` is not shown
to differ from 0. Where the reference's own gain is small that set is unbounded, which the delta method
cannot say. The verdict at a margin rests on that linear contrast alone, which is exact.

Only the base's total enters, not its losses by item. Its items are taken to vary with their tokens only, which
gives a variance at least as large as the truth wherever items that are hard for the base are hard for the
tuned model too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from loracle.verdict.paired import MIN_SEEDS, Array, Interval, Paired, item_df, leverage, mean_squares

FAR = 1e4


@dataclass(frozen=True)
class GainKept:
    """Means and mean products ``[2, 2]`` of the two gains (arm, reference), nats per token.

    ``columns [2, n_items]`` are the items' means over seeds.
    """

    arm_gain: float
    reference_gain: float
    seeds: Array
    items: Array
    error: Array
    columns: Array
    n_seeds: int
    n_items: int

    @property
    def estimate(self) -> float:
        """The share; NaN when the reference gained nothing."""
        return self.arm_gain / self.reference_gain if self.reference_gain > 0 else math.nan

    def contrast(self, share: float) -> Paired:
        """Mean of ``arm gain - share * reference gain``: above 0 when more than ``share`` is kept."""
        return self._combine(np.array([1.0, -share]))

    def p_value(self, share: float) -> float | None:
        return self.contrast(share).p_value(0.0)

    def reference_learned(self, level: float = 0.95) -> bool:
        """Whether the reference's own gain is shown to be above 0: without it no share has a meaning."""
        interval = self._combine(np.array([0.0, 1.0])).interval(level)
        return interval is not None and interval[0] > 0

    def interval(self, level: float = 0.95) -> Interval | None:
        """Fieller's interval; None below three seeds or when it is unbounded."""
        if self.n_seeds < MIN_SEEDS or not self.reference_learned(level):
            return None

        def outside(share: float) -> float:
            contrast = self.contrast(share)
            return abs(contrast.estimate) - contrast.half_width(1.0 - level)

        low, high = _edge(outside, self.estimate, -1.0), _edge(outside, self.estimate, 1.0)
        return (low, high) if math.isfinite(low) and math.isfinite(high) else None

    def _combine(self, c: Array) -> Paired:
        scale = self.n_seeds * self.n_items
        item_part = float(c @ self.items @ c)
        if self.n_seeds > 1:
            item_part -= float(c @ self.error @ c)
        return Paired(
            estimate=float(c @ np.array([self.arm_gain, self.reference_gain])),
            seed_var=float(c @ self.seeds @ c) / scale,
            item_var=max(item_part / scale, 0.0),
            n_seeds=self.n_seeds,
            n_items=self.n_items,
            item_df=item_df(c @ self.columns),
        )


def _edge(outside: Callable[[float], float], centre: float, sign: float) -> float:
    """Where ``outside`` turns positive, going from ``centre`` in the direction of ``sign``."""
    if outside(centre) >= 0.0:
        return centre
    step = 1e-3
    while outside(centre + sign * step) < 0.0:
        step *= 2.0
        if step > FAR:
            return sign * math.inf
    return float(optimize.brentq(outside, centre + sign * step / 2.0 * (step > 1e-3), centre + sign * step))


def gain_kept(arm: Array, reference: Array, tokens: Array, base_loss: float | Array) -> GainKept:
    """From summed losses ``[n_seeds, n_items]`` (nats), ``tokens [n_items]`` and the base's loss per token.

    ``base_loss`` is one number, or one for each seed.
    """
    arm, reference, tokens = np.asarray(arm, float), np.asarray(reference, float), np.asarray(tokens, float)
    base = np.broadcast_to(np.asarray(base_loss, float), (arm.shape[0],))[:, None]
    return _kept(np.stack([_by_item(base, losses, tokens) for losses in (arm, reference)]))


def gap_closed(arm: Array, reference: Array, uniform: Array, tokens: Array) -> GainKept:
    """The share of the gap between ``uniform`` and ``reference`` that ``arm`` closes: the gain is over ``uniform``, whose losses
    are known by item too. All are summed losses ``[n_seeds, n_items]`` (nats).
    """
    arm, reference, uniform, tokens = (np.asarray(x, float) for x in (arm, reference, uniform, tokens))
    zero = np.zeros((arm.shape[0], 1))
    base = _by_item(zero, uniform, tokens)
    return _kept(np.stack([_by_item(zero, losses, tokens) - base for losses in (arm, reference)]))


def _kept(gains: Array) -> GainKept:
    """From gains ``[2, n_seeds, n_items]`` of arm and reference."""
    if not np.all(np.isfinite(gains)):
        raise ValueError("a loss is not finite: leave that run out and say so")
    seeds, items, error = mean_squares(gains)
    means = gains.mean(axis=(1, 2))
    return GainKept(float(means[0]), float(means[1]), seeds, items, error, gains.mean(axis=1), *gains.shape[1:])


def _by_item(base: Array, losses: Array, tokens: Array) -> Array:
    """``[n_seeds, n_items]`` whose row means are base - loss per token; the item part is the ratio's
    influence.
    """
    per_token = losses.sum(axis=1, keepdims=True) / tokens.sum()
    influence = (losses - per_token * tokens) / tokens.mean() / (1.0 - leverage(tokens))
    return base - per_token - (influence - influence.mean(axis=1, keepdims=True))
