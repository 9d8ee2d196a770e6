from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from loracle.verdict import paired
from loracle.verdict.paired import Paired


def test_worked_example_of_crossed_variance() -> None:
    # rows 1,3 / columns; grand mean 2.5. MS_seeds = m * sum(row dev^2)/(n-1) etc., by hand.
    d = np.array([[1.0, 2.0], [2.0, 4.0], [3.0, 3.0]])
    # row means 1.5, 3, 3 (grand 2.5); column means 2, 3
    ms_seeds = 2 * ((1.5 - 2.5) ** 2 + 0.25 + 0.25) / 2
    ms_items = 3 * (0.25 + 0.25) / 1
    rest = d - np.array([[1.5], [3.0], [3.0]]) - np.array([[2.0, 3.0]]) + 2.5
    ms_rest = float((rest**2).sum()) / 2
    found = paired.crossed(d)
    assert found.estimate == pytest.approx(2.5)
    assert found.seed_var == pytest.approx(ms_seeds / 6)
    assert found.item_var == pytest.approx(max(ms_items - ms_rest, 0) / 6)


def test_heavy_items_count_for_fewer() -> None:
    assert paired.item_df(np.random.default_rng(0).normal(size=4000)) == pytest.approx(3999, rel=0.1)
    # a share q of items at 1, the rest at 0: kurtosis - 1 = 1/(q(1-q)) - 4
    rare = np.zeros(100)
    rare[:5] = 1.0
    assert paired.item_df(rare) == pytest.approx(200 / (1 / (0.05 * 0.95) - 4))
    assert paired.item_df(np.zeros(10)) == 9


def test_influences_are_the_jackknifes() -> None:
    rng = np.random.default_rng(6)
    arm, reference = rng.gamma(3, 1, (1, 12)), rng.gamma(3, 1, (1, 12))
    left_out = [np.log(np.delete(arm[0], i).sum() / np.delete(reference[0], i).sum()) for i in range(12)]
    jackknife = 11 / 12 * float(np.sum((left_out - np.mean(left_out)) ** 2))
    assert paired.log_ratio(arm, reference).item_var == pytest.approx(jackknife, rel=0.15)


def test_without_item_variance_it_is_students_paired_t() -> None:
    rows = np.array([0.1, 0.4, -0.2, 0.3])
    d = np.repeat(rows[:, None], 50, axis=1)
    found = paired.crossed(d)
    low, high = stats.t.interval(0.95, 3, rows.mean(), stats.sem(rows))
    assert found.interval(0.95) == pytest.approx((low, high))
    assert found.p_value(0.0) == pytest.approx(float(stats.ttest_1samp(rows, 0.0).pvalue), rel=1e-6)


def test_without_seed_variance_it_is_the_items_t() -> None:
    columns = np.random.default_rng(0).normal(0.3, 1.0, 40)
    d = np.repeat(columns[None], 5, axis=0)
    df = paired.item_df(columns)
    assert 20 < df <= 39
    low, high = stats.t.interval(0.95, df, columns.mean(), stats.sem(columns))
    assert paired.crossed(d).interval(0.95) == pytest.approx((low, high))


def test_log_ratio_is_the_ratio_of_sums() -> None:
    rng = np.random.default_rng(1)
    arm, reference = rng.gamma(3, 1, (4, 30)), rng.gamma(3, 1, (4, 30))
    by_seed = np.log(arm.sum(axis=1) / reference.sum(axis=1))
    assert paired.log_ratio(arm, reference).estimate == pytest.approx(by_seed.mean())
    assert paired.log_ratio_influence(arm, reference).mean(axis=1) == pytest.approx(by_seed)


def test_linearised_items_match_a_bootstrap() -> None:
    rng = np.random.default_rng(2)
    base = rng.gamma(2, 1, 300)
    reference, arm = base[None] * np.ones((5, 1)), (base * rng.lognormal(0.05, 0.2, 300))[None] * np.ones((5, 1))
    draws = [np.log(arm[0, i].sum() / reference[0, i].sum()) for i in rng.integers(0, 300, (3000, 300))]
    assert math.sqrt(paired.log_ratio(arm, reference).item_var) == pytest.approx(float(np.std(draws)), rel=0.06)


@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.01, 1e-4])
def test_p_value_agrees_with_the_interval(alpha: float) -> None:
    found = Paired(0.3, 0.01, 0.004, 4, 80, 60.0)
    low, _ = found.interval(1 - alpha) or (0.0, 0.0)
    assert found.p_value(low) == pytest.approx(alpha, rel=1e-6)


def test_half_width_grows_with_level_and_shrinks_with_seeds() -> None:
    widths = [Paired(0.0, 0.01, 0.01, 3, 50).half_width(a) for a in (0.2, 0.1, 0.05, 0.01)]
    assert widths == sorted(widths)
    by_seeds = [Paired(0.0, 0.01, 0.01, n, 50).half_width(0.05) for n in (8, 5, 4, 3)]
    assert by_seeds == sorted(by_seeds)


def test_variance_is_never_negative() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        found = paired.crossed(rng.normal(size=(rng.integers(2, 6), rng.integers(2, 8))))
        assert found.seed_var >= 0
        assert found.item_var >= 0


def test_below_three_seeds_there_is_no_interval() -> None:
    for n in (1, 2):
        found = paired.crossed(np.random.default_rng(4).normal(size=(n, 20)))
        assert found.interval() is None
        assert found.p_value() is None


def test_item_bootstrap_is_seeded_and_brackets_the_mean() -> None:
    d = np.random.default_rng(5).normal(0.2, 1.0, (1, 200))
    low, high = paired.item_bootstrap(d)
    assert (low, high) == paired.item_bootstrap(d)
    normal = stats.norm.interval(0.95, d.mean(), d.std() / math.sqrt(200))
    assert (low, high) == pytest.approx(normal, abs=0.03)


def test_items_that_never_disagree_still_have_a_variance() -> None:
    same = np.ones((5, 20))
    few = paired.mean_difference(same, same).interval()
    many = paired.mean_difference(np.ones((5, 5000)), np.ones((5, 5000))).interval()
    assert few is not None
    assert few[0] < -0.01
    assert many is not None
    assert many[0] > -0.01


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_not_finite_is_an_error(bad: float) -> None:
    d = np.zeros((3, 4))
    d[1, 2] = bad
    with pytest.raises(ValueError, match="not finite"):
        paired.crossed(d)


def test_shapes_and_signs_are_checked() -> None:
    with pytest.raises(ValueError, match="different seeds or items"):
        paired.log_ratio(np.ones((3, 4)), np.ones((3, 5)))
    with pytest.raises(ValueError, match="not positive"):
        paired.log_ratio(np.zeros((3, 4)), np.ones((3, 4)))
    with pytest.raises(ValueError, match="two evaluation items"):
        paired.crossed(np.ones((3, 1)))
