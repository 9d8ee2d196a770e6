"""Gain kept, non-inferiority, needs, r*, Holm, looks, Pareto: worked examples and properties."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from loracle.verdict import noninferiority as ni
from loracle.verdict.gain import gain_kept
from loracle.verdict.multiplicity import holm_alphas
from loracle.verdict.paired import Paired
from loracle.verdict.pareto import frontier_probability
from loracle.verdict.rank_threshold import rank_threshold
from loracle.verdict.sequential import Look, check_looks, look_alpha, looks_reached, next_look


def _flat(rows: list[float], items: int = 40) -> np.ndarray:
    return np.repeat(np.asarray(rows)[:, None], items, axis=1)


def test_gain_is_fiellers_interval_on_seeds() -> None:
    base, arm, reference = 4.0, [2.3, 2.2, 2.5, 2.35], [2.1, 2.0, 2.2, 2.15]
    found = gain_kept(_flat(arm), _flat(reference), np.ones(40), base)
    x, y = base - np.array(arm), base - np.array(reference)
    assert found.estimate == pytest.approx(x.mean() / y.mean())
    # Fieller's quadratic, by hand
    n, t2 = 4, stats.t.ppf(0.975, 3) ** 2
    c = np.cov(x, y) / n
    a, b, k = y.mean() ** 2 - t2 * c[1, 1], x.mean() * y.mean() - t2 * c[0, 1], x.mean() ** 2 - t2 * c[0, 0]
    root = math.sqrt(b * b - a * k)
    assert found.interval() == pytest.approx(((b - root) / a, (b + root) / a), rel=1e-6)


def test_gain_without_a_shown_reference_gain_has_no_interval() -> None:
    found = gain_kept(_flat([3.9, 4.1, 4.0]), _flat([3.5, 4.4, 3.8]), np.ones(40), 4.0)
    assert found.interval() is None
    nothing = gain_kept(_flat([4.1, 4.1, 4.1]), _flat([4.1, 4.2, 4.3]), np.ones(40), 4.0)
    assert math.isnan(nothing.estimate)


def test_gain_interval_agrees_with_its_contrast() -> None:
    rng = np.random.default_rng(0)
    reference = rng.gamma(4, 0.5, (1, 60)) + rng.normal(0, 0.03, (5, 1))
    arm = reference + 0.1 + rng.normal(0, 0.05, (5, 60)) + rng.normal(0, 0.05, (5, 1))
    found = gain_kept(arm, reference, np.ones(60), 4.0)
    interval = found.interval(0.9)
    assert interval is not None
    assert found.p_value(interval[0]) == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize(
    ("interval", "better", "answer", "effect"),
    [
        ((0.009, 0.019), "lower", "supported", "worse"),
        ((-0.01, 0.02), "lower", "supported", "not shown"),
        ((-0.03, -0.01), "lower", "supported", "better"),
        ((0.02, 0.07), "lower", "undecided", "worse"),
        ((0.06, 0.09), "lower", "rejected", "worse"),
        ((-0.04, -0.01), "higher", "supported", "worse"),
        ((-0.09, -0.06), "higher", "rejected", "worse"),
        ((-0.06, 0.01), "higher", "undecided", "not shown"),
        (None, "lower", "undecided", None),
    ],
)
def test_verdicts(interval, better, answer, effect) -> None:  # type: ignore[no-untyped-def]
    assert ni.verdict(interval, ni.signed_bound(0.05, better), better) == answer
    assert ni.difference(interval, better) == effect


def test_the_margin_itself_is_undecided() -> None:
    assert ni.verdict((0.0, 0.05), 0.05, "lower") == "undecided"
    assert ni.verdict((0.05, 0.06), 0.05, "lower") == "undecided"
    with pytest.raises(ValueError, match="margin"):
        ni.signed_bound(-0.01, "lower")


def test_needs_is_smaller_for_clearer_cases_and_seeded() -> None:
    near, far = (ni.further_seeds(Paired(-d, 4e-5, 0.0, 3, 100)) for d in (0.012, 0.024))
    assert near.high is not None
    assert far.high is not None
    assert far.high < near.high
    assert far.low is not None
    assert far.low <= far.high
    assert far == ni.further_seeds(Paired(-0.024, 4e-5, 0.0, 3, 100))


def test_needs_says_when_seeds_cannot_decide() -> None:
    on_the_margin = ni.further_seeds(Paired(0.0, 4e-5, 0.0, 5, 100))
    assert on_the_margin.as_dict()["seeds"] is None
    assert "not decidable by seeds" in on_the_margin.text
    assert "items limit it" in ni.further_seeds(Paired(-0.01, 1e-7, 1e-4, 5, 100)).text
    assert ni.further_seeds(Paired(-0.01, math.nan, 1e-4, 2, 100)).text == "an interval needs at least 1 further seed"


S, R, U = "supported", "rejected", "undecided"


@pytest.mark.parametrize(
    ("states", "text", "rank", "answer"),
    [
        ({16: S, 8: S, 4: S, 2: R}, "r* = 4", 4, S),
        ({16: S, 8: S, 4: S, 2: U}, "r* ≤ 4 (2 undecided)", 4, S),
        ({16: S, 8: S, 4: S, 2: S}, "r* ≤ 2 (smallest tested)", 2, S),
        ({16: S, 8: U, 4: S, 2: S}, "r* ≤ 16 (8 undecided)", 16, S),
        ({16: R, 8: S}, "no r* among the tested ranks (16, the largest, rejected)", None, R),
        ({2: S, 16: U}, "no r* among the tested ranks (16, the largest, undecided)", None, U),
    ],
)
def test_rank_threshold_words(states, text, rank, answer) -> None:  # type: ignore[no-untyped-def]
    found = rank_threshold(states)
    assert (found.text, found.rank, found.verdict) == (text, rank, answer)


def test_rank_threshold_against_the_largest() -> None:
    assert rank_threshold({16: U, 8: R}, largest_is_reference=True).text == "r* = 16"
    assert rank_threshold({16: U, 8: R}, largest_is_reference=True).verdict == R
    assert rank_threshold({16: U, 8: S, 4: U}, largest_is_reference=True).text == "r* ≤ 8 (4 undecided)"
    assert rank_threshold({8: U}, largest_is_reference=True).text == "only one rank was tested"


def test_rank_threshold_never_skips_a_rank() -> None:
    for states in product((S, R, U), repeat=4):
        found = rank_threshold(dict(zip((16, 8, 4, 2), states, strict=True)))
        above = [s for r, s in zip((16, 8, 4, 2), states, strict=True) if found.rank is not None and r >= found.rank]
        assert all(s == S for s in above)
        if found.exact:
            assert found.stopped_at is not None
            assert dict(zip((16, 8, 4, 2), states, strict=True))[found.stopped_at] == R


def test_holm_worked_example() -> None:
    # Holm 1979: sorted .005 .01 .03 .04 at .05/4, .05/3, .05/2 (fails), and the rest stand there
    alphas = holm_alphas([0.01, 0.04, 0.03, 0.005])
    assert alphas == pytest.approx([0.05 / 3, 0.05 / 2, 0.05 / 2, 0.05 / 4])


def test_holm_counts_what_has_no_p_value() -> None:
    assert holm_alphas([0.001, None]) == pytest.approx([0.025, 0.05])
    assert holm_alphas([0.03, None]) == pytest.approx([0.025, 0.025])
    assert holm_alphas([0.2]) == [0.05]
    assert holm_alphas([]) == []


def test_looks() -> None:
    assert look_alpha([3, 5, 8]) == pytest.approx(0.1 / 3)
    assert look_alpha([5]) == pytest.approx(0.05)
    assert looks_reached([3, 5, 8], 6) == (3, 5)
    assert next_look([3, 5, 8], 5) == 8
    assert next_look([3, 5, 8], 8) is None
    assert Look(5, (3, 5, 8)).text == "look 2 of 3 (3, 5, 8 seeds)"
    assert Look(8, (3, 5, 8)).as_dict() == {"n": 8, "of": [3, 5, 8], "last": True}
    for bad in ([], [2, 5], [5, 5]):
        with pytest.raises(ValueError, match="looks"):
            check_looks(bad)


def test_pareto_of_fixed_figures_is_certain() -> None:
    chance = frontier_probability(
        [[1, 4], [2, 2], [3, 3], [2, 2]], np.zeros((4, 2)), np.zeros((4, 2)), ["lower", "lower"]
    )
    assert chance.tolist() == [1, 1, 0, 1]
    assert frontier_probability([[1, 4], [2, 5]], np.zeros((2, 2)), np.zeros((2, 2)), ["lower", "higher"]).tolist() == [
        1,
        1,
    ]


def test_pareto_probability_follows_the_t_distribution() -> None:
    # one figure alike, the other uncertain in one point: P(t_2 < 1) of being the better one
    chance = frontier_probability(
        [[1, 1.0], [1, 2.0]], [[0, 0], [0, 1]], [[1, 1], [1, 3]], ["lower", "lower"], draws=40000
    )
    worse = 1 - float(stats.t.cdf(1.0, 2))
    assert chance == pytest.approx([1 - worse, worse], abs=0.01)


def test_pareto_needs_three_seeds() -> None:
    chance = frontier_probability([[1.0], [2.0]], [[0.1], [0.1]], [[3], [2]], ["lower"])
    assert chance[0] == 1
    assert np.isnan(chance[1])
