"""Paired estimates: an arm against its reference, same seeds, same evaluation items.

Model, for the difference of seed s on item i (both crossed, both random)::

    d[s, i] = mu + a[s] + b[i] + e[s, i]
    Var(mean) = var_a / n + var_b / m + var_e / (n m)

The mean square of seeds estimates the first and third term, ``max(MS_items - MS_rest, 0)`` the second; the
sum is never negative. The critical value weighs the two Student quantiles by those shares (Cochran & Cox,
*Experimental Designs*, 1957, for two variances of unlike degrees of freedom). Satterthwaite's degrees of
freedom, the first choice, undercover with few seeds (``tests/verdict/test_verdict_simulation.py``).

Losses are compared as log(sum of loss / sum of tokens); an item's part in it by linearisation. Below three
seeds there is no interval, only an item bootstrap that speaks of those adapters alone. Not here: margins and
verdicts (``noninferiority``), several comparisons (``multiplicity``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

Array = npt.NDArray[np.float64]
Interval = tuple[float, float]

MIN_SEEDS = 3
TINY_ALPHA = 1e-12
MAX_LEVERAGE = 0.9
Z95 = float(special.ndtri(0.975))


@dataclass(frozen=True)
class Paired:
    """A paired mean with its two parts of variance, in the squared unit of ``estimate``.

    ``seed_var`` is the variance of the mean from seeds (residual included), ``item_var`` that from items, known
    with ``item_df`` degrees of freedom.
    """

    estimate: float
    seed_var: float
    item_var: float
    n_seeds: int
    n_items: int
    item_df: float = math.inf

    @property
    def standard_error(self) -> float:
        return math.sqrt(self.seed_var + self.item_var)

    def half_width(self, alpha: float) -> float:
        """Half of the two-sided interval of level ``1 - alpha``."""
        return float(half_width(self.seed_var, self.item_var, self.n_seeds, self.item_df, alpha))

    def interval(self, level: float = 0.95) -> Interval | None:
        """Two-sided interval; None below three seeds."""
        if self.n_seeds < MIN_SEEDS:
            return None
        half = self.half_width(1.0 - level)
        return self.estimate - half, self.estimate + half

    def p_value(self, value: float = 0.0) -> float | None:
        """Two-sided p of "the true mean is ``value``": the alpha at which the interval just touches it."""
        if self.n_seeds < MIN_SEEDS:
            return None
        distance = abs(self.estimate - value)
        if distance == 0.0:
            return 1.0
        if distance >= self.half_width(TINY_ALPHA):
            return TINY_ALPHA
        log_alpha = optimize.brentq(lambda x: self.half_width(math.exp(x)) - distance, math.log(TINY_ALPHA), 0.0)
        return float(math.exp(log_alpha))

    def contrast(self, value: float) -> Paired:
        """The estimate whose distance from 0 decides whether the truth is ``value``."""
        return replace(self, estimate=self.estimate - value)


def half_width(
    seed_var: float | Array, item_var: float | Array, n_seeds: npt.ArrayLike, item_df: float, alpha: float
) -> Array:
    """Cochran-Cox half width; the variances and ``n_seeds`` may be arrays of one shape."""
    total = np.asarray(seed_var, float) + np.asarray(item_var, float)
    t_seed = special.stdtrit(np.asarray(n_seeds, float) - 1.0, 1.0 - alpha / 2.0)
    t_item = special.stdtrit(item_df, 1.0 - alpha / 2.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        critical = np.where(total > 0, (t_seed * seed_var + t_item * item_var) / total, 0.0)
    return np.asarray(critical * np.sqrt(total), float)


def mean_squares(d: Array) -> tuple[Array, Array, Array]:
    """Mean squares and products of ``d [k, n_seeds, n_items]`` for seeds, items and the rest: three ``[k,
    k]``.

    With one seed the seed and rest parts are NaN.
    """
    _, n, m = d.shape
    if m < 2:
        raise ValueError("a paired estimate needs at least two evaluation items")
    grand = d.mean(axis=(1, 2), keepdims=True)
    rows = d.mean(axis=2, keepdims=True) - grand
    columns = d.mean(axis=1, keepdims=True) - grand
    rest = d - grand - rows - columns
    nan = np.full((len(d), len(d)), np.nan)
    seeds = m * np.einsum("asi,bsi->ab", rows, rows) / (n - 1) if n > 1 else nan
    items = n * np.einsum("asi,bsi->ab", columns, columns) / (m - 1)
    error = np.einsum("asi,bsi->ab", rest, rest) / ((n - 1) * (m - 1)) if n > 1 else nan
    return seeds, items, error


def crossed(d: Array) -> Paired:
    """The mean of ``d [n_seeds, n_items]`` with crossed variance."""
    d = np.asarray(d, float)
    _finite(d)
    n, m = d.shape
    seeds, items, error = (float(x[0, 0]) for x in mean_squares(d[None]))
    seed_var = seeds / (n * m) if n > 1 else math.nan
    item_var = (items - error if n > 1 else items) / (n * m)
    return Paired(
        estimate=float(d.mean()),
        seed_var=seed_var,
        item_var=max(item_var, 0.0),
        n_seeds=n,
        n_items=m,
        item_df=item_df(d.mean(axis=0)),
    )


def item_df(columns: Array) -> float:
    """Degrees of freedom of the variance of item means ``[n_items]``: ``2 m / (kurtosis - 1)``, at most m - 1.

    From Var(s^2) = sigma^4 (kurtosis - 1) / m: a few items of great weight tell less about the spread than their
    number says. Normal items give m - 1.
    """
    m = len(columns)
    centred = columns - columns.mean()
    square = float(np.mean(centred**2))
    if square <= 0.0 or m < 3:
        return float(m - 1)
    excess = float(np.mean(centred**4)) / square**2 - 1.0
    return float(min(max(2.0 * m / max(excess, 1e-9), 2.0), m - 1))


def log_ratio_influence(arm: Array, reference: Array) -> Array:
    """``[n_seeds, n_items]`` whose row means are log(sum arm / sum reference) of a seed, spread over its
    items.

    Both hold summed losses of the same items and tokens (nats), so token counts cancel. The item part is the
    first-order influence ``arm / mean(arm) - reference / mean(reference)``, divided by 1 - the item's share of the
    loss as a jackknife does (without it long items look more certain than they are).
    """
    arm, reference = np.asarray(arm, float), np.asarray(reference, float)
    if arm.shape != reference.shape:
        raise ValueError(f"arm {arm.shape} and reference {reference.shape} hold different seeds or items")
    mean_arm, mean_reference = arm.mean(axis=1, keepdims=True), reference.mean(axis=1, keepdims=True)
    if not (np.all(mean_arm > 0) and np.all(mean_reference > 0)):
        raise ValueError("a mean loss is not positive: its logarithm does not exist")
    influence = (arm / mean_arm - reference / mean_reference) / (1.0 - leverage(reference))
    return np.log(mean_arm / mean_reference) + influence - influence.mean(axis=1, keepdims=True)


def leverage(weights: Array) -> Array:
    """Each item's share of the sum over the last axis (at most 0.9); over 1 - share influences are the jackknife's."""
    return np.minimum(weights / weights.sum(axis=-1, keepdims=True), MAX_LEVERAGE)


def log_ratio(arm: Array, reference: Array) -> Paired:
    """Mean over seeds of log(loss per token of the arm / of the reference); 0.05 is about 5% worse."""
    return crossed(log_ratio_influence(arm, reference))


def mean_difference(arm: Array, reference: Array) -> Paired:
    """Mean of ``arm - reference``, scores in 0..1 of ``[n_seeds, n_items]``; 0.01 is one point.

    Fractions (F1 of an answer's words) have Student's interval: its error stays near 2.5% for them, also where few
    items differ. Scores of 0 and 1 that rarely disagree are counts of few events: Student's interval is far too sure of them (an
    error of 6.5% in place of 2.5% at three expected events, and no variance at all at none). The half width is
    therefore Wilson's (1927) on the side away from 0, ``z u + z sqrt(v + u^2)`` with ``u = z / 2m``, on both sides;
    no disagreement in ``m`` items leaves 3.84 / m.
    """
    d = np.asarray(arm, float) - np.asarray(reference, float)
    found = crossed(d)
    n, m = d.shape
    if not np.isin(d, (-1.0, 0.0, 1.0)).all():
        return found
    u = Z95 / (2.0 * m)
    seed_var = found.seed_var if n > 1 else 0.0
    widened = (u + math.sqrt(seed_var + found.item_var + u * u)) ** 2
    return replace(found, item_var=widened - seed_var, item_df=float(m - 1))


def seeds_only(differences: Array) -> Paired:
    """Mean of ``differences [n_seeds]`` with the spread of seeds alone, for a figure that is no mean of items.

    Seeds that all agree exactly show no spread to go by: a ValueError, not an interval of width 0.
    """
    d = np.asarray(differences, float)
    _finite(d)
    n = len(d)
    if n >= MIN_SEEDS and not np.ptp(d):
        raise ValueError("every seed shows the same difference, so seeds alone give no interval")
    return Paired(float(d.mean()), float(d.var(ddof=1)) / n if n > 1 else math.nan, 0.0, n, 0)


def item_bootstrap(d: Array, level: float = 0.95, draws: int = 2000, seed: int = 0) -> Interval:
    """Percentile interval over items of the mean of ``d [n_seeds, n_items]``, seeds held: "these adapters
    only".
    """
    values = np.asarray(d, float).mean(axis=0)
    _finite(values)
    rng = np.random.default_rng(seed)
    means = np.array([values[rng.integers(0, len(values), len(values))].mean() for _ in range(draws)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _finite(d: Array) -> None:
    if not np.all(np.isfinite(d)):
        raise ValueError("a score is not finite: leave that run or item out and say so")
