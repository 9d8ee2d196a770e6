"""The spectrum of a learned update ΔW = scale·B·A: how many directions it uses. The dense ΔW is never built.

With B = Q_B R_B and Aᵀ = Q_A R_A the singular values of B·A are those of the small core R_B·R_Aᵀ ``[r, r]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from loracle.adapters.peft_files import ModuleAdapter
from loracle.adapters.ranks import Size
from loracle.adapters.targets import Site
from loracle.models.linears import take_rows


def singular_values(a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    """Singular values of scale·B·A, falling, float64; ``a: [r, d_in]``, ``b: [d_out, r]``."""
    inner, outer = (torch.linalg.qr(x.double(), mode="r").R for x in (a.T, b))
    return torch.linalg.svdvals(outer @ inner.T) * scale


def figures(values: Sequence[float]) -> dict[str, Any]:
    """Of singular values σ: ``frobenius`` ‖ΔW‖, ``spectral`` σ₁, ``stable_rank`` ‖ΔW‖² / σ₁² (Rudelson & Vershynin 2007),
    ``effective_rank`` exp of the entropy of σ / Σσ (Roy & Vetterli 2007), ``energy`` the share of ‖ΔW‖² in the first 1, 2, … of
    them. The last three are null where ΔW is zero."""
    s = torch.tensor(list(values), dtype=torch.float64)
    squared = s.square()
    total, largest = float(squared.sum()), float(s.max()) if len(s) else 0.0
    found: dict[str, Any] = {"frobenius": total**0.5, "spectral": largest}
    if largest <= 0:
        nothing = dict.fromkeys(("stable_rank", "effective_rank", "energy"))
        return found | nothing | {"reason": "the update is zero"}
    p = s / s.sum()
    entropy = -float(torch.special.xlogy(p, p).sum())
    energy = (squared.cumsum(0) / total).tolist()
    return found | {
        "stable_rank": total / largest**2,
        "effective_rank": float(torch.tensor(entropy).exp()),
        "energy": energy,
    }


def spectra(adapters: Mapping[str, ModuleAdapter], sizes: Mapping[Site, Size]) -> list[dict[str, Any]]:
    """One row of figures a site, from a saved adapter. ``sizes`` are the run's sites; a slice is its rows of the fused module."""
    rows = []
    for site, size in sizes.items():
        module = adapters[site.module]
        values = singular_values(module.a, take_rows(module.b, site.rows), module.scale)[: size.rank]
        rows.append({**about(site), "rank": size.rank, **figures(values.tolist())})
    return rows


def about(site: Site) -> dict[str, Any]:
    """A site as ``importance.json`` names it; one rank more costs ``params_per_rank``, and ``width`` ranks are the most it bears."""
    return {
        "name": site.name,
        "module": site.module,
        "layer": site.layer,
        "kind": site.kind,
        "params_per_rank": site.params(1),
        "width": min(site.d_in, site.width),
    }
