"""Paired estimates: an arm against its reference, same seeds, same evaluation items.

Model, for the difference of seed s on item i (both crossed, both random)::

    d[s, i] = mu + a[s] + b[i] + e[s, i]
    Var(mean) = var_a / n + var_b / m + var_e / (n m)

The mean square of seeds estimates the first and third term, ``max(MS_items - MS_rest, 0)`` the second; the sum is
never negative. The critical value weighs the two Student quantiles by those shares (Cochran & Cox, *Experimental
Designs*, 1957, for two variances of unlike degrees of freedom). Satterthwaite's degrees of freedom, the first
choice, undercover with few seeds (measured in ``tests/verdict/test_simulation.py``).

Losses are compared as log(sum of loss / sum of tokens); an item's part in it by linearisation.
Below three seeds there is no interval, only an item bootstrap that speaks of those adapters alone.
Not here: margins and verdicts (``noninferiority``), several comparisons (``multiplicity``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

Array = npt.NDArray[np.float64]
Interval = tuple[float, float]

MIN_SEEDS = 3
TINY_ALPHA = 1e-12


@dataclass(frozen=True)
class Paired:
    """A paired mean with its two parts of variance, in the squared unit of ``estimate``.

    ``seed_var`` is the variance of the mean from seeds (residual included), ``item_var`` that from items.
    """

    estimate: float
    seed_var: float
    item_var: float
    n_seeds: int
    n_items: int

    @property
    def standard_error(self) -> float:
        return math.sqrt(self.seed_var + self.item_var)

    def half_width(self, alpha: float) -> float:
        """Half of the two-sided interval of level ``1 - alpha``."""
        return float(half_width(self.seed_var, self.item_var, self.n_seeds, self.n_items, alpha))

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
        return Paired(self.estimate - value, self.seed_var, self.item_var, self.n_seeds, self.n_items)


def half_width(
    seed_var: float | Array, item_var: float | Array, n_seeds: int | Array, n_items: int, alpha: float
) -> Array:
    """Cochran-Cox half width; the variances and ``n_seeds`` may be arrays of one shape."""
    total = np.asarray(seed_var, float) + np.asarray(item_var, float)
    t_seed = stats.t.ppf(1.0 - alpha / 2.0, np.asarray(n_seeds) - 1)
    t_item = stats.t.ppf(1.0 - alpha / 2.0, n_items - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        critical = np.where(total > 0, (t_seed * seed_var + t_item * item_var) / total, 0.0)
    return np.asarray(critical * np.sqrt(total), float)


def mean_squares(d: Array) -> tuple[Array, Array, Array]:
    """Mean squares and products of ``d [k, n_seeds, n_items]`` for seeds, items and the rest: three ``[k, k]``.

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


def crossed(d: Array, item_floor: float = 0.0) -> Paired:
    """The mean of ``d [n_seeds, n_items]`` with crossed variance; ``item_floor`` bounds ``item_var`` below."""
    d = np.asarray(d, float)
    _finite(d)
    n, m = d.shape
    seeds, items, error = (float(x[0, 0]) for x in mean_squares(d[None]))
    item_var = items - error if n > 1 else items
    return Paired(
        estimate=float(d.mean()),
        seed_var=seeds / (n * m) if n > 1 else math.nan,
        item_var=max(item_var / (n * m), item_floor, 0.0),
        n_seeds=n,
        n_items=m,
    )


def log_ratio_influence(arm: Array, reference: Array) -> Array:
    """``[n_seeds, n_items]`` whose row means are log(sum arm / sum reference) of a seed, spread over its items.

    Both hold summed losses of the same items and tokens (nats), so token counts cancel. The item part is the
    first-order influence ``arm / mean(arm) - reference / mean(reference)``.
    """
    arm, reference = np.asarray(arm, float), np.asarray(reference, float)
    if arm.shape != reference.shape:
        raise ValueError(f"arm {arm.shape} and reference {reference.shape} hold different seeds or items")
    mean_arm, mean_reference = arm.mean(axis=1, keepdims=True), reference.mean(axis=1, keepdims=True)
    if not (np.all(mean_arm > 0) and np.all(mean_reference > 0)):
        raise ValueError("a mean loss is not positive: its logarithm does not exist")
    return np.log(mean_arm / mean_reference) + arm / mean_arm - reference / mean_reference


def log_ratio(arm: Array, reference: Array) -> Paired:
    """Mean over seeds of log(loss per token of the arm / of the reference); 0.05 is about 5% worse."""
    return crossed(log_ratio_influence(arm, reference))


def mean_difference(arm: Array, reference: Array) -> Paired:
    """Mean of ``arm - reference``, scores in 0..1 of ``[n_seeds, n_items]``; 0.01 is one point.

    Items that never disagree would give a variance of 0. The item variance is at least that of one disagreement in
    ``m + 2`` items (a pseudo-count after Agresti & Min 2005), so that few items cannot prove much.
    """
    d = np.asarray(arm, float) - np.asarray(reference, float)
    m = d.shape[1]
    return crossed(d, item_floor=1.0 / ((m + 2.0) * m))


def item_bootstrap(d: Array, level: float = 0.95, draws: int = 2000, seed: int = 0) -> Interval:
    """Percentile interval over items of the mean of ``d [n_seeds, n_items]``, seeds held: "these adapters only"."""
    values = np.asarray(d, float).mean(axis=0)
    _finite(values)
    rng = np.random.default_rng(seed)
    means = np.array([values[rng.integers(0, len(values), len(values))].mean() for _ in range(draws)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _finite(d: Array) -> None:
    if not np.all(np.isfinite(d)):
        raise ValueError("a score is not finite: leave that run or item out and say so")
