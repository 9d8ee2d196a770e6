"""How probable it is that each point is on the Pareto frontier, given how well its means are known.

Each mean is drawn from its t distribution (mean, standard error, n - 1 degrees of freedom); a point is on the
frontier of a draw when no other is at least as good in everything and better in something. Draws are
independent between points: pairing by seed is not used, so points that are close look less separated than
they are, never more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from loracle.verdict.noninferiority import Direction
from loracle.verdict.paired import MIN_SEEDS, Array


def frontier_probability(
    means: npt.ArrayLike,
    standard_errors: npt.ArrayLike,
    n: npt.ArrayLike,
    better: Sequence[Direction],
    draws: int = 4000,
    seed: int = 0,
) -> Array:
    """``[points]`` probabilities from ``[points, objectives]`` means, standard errors and numbers of seeds.

    A standard error of 0 marks a fixed figure (bytes): its ``n`` is not read. A point with an uncertain
    objective of fewer than three seeds, or with a NaN, gets NaN and takes no part.
    """
    mean, error, seeds = (np.atleast_2d(np.asarray(x, float)) for x in (means, standard_errors, n))
    if not (mean.shape == error.shape == seeds.shape) or mean.shape[1] != len(better):
        raise ValueError("means, standard errors and n must be [points, objectives], with a direction for each")
    uncertain = error > 0
    known = np.isfinite(mean) & np.isfinite(error) & (~uncertain | (seeds >= MIN_SEEDS))
    keep = known.all(axis=1)
    sign = np.array([1.0 if b == "lower" else -1.0 for b in better])
    result = np.full(len(mean), np.nan)
    if keep.any():
        degrees = np.where(uncertain, seeds - 1, 1.0)[keep]
        t = np.random.default_rng(seed).standard_t(degrees, size=(draws, *degrees.shape))
        result[keep] = _on_frontier(sign * (mean[keep] + error[keep] * t)).mean(axis=0)
    return result


def _on_frontier(cost: Array) -> npt.NDArray[np.bool_]:
    """``[draws, points]`` from costs ``[draws, points, objectives]`` (lower is better)."""
    on = np.ones(cost.shape[:2], bool)
    for rival in range(cost.shape[1]):
        other = cost[:, rival : rival + 1]
        on &= ~((other <= cost).all(axis=2) & (other < cost).any(axis=2))
    return on
