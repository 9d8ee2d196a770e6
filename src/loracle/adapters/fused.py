"""A frozen linear layer and all its adapters as one differentiable operation.

Forward: y = base(x), then y[slice] += (x Aᵀ)·scale Bᵀ in place for each slot. Backward: dx = dy W, then dx += (dy B·scale) A
in place. Left to autograd, the same takes two more passes over every activation and three times the graph nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from loracle.adapters.targets import Site
from loracle.models.integer import IntegerLinear
from loracle.models.linears import split_rows
from loracle.models.precision import dequantized_weight, is_4bit

Scale = torch.Tensor | float
"""A factor a member, ``[K, 1, 1]``, or one for all."""
Backward = Callable[[torch.Tensor], torch.Tensor]


def input_gradient(base: nn.Module) -> Backward | None:
    """``dy [.., d_out]`` → ``dx [.., d_in]`` of a frozen linear; None for a kind whose gradient autograd must take (int8)."""
    module: Any = base
    if is_4bit(base) or isinstance(base, IntegerLinear):
        return lambda dy: dy @ dequantized_weight(module, dy.dtype)
    if isinstance(base, Conv1D):
        return lambda dy: dy @ module.weight.T
    if isinstance(base, nn.Linear) and module.weight.is_floating_point():
        return lambda dy: dy @ module.weight
    return None


class AdaptedLinear(torch.autograd.Function):
    """``apply(x, rows, base, dx_of, sites, scales, compute, low, A₀, B₀, A₁, B₁, …)`` → ``y [K, n, d_out]``.

    ``x: [K, n, d_in]``; ``rows``: what the adapters see, ``x`` after dropout, or None where that is ``x`` itself; ``compute``: the
    dtype of the adapters' products; ``low``: copies of A₀, B₀, … in it, or None: then they are made when they are wanted.
    Gradients come in the dtype of A and B either way, from float32 sums.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        rows: torch.Tensor | None,
        base: nn.Module,
        dx_of: Backward,
        sites: list[Site],
        scales: list[Scale],
        compute: torch.dtype,
        low: Sequence[torch.Tensor] | None,
        *weights: torch.Tensor,
    ) -> torch.Tensor:
        y: torch.Tensor = base(x)
        used = weights if low is None else low
        seen = (x if rows is None else rows).to(compute)
        hidden = []
        for i, (site, scale) in enumerate(zip(sites, scales, strict=True)):
            a, b = (used[j].to(compute) for j in (2 * i, 2 * i + 1))
            h = scaled_product(seen, a.transpose(1, 2), scale)
            add_product(split_rows(y, site.rows), h, b.transpose(1, 2))
            hidden.append(h)
        ctx.dx_of, ctx.sites, ctx.scales, ctx.same, ctx.dtype = dx_of, sites, scales, rows is None, x.dtype
        ctx.low, ctx.into = low, weights[0].dtype
        ctx.save_for_backward(seen, *hidden, *(weights if low is None else ()))
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        seen, *rest = ctx.saved_tensors
        hidden, weights = rest[: len(ctx.sites)], rest[len(ctx.sites) :] or ctx.low
        dx = ctx.dx_of(dy) if ctx.needs_input_grad[0] else None
        into = dx if ctx.same else (torch.zeros_like(seen) if ctx.needs_input_grad[1] else None)
        gradients: list[torch.Tensor] = []
        for i, (site, scale, h) in enumerate(zip(ctx.sites, ctx.scales, hidden, strict=True)):
            a, b = (weights[j].to(seen.dtype) for j in (2 * i, 2 * i + 1))
            g = split_rows(dy, site.rows).to(a.dtype)
            g = g.flatten(-2) if site.period else g
            dh = scaled_product(g, b, scale)
            gradients += [_summed(dh, seen, ctx.into), _summed(g, h, ctx.into)]
            if into is not None:
                add_product(into, dh, a)
        d_rows = None if ctx.same or into is None else into.to(ctx.dtype)
        return dx, d_rows, None, None, None, None, None, None, *gradients


def _summed(left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``leftᵀ @ right [K, l, r]`` of ``[K, n, ·]`` in ``dtype``: sums over tokens are never rounded to 16 bits."""
    if left.dtype == dtype:
        return torch.bmm(left.transpose(1, 2), right)
    if left.is_cuda:
        return torch.bmm(left.transpose(1, 2), right, out_dtype=dtype)
    return torch.bmm(left.transpose(1, 2), right).to(dtype)


def scaled_product(left: torch.Tensor, right: torch.Tensor, scale: Scale) -> torch.Tensor:
    """``scale · left @ right``; one scale for all members goes into the product."""
    if isinstance(scale, float):
        nothing = left.new_empty(1, 1, 1).expand(left.shape[0], left.shape[1], right.shape[2])
        return torch.baddbmm(nothing, left, right, beta=0, alpha=scale)
    return torch.bmm(left, right).mul_(scale)


def add_product(target: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """``target += left @ right`` in place, for ``[K, n, m]`` in any dtype; the target's last dimension may be split in two."""
    if target.dtype == left.dtype and target.is_contiguous():
        target.baddbmm_(left, right)
    else:
        target += torch.bmm(left, right).to(target.dtype).view(target.shape)
