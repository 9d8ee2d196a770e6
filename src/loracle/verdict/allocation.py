"""Ranks by layer from a measure of need, at the number of trainable parameters that one rank for all would have.

Rank is shared out in proportion to the measure (water filling between a smallest and a largest rank), rounded by largest
remainder, and then moved a step here and there until the parameters agree within ``TOLERANCE``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
        steps = _steps(found, ideal, cost, most)
        double = [(a, b) for a in steps for b in steps if a.by == 1 and b.by == -1 and cost[a.at] != cost[b.at]]
        moves: list[tuple[_Step, ...]] = [*((step,) for step in steps), *double]

        def outcome(move: tuple[_Step, ...], left: int = left) -> tuple[int, float]:
            """(parameters off the budget, departure from the ideal) after it."""
            return abs(left - sum(x.by * int(cost[x.at]) for x in move)), sum(x.away for x in move)

        best = min(moves, key=outcome, default=None)
        if best is None or outcome(best)[0] >= abs(left):
            return found
        for step in best:
            found[step.at] += step.by


@dataclass(frozen=True)
class _Step:
    """One rank more or less (``by``) at layer ``at``; ``away``: how much further from the ideal that is."""

    at: int
    by: int
    away: float


def _steps(found: Ranks, ideal: Reals, cost: Ranks, most: Ranks) -> list[_Step]:
    """Of layers that cost alike the one that may step up, and the one that may step down, at least departure."""
    best: dict[tuple[int, int], _Step] = {}
    for at in range(len(cost)):
        for by in (1, -1):
            if LEAST <= found[at] + by <= most[at]:
                away = float(abs(found[at] + by - ideal[at]) - abs(found[at] - ideal[at]))
                known = best.get((int(cost[at]), by))
                if known is None or away < known.away:
                    best[int(cost[at]), by] = _Step(at, by, away)
    return list(best.values())
