"""Similarity of learned updates, on ΔW = scale·B·A, never on A and B themselves (which are unique only up to a rotation).

All figures are computed in factored form in float64: <ΔW₁, ΔW₂> = tr((B₁ᵀB₂)(A₂A₁ᵀ)), so no d×d matrix is ever built.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from loracle.adapters.peft_files import ModuleAdapter, read_adapter
from loracle.models.linears import Rows, take_rows


def inner(a1: torch.Tensor, b1: torch.Tensor, a2: torch.Tensor, b2: torch.Tensor) -> float:
    """Frobenius inner product of B₁A₁ and B₂A₂; ``a: [r, d_in]``, ``b: [d_out, r]``, float64."""
    return float(((b1.T @ b2) * (a1 @ a2.T)).sum())


def principal_angle_cosine(b1: torch.Tensor, b2: torch.Tensor) -> float | None:
    """Mean cosine of the principal angles between the column spaces of B₁ and B₂ (Björck & Golub 1973)."""
    q1, q2 = _basis(b1), _basis(b2)
    if q1.shape[1] == 0 or q2.shape[1] == 0:
        return None
    return float(torch.linalg.svdvals(q1.T @ q2).clamp(max=1.0).mean())


def _basis(b: torch.Tensor) -> torch.Tensor:
    u, s, _ = torch.linalg.svd(b, full_matrices=False)
    return u[:, s > s.max() * 1e-10] if s.numel() and float(s.max()) > 0 else u[:, :0]


def compare(first: ModuleAdapter, second: ModuleAdapter, rows: Rows) -> dict[str, float | None]:
    """Cosine, L2 distance and relative difference (‖ΔW₂ − ΔW₁‖ / ‖ΔW₁‖) on output rows ``rows``; the first is the reference."""
    a1, b1 = first.a.double(), take_rows(first.b, rows).double() * first.scale
    a2, b2 = second.a.double(), take_rows(second.b, rows).double() * second.scale
    one, two, cross = inner(a1, b1, a1, b1), inner(a2, b2, a2, b2), inner(a1, b1, a2, b2)
    if one <= 0 or two <= 0:
        return {"cosine": None, "l2": None, "relative_difference": None, "principal_angle_cosine": None}
    distance = math.sqrt(max(0.0, one + two - 2 * cross))
    return {
        "cosine": cross / math.sqrt(one * two),
        "l2": distance,
        "relative_difference": distance / math.sqrt(one),
        "principal_angle_cosine": principal_angle_cosine(b1, b2),
    }


def compare_adapters(first: Path, second: Path, modules: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each adapted module, and for each logical slice of a fused one.

    ``modules``: module name → ``{layer, slices: {kind: rows}}`` (from the run's record).
    """
    one, two = read_adapter(first), read_adapter(second)
    out: list[dict[str, Any]] = []
    for name in sorted(one.keys() & two.keys(), key=lambda n: (modules.get(n, {}).get("layer") or 0, n)):
        info = modules.get(name, {})
        slices = info.get("slices") or {name.rpartition(".")[2]: (0, one[name].b.shape[0])}
        for kind, rows in slices.items():
            if not any(bool(take_rows(x[name].b, rows).any()) for x in (one, two)):
                continue  # a slice that nobody trained
            out.append(
                {
                    "layer": info.get("layer"),
                    "kind": kind,
                    "module": name,
                    **compare(one[name], two[name], tuple(rows)),
                }
            )
    return out


def token_match(first: Sequence[int], second: Sequence[int]) -> float:
    """Equal tokens at equal positions over the length of the longer; two empty answers agree."""
    longest = max(len(first), len(second))
    return sum(x == y for x, y in zip(first, second, strict=False)) / longest if longest else 1.0
