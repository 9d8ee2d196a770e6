"""Drawing and splitting rows: by ``split_seed`` alone, the same on every platform and with every version of numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def order(n: int, seed: int, purpose: int) -> list[int]:
    """A permutation of ``range(n)``: the ranks of PCG64's raw stream, which numpy promises not to change."""
    raw = np.random.PCG64(np.random.SeedSequence([seed, purpose])).random_raw(n)
    return [int(i) for i in np.argsort(np.atleast_1d(raw), kind="stable")]


def draw(rows: Sequence[T], count: int | None, seed: int, purpose: int) -> list[T]:
    """``count`` of ``rows`` (all when None or too few), in their own order. A larger draw holds the smaller ones."""
    if count is None or count >= len(rows):
        return list(rows)
    return [rows[i] for i in sorted(order(len(rows), seed, purpose)[:count])]


def split(rows: Sequence[T], fraction: float, seed: int) -> tuple[list[T], list[T]]:
    """(training rows, evaluation rows): ``fraction`` of two or more rows for evaluation, at least one on each side."""
    held = min(max(round(len(rows) * fraction), 1), len(rows) - 1)
    chosen = set(order(len(rows), seed, 1)[:held])
    return [r for i, r in enumerate(rows) if i not in chosen], [r for i, r in enumerate(rows) if i in chosen]
