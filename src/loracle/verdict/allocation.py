"""Ranks by layer from a measure of need, at the number of trainable parameters that one rank for all would have.

Rank is shared out in proportion to the measure (water filling between a smallest and a largest rank), rounded by largest
remainder, and then moved a step here and there until the parameters agree within ``TOLERANCE``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

TOLERANCE = 0.01  # of the uniform rank's parameters
MOST = 4  # no layer gets more than this many times the uniform rank
LEAST = 1  # PEFT has no rank 0

Ranks = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]


def allocate(weights: Sequence[float], costs: Sequence[int], widths: Sequence[int], rank: int) -> list[int]:
    """An integer rank for each layer: as ``weights`` demand, of ``costs`` parameters a rank, at most ``widths`` and ``MOST`` times
    ``rank``. Raises ``ValueError`` for weights that say nothing and for a total that no ranks meet within ``TOLERANCE``."""
    need, cost = np.asarray(weights, float), np.asarray(costs, np.int64)
    if not len(need) or not np.all(np.isfinite(need)) or np.any(need < 0) or not np.any(need > 0):
        raise ValueError("the measure is not above 0 anywhere, or not finite")
    most = np.minimum(np.asarray(widths, np.int64), MOST * rank)
    if np.any(most < rank):
        raise ValueError(f"rank {rank} is above the width of a layer")
    budget = rank * int(cost.sum())
    ideal = _filled(need / need.max(), cost, most, budget)
    found = _settled(_rounded(ideal, cost, most, budget), ideal, cost, most, budget)
    if abs(budget - int(found @ cost)) > TOLERANCE * budget:
        raise ValueError(
            f"no ranks come within {TOLERANCE:.0%} of {budget:,} parameters: one rank more is too large a step"
        )
    return [int(r) for r in found]


def _filled(need: Reals, cost: Ranks, most: Ranks, budget: int) -> Reals:
    """Real-valued ranks λ·need between ``LEAST`` and ``most`` that cost the budget; λ by bisection."""

    def ranks(level: float) -> Reals:
        return np.clip(level * need, LEAST, most)

    low, high = 0.0, float(most.max()) / float(need[need > 0].min())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if ranks(middle) @ cost < budget else (low, middle)
    return ranks(high)


def _rounded(ideal: Reals, cost: Ranks, most: Ranks, budget: int) -> Ranks:
    """Down to whole ranks; what is left goes to the largest remainders that it pays for."""
    found = np.floor(ideal + 1e-9).astype(np.int64)
    left = budget - int(found @ cost)
    for i in np.argsort(found - ideal, kind="stable"):
        if cost[i] <= left and found[i] < most[i]:
            found[i] += 1
            left -= int(cost[i])
    return found


def _settled(found: Ranks, ideal: Reals, cost: Ranks, most: Ranks, budget: int) -> Ranks:
    """One rank more, one less, or one moved from a layer to another, as long as that brings the total nearer; of equal moves the
    one that stays nearest to ``ideal``."""
    found = found.copy()
    while True:
        left = budget - int(found @ cost)
        moves = [(step, i) for step in (1, -1) for i in range(len(cost)) if LEAST <= found[i] + step <= most[i]]
        single = [((step, i),) for step, i in moves]
        double = [(a, b) for a in moves for b in moves if a[0] == 1 and b[0] == -1 and cost[a[1]] != cost[b[1]]]
        tried = [(_after(move, left, found, ideal, cost), move) for move in [*single, *double]]
        best = min(tried, key=lambda pair: pair[0], default=None)
        if best is None or best[0][0] >= abs(left):
            return found
        for step, i in best[1]:
            found[i] += step


def _after(move: tuple[tuple[int, int], ...], left: int, found: Ranks, ideal: Reals, cost: Ranks) -> tuple[int, float]:
    """(parameters off the budget, departure from the ideal) after a move."""
    gap = abs(left - sum(step * int(cost[i]) for step, i in move))
    away = sum(abs(found[i] + step - ideal[i]) - abs(found[i] - ideal[i]) for step, i in move)
    return gap, float(away)
