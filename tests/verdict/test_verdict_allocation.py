"""Ranks by layer at equal parameters: budget, bounds, proportion, and what cannot be met."""

from __future__ import annotations

import numpy as np
import pytest

from loracle.verdict.allocation import LEAST, MOST, TOLERANCE, allocate


def test_equal_need_is_the_uniform_rank() -> None:
    assert allocate([0.3] * 5, [768, 960, 384, 960, 384], [192] * 5, 8) == [8] * 5


def test_rank_follows_need_in_proportion() -> None:
    assert allocate([1.0, 2.0, 3.0, 2.0], [100] * 4, [64] * 4, 8) == [4, 8, 12, 8]


def test_remainders_go_to_the_largest() -> None:
    assert allocate([1.0, 1.0, 1.3, 1.7], [10] * 4, [64] * 4, 2) == [2, 1, 2, 3]
    assert allocate([1.7, 1.3, 1.0, 1.0], [10] * 4, [64] * 4, 2) == [3, 2, 2, 1]


def test_no_layer_falls_below_one_or_rises_above_its_bounds() -> None:
    found = allocate([1e-9, 0.0, 1.0, 1e6] + [1e-9] * 4, [10] * 8, [64] * 8, 8)
    assert found[3] == 8 * MOST
    assert min(found) == LEAST
    assert sum(found) == 64


def test_a_narrow_layer_keeps_to_its_width() -> None:
    assert allocate([5.0, 1.0, 1.0], [10] * 3, [9, 64, 64], 8) == [9, 8, 7]


@pytest.mark.parametrize("seed", range(40))
def test_any_measure_meets_the_budget_within_its_tolerance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = int(rng.integers(2, 12))
    shapes = [(192, 192), (192, 192), (192, 768), (768, 192)]
    cost = [sum(shape) for _ in range(layers) for shape in shapes]
    width = [min(shape) for _ in range(layers) for shape in shapes]
    weights = rng.lognormal(0, rng.uniform(0.1, 4), len(cost))
    rank = int(rng.integers(2, 17))
    found = allocate(list(weights), cost, width, rank)
    assert all(1 <= r <= min(w, MOST * rank) for r, w in zip(found, width, strict=True))
    budget = rank * sum(cost)
    assert abs(np.dot(found, cost) - budget) <= TOLERANCE * budget
    order = np.argsort(weights)
    assert found[order[-1]] >= found[order[0]]
    scaled = allocate(list(weights * 1e-7), cost, width, rank)
    assert scaled == found


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, float("nan")], [1.0, -1.0], [1.0, float("inf")], []])
def test_a_measure_that_says_nothing(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="not above 0 anywhere, or not finite"):
        allocate(weights, [10] * len(weights), [64] * len(weights), 4)


def test_what_no_ranks_meet_says_so() -> None:
    with pytest.raises(ValueError, match="above the width"):
        allocate([1.0, 1.0], [10, 10], [4, 64], 8)
    with pytest.raises(
        ValueError, match=r"no ranks come within 1% of 2,600 parameters: one rank more is too large a step"
    ):
        allocate([1.0, 100.0], [1000, 300], [64, 64], 2)
