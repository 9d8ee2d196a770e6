"""Holm's step-down adjustment (Holm 1979), as the level at which each comparison stands.

An interval at ``1 - alpha`` with the alpha given here agrees with Holm's verdict on the p-value, so the
printed interval and the printed verdict never contradict each other.
"""

from __future__ import annotations

from collections.abc import Sequence


def holm_alphas(p_values: Sequence[float | None], alpha: float = 0.05) -> list[float]:
    """The two-sided alpha of each comparison of one family.

    Sorted by p, the j-th of m is tested at ``alpha / (m - j)``; at the first that fails, all the rest stand
    at that same alpha. A comparison without a p-value (too few seeds) counts in the family and never passes.
    """
    order = sorted(range(len(p_values)), key=lambda i: _p(p_values[i]))
    alphas = [alpha] * len(p_values)
    left, stopped = len(p_values), False
    for i in order:
        alphas[i] = alpha / left
        stopped = stopped or _p(p_values[i]) >= alphas[i]
        left -= 0 if stopped else 1
    return alphas


def _p(value: float | None) -> float:
    return 1.0 if value is None else value
