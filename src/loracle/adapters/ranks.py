"""Rank and alpha of each site: ``rank``, ``alpha`` and what ``rank_pattern`` and ``alpha_pattern`` say otherwise.

Patterns are globs on the end of a site's name, as in ``precision``: ``attn.c_attn`` is every slice of that layer,
``attn.c_attn.q`` one of them. Their order means nothing: two that give one site two values are an error. (PEFT takes the first.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from loracle.adapters.targets import Site, check_rank
from loracle.base.errors import SpecError
from loracle.models.precision import matches
from loracle.spec.study import Adapter

Number = TypeVar("Number", bound=float)


def lora_scale(alpha: float, rank: int, rslora: bool = False) -> float:
    """The factor of B·A: alpha / rank (LoRA, Hu et al. 2021), or alpha / √rank (rsLoRA, Kalajdzievski 2023)."""
    return alpha / (math.sqrt(rank) if rslora else rank)


@dataclass(frozen=True)
class Size:
    """One site's rank and alpha."""

    rank: int
    alpha: float


def site_sizes(adapter: Adapter, sites: Sequence[Site]) -> dict[Site, Size]:
    """Each site's own size. Raises ``SpecError`` for a pattern that fits no site or contradicts another, for a rank above a
    site's width, and for slices of one fused layer whose scales differ: PEFT has one scale a module."""
    ranks = _by_site("rank_pattern", adapter.rank_pattern, sites)
    alphas = _by_site("alpha_pattern", adapter.alpha_pattern, sites)
    found: dict[Site, Size] = {}
    for site in sites:
        pattern, rank = ranks.get(site, ("", adapter.rank))
        check_rank([site], rank, f"adapter.rank_pattern.{pattern}" if pattern else "adapter.rank")
        found[site] = Size(rank, alphas[site][1] if site in alphas else adapter.alpha_at(rank))
    _one_scale_a_module(adapter, found)
    return found


def trainable_params(sizes: Mapping[Site, Size]) -> int:
    """Trainable parameters of a LoRA: Σ r·(d_in + width)."""
    return sum(site.params(size.rank) for site, size in sizes.items())


def _by_site(setting: str, patterns: Mapping[str, Number], sites: Sequence[Site]) -> dict[Site, tuple[str, Number]]:
    """Site → (the pattern that fits it, its value)."""
    found: dict[Site, tuple[str, Number]] = {}
    for pattern, value in patterns.items():
        fitting = [site for site in sites if matches(pattern, site.name) or matches(pattern, site.module)]
        if not fitting:
            some = ", ".join(dict.fromkeys(site.name for site in sites[:4]))
            raise SpecError(
                f"'{pattern}' fits none of the adapted layers; names look like {some}", f"adapter.{setting}"
            )
        for site in fitting:
            other, known = found.setdefault(site, (pattern, value))
            if known != value:
                raise SpecError(
                    f"{site.name} is {known:g} by '{other}' and {value:g} by '{pattern}': name it once",
                    f"adapter.{setting}",
                )
    return found


def _one_scale_a_module(adapter: Adapter, sizes: Mapping[Site, Size]) -> None:
    scales: dict[str, tuple[Site, float]] = {}
    for site, size in sizes.items():
        scale = lora_scale(size.alpha, size.rank, adapter.rslora)
        first, known = scales.setdefault(site.module, (site, scale))
        if not math.isclose(known, scale, rel_tol=1e-12):
            raise SpecError(
                f"{first.name} and {site.name} are slices of one layer, which has one scale in PEFT, not {known:g} and {scale:g}: "
                "write alpha as a multiple of the rank ('2r'), or give them one rank",
                "adapter.rank_pattern",
            )
