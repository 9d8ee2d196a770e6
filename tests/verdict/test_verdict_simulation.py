"""First simulation of the rules' error rates: known truth, fixed seeds. The large one is in ``benchmarks/``.

``TOL`` is three standard errors of a Monte Carlo share near 2.5% (or as stated), so a rule that keeps its promise
passes and one that errs half as often again fails.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from verdict_study import only, study

from loracle.verdict import decide, paired
from loracle.verdict.gain import gain_kept
from loracle.verdict.multiplicity import holm_alphas
from loracle.verdict.noninferiority import further_seeds, verdict
from loracle.verdict.paired import Array, Paired
from loracle.verdict.rank_threshold import rank_threshold
from loracle.verdict.sequential import look_alpha

BOUND = math.log(1.05)


def _tol(share: float, draws: int, errors: float = 3.0) -> float:
    return errors * math.sqrt(share * (1 - share) / draws)


def _variances(
    rng: np.random.Generator, n: int, m: int, share: float, draws: int
) -> tuple[Array, Array, Array, Array, Array]:
    """Sufficient statistics of ``draws`` normal crossed data sets; ``share`` of Var(mean) is from seeds.

    Returns mean, mean squares of seeds, items and rest; residual variance is a tenth of the whole.
    """
    total = 10.0 / (n * m)
    seed, item = share * total * n, (1 - share) * total * m
    ms_seeds = (m * seed + 1) * rng.chisquare(n - 1, draws) / (n - 1)
    ms_items = (n * item + 1) * rng.chisquare(m - 1, draws) / (m - 1)
    ms_rest = rng.chisquare((n - 1) * (m - 1), draws) / ((n - 1) * (m - 1))
    mean = rng.normal(0, math.sqrt(seed / n + item / m + 1 / (n * m)), draws)
    return mean, ms_seeds, ms_items, ms_rest, np.full(draws, 1.0 / (n * m))


SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)


@pytest.mark.parametrize("n", [3, 4, 5, 8])
@pytest.mark.parametrize("alpha", [0.05, 0.1 / 3, 0.0125])
def test_error_and_coverage_of_the_interval(n: int, alpha: float) -> None:
    rng, draws = np.random.default_rng(n), 40000
    for share in SHARES:
        mean, seeds, items, rest, scale = _variances(rng, n, 100, share, draws)
        half = paired.half_width(seeds * scale, np.maximum(items - rest, 0) * scale, n, 99, alpha)
        below = float((mean + half < 0).mean())
        assert below <= alpha / 2 + _tol(alpha / 2, draws), share
        if alpha == 0.05:
            assert 0.93 <= float((np.abs(mean) <= half).mean()) <= 0.975, share


def test_satterthwaite_would_undercover() -> None:
    # Why the design's first choice is not used: one-sided error 3.5% to 4% at n = 3 where a quarter is from items.
    rng, draws, n, m = np.random.default_rng(0), 40000, 3, 100
    mean, seeds, items, rest, scale = _variances(rng, n, m, 0.9, draws)
    variance = (seeds + np.maximum(items - rest, 0)) * scale
    df = variance**2 / (
        (seeds * scale) ** 2 / (n - 1) + (items * scale) ** 2 / (m - 1) + (rest * scale) ** 2 / ((n - 1) * (m - 1))
    )
    error = float((mean + stats.t.ppf(0.975, df) * np.sqrt(variance) < 0).mean())
    assert error > 0.03


def _log_ratio_study(
    rng: np.random.Generator, n: int, items: int, seed_sd: float, item_sd: float, truth: float
) -> Paired:
    """Skewed items, unequal spreads: the arm's seeds vary twice as much as the reference's."""
    hard = rng.gamma(2.0, 1.0, items)
    own = rng.normal(0, item_sd, items)
    own -= 0.5 * item_sd**2  # E[exp] = 1, so that the truth is the ratio of expectations
    reference = hard * np.exp(rng.normal(0, seed_sd, (n, 1)) + rng.normal(0, 0.03, (n, items)))
    arm = hard * np.exp(truth + own + rng.normal(0, 2 * seed_sd, (n, 1)) + rng.normal(0, 0.03, (n, items)))
    return paired.log_ratio(arm, reference)


@pytest.mark.parametrize(
    ("n", "seed_sd", "item_sd"), [(3, 0.01, 0.02), (3, 0.01, 0.1), (5, 0.01, 0.1), (8, 0.005, 0.1)]
)
def test_one_sided_error_at_the_margin_with_real_scores(n: int, seed_sd: float, item_sd: float) -> None:
    rng, draws, covered, supported = np.random.default_rng(n), 2000, 0, 0
    for _ in range(draws):
        interval = _log_ratio_study(rng, n, 80, seed_sd, item_sd, BOUND).interval()
        assert interval is not None
        covered += interval[0] <= BOUND <= interval[1]
        supported += verdict(interval, BOUND, "lower") == "supported"
    assert supported / draws <= 0.025 + _tol(0.025, draws)
    assert 0.93 <= covered / draws <= 0.985


@pytest.mark.parametrize(("n", "items", "flips"), [(3, 200, 0.05), (3, 400, 0.01), (5, 1000, 0.03)])
@pytest.mark.parametrize("shared", [True, False])
def test_scores_of_zero_and_one(n: int, items: int, flips: float, shared: bool) -> None:
    # ``shared``: the same items flip in every seed, a count of few events (Student alone errs in 6.5% of cases)
    rng, draws, missed, supported, truth = np.random.default_rng(n), 1000, 0, 0, -flips * 2 / 3
    shape = (1, items) if shared else (n, items)
    for _ in range(draws):
        reference = np.broadcast_to(rng.random(shape) < rng.beta(2, 1, items), (n, items))
        arm = reference & (rng.random(shape) > flips)  # loses ``flips`` of E[able] = 2/3
        answer = verdict(paired.mean_difference(arm, reference).interval(), truth, "higher")
        supported += answer == "supported"
        missed += answer != "undecided"
    assert supported / draws <= 0.025 + _tol(0.025, draws)
    assert missed / draws <= 0.05 + _tol(0.05, draws)


def test_gain_kept_at_its_margin() -> None:
    rng, draws, n, items, g = np.random.default_rng(0), 1500, 4, 50, 0.9
    supported = covered = bounded = 0
    for i in range(draws):
        base = rng.gamma(4, 0.75, items)
        gain = 0.3 * base * rng.gamma(4, 0.25, items)
        reference = base - gain + rng.normal(0, 0.1, (n, 1)) + rng.normal(0, 0.05, (n, items))
        arm = base - g * gain + rng.normal(0, 0.1, (n, 1)) + rng.normal(0, 0.05, (n, items))
        found = gain_kept(arm, reference, np.ones(items), float(base.mean()))
        contrast = found.contrast(g)
        supported += contrast.estimate - contrast.half_width(0.05) > 0
        if i < 400:
            interval = found.interval()
            bounded += interval is not None
            covered += interval is not None and interval[0] <= g <= interval[1]
    assert supported / draws <= 0.025 + _tol(0.025, draws)
    assert bounded == 400
    assert 0.93 - _tol(0.05, 400) <= covered / bounded <= 0.995


def test_family_error_of_the_rank_threshold() -> None:
    # rank 16 is fine; 8, 4 and 2 lie exactly on the margin. Any of them called supported is an error of the family.
    rng, draws, wrong, exact_wrong = np.random.default_rng(1), 4000, 0, 0
    truth = {16: 0.0, 8: BOUND, 4: BOUND, 2: BOUND}
    for _ in range(draws):
        states = {}
        for rank, mean in truth.items():
            found = paired.crossed(mean + rng.normal(0, 0.01, (4, 1)) + np.zeros((4, 2)) + rng.normal(0, 1e-3, (4, 2)))
            states[rank] = verdict(found.interval(), BOUND, "lower")
        answer = rank_threshold(states)
        wrong += answer.rank is not None and answer.rank < 16
        exact_wrong += answer.exact
    assert wrong / draws <= 0.025 + _tol(0.025, draws)
    assert (wrong + exact_wrong) / draws <= 0.05 + _tol(0.05, draws)


def test_family_error_of_holm() -> None:
    rng, draws, n, family = np.random.default_rng(2), 1500, 4, 4
    wrong = 0
    for _ in range(draws):
        means, spread = rng.normal(0, 1 / math.sqrt(n), family), rng.chisquare(n - 1, family) / (n - 1) / n
        found = [Paired(float(x), float(s), 0.0, n, 100) for x, s in zip(means, spread, strict=True)]
        alphas = holm_alphas([f.p_value(0.0) for f in found])
        wrong += any(
            verdict(f.interval(1 - a), 0.0, "lower") != "undecided" for f, a in zip(found, alphas, strict=True)
        )
    assert wrong / draws <= 0.05 + _tol(0.05, draws)


@pytest.mark.parametrize("looks", [(3, 5, 8), (3, 4, 5, 6, 8)])
def test_error_over_all_looks(looks: tuple[int, ...]) -> None:
    rng, draws, items = np.random.default_rng(3), 40000, 100
    seeds = rng.normal(0, 1, (draws, looks[-1]))
    for item_sd in (0.0, 3.0, 10.0):
        shift = rng.normal(0, item_sd / math.sqrt(items), draws)  # the same items at every look
        item_var = item_sd**2 / items * rng.chisquare(items - 1, draws) / (items - 1)
        supported = np.zeros(draws, bool)
        for n in looks:
            part = seeds[:, :n]
            half = paired.half_width(part.var(axis=1, ddof=1) / n, item_var, n, items - 1, look_alpha(looks))
            supported |= part.mean(axis=1) + shift + half < 0
        assert float(supported.mean()) <= 0.05 + _tol(0.05, draws)


def test_needs_is_right_in_four_of_five() -> None:
    rng, decided, asked = np.random.default_rng(4), 0, 0
    while asked < 400:
        n, sigma, truth = int(rng.integers(3, 6)), math.exp(rng.uniform(-5.5, -3.5)), rng.uniform(-0.06, 0.06)
        item_sd = rng.uniform(0, 0.05)
        shift = rng.normal(0, item_sd / 10)
        seeds = truth + shift + rng.normal(0, sigma, n + 50)

        def at(k: int, seeds: Array = seeds, item_sd: float = item_sd) -> Paired:
            return Paired(float(seeds[:k].mean()), float(seeds[:k].var(ddof=1) / k), item_sd**2 / 100, k, 100)

        now = at(n)
        if abs(now.estimate) > now.half_width(0.05):
            continue
        needs = further_seeds(now, draws=800)
        if needs.high is None:
            continue
        asked += 1
        later = at(n + needs.high)
        decided += abs(later.estimate) > later.half_width(0.05)
    assert 0.80 - _tol(0.8, 400) <= decided / asked <= 0.95


def test_whole_path_on_synthetic_studies() -> None:
    # decide() from records to verdicts at the margin: supported at most 2.5%, r* below the truth at most 2.5%
    draws, supported, lower = 120, 0, 0
    ask = [
        {"name": n, "margin": None, "primary": n == "degradation", "compare": None}
        for n in ("degradation", "rank_threshold")
    ]
    for i in range(draws):
        entries = decide(study({4: BOUND, 8: 0.0}, seeds=4, items=40, seed_sd=0.01, rng=i, questions=ask))
        supported += only(entries, "degradation", rank=4)["verdict"] == "supported"
        lower += only(entries, "rank_threshold")["estimate"] == 4
    assert supported / draws <= 0.025 + _tol(0.025, draws)
    assert lower / draws <= 0.025 + _tol(0.025, draws)


@pytest.mark.parametrize(("n", "m", "differ"), [(3, 80, 0.05), (3, 300, 0.1), (5, 80, 0.2), (5, 32, 0.2)])
def test_error_of_scores_that_are_fractions(n: int, m: int, differ: float) -> None:
    """F1 of answers: few items differ, by thirds and halves, most of them downward, half of it shared by the seeds."""
    rng, draws = np.random.default_rng(m + n), 2000
    sizes = np.array([1 / 3, 0.5, 2 / 3, 1.0])
    truth = differ * float(sizes.mean()) * (1 - 2 * 0.7)

    def difference(*shape: int) -> Array:
        found = (rng.random(shape) < differ) * rng.choice(sizes, shape) * np.where(rng.random(shape) < 0.7, -1.0, 1.0)
        return np.asarray(found, float)

    above = below = 0
    for _ in range(draws):
        d = np.where(rng.random((n, m)) < 0.5, difference(n, m), difference(1, m))
        low, high = paired.mean_difference(d, np.zeros_like(d)).interval() or (math.nan, math.nan)
        above += low > truth
        below += high < truth
    assert max(above, below) / draws <= 0.025 + _tol(0.025, draws)
