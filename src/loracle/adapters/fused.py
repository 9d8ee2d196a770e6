"""A frozen linear layer and all its adapters as one differentiable operation.

Forward: y = base(x), then y[slice] += (x Aᵀ)·scale Bᵀ in place for each slot. Backward: dx = dy W, then dx += (dy B·scale) A
in place. Left to autograd, the same takes two more passes over every activation and three times the graph nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from loracle.adapters.targets import Site
from loracle.models.integer import IntegerLinear
from loracle.models.linears import split_rows
from loracle.models.memory_labels import counted_as
from loracle.models.precision import is_4bit

Backward = Callable[[torch.Tensor], torch.Tensor]


def input_gradient(base: nn.Module) -> Backward | None:
    """``dy [.., d_out]`` → ``dx [.., d_in]`` of a frozen linear; None for a kind whose gradient autograd must take (int8)."""
    module: Any = base
    if is_4bit(base):
        return lambda dy: dy @ _dequantized(module, dy.dtype)
    if isinstance(base, IntegerLinear):
        return lambda dy: dy @ module.dequantize(dy.dtype)
    if isinstance(base, Conv1D):
        return lambda dy: dy @ module.weight.T
    if isinstance(base, nn.Linear) and module.weight.is_floating_point():
        return lambda dy: dy @ module.weight
    return None


def _dequantized(module: Any, dtype: torch.dtype) -> torch.Tensor:
    """The weight ``[d_out, d_in]`` of bitsandbytes' 4-bit linear."""
    import bitsandbytes.functional as bnb

    with counted_as("dequantization_workspace"):
        return bnb.dequantize_4bit(module.weight.data, module.weight.quant_state).to(dtype)


class AdaptedLinear(torch.autograd.Function):
    """``apply(x, rows, base, dx_of, sites, scales, A₀, B₀, A₁, B₁, …)`` → ``y [K, n, d_out]``.

    ``x: [K, n, d_in]``; ``rows``: what the adapters see, ``x`` after dropout, or None where that is ``x`` itself.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        rows: torch.Tensor | None,
        base: nn.Module,
        dx_of: Backward,
        sites: list[Site],
        scales: list[torch.Tensor],
        *weights: torch.Tensor,
    ) -> torch.Tensor:
        y: torch.Tensor = base(x)
        seen = (x if rows is None else rows).to(weights[0].dtype)
        hidden = []
        for i, (site, scale) in enumerate(zip(sites, scales, strict=True)):
            h = torch.bmm(seen, weights[2 * i].transpose(1, 2)) * scale
            add_product(split_rows(y, site.rows), h, weights[2 * i + 1].transpose(1, 2))
            hidden.append(h)
        ctx.dx_of, ctx.sites, ctx.scales, ctx.same, ctx.dtype = dx_of, sites, scales, rows is None, x.dtype
        ctx.save_for_backward(seen, *hidden, *weights)
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        seen, *rest = ctx.saved_tensors
        hidden, weights = rest[: len(ctx.sites)], rest[len(ctx.sites) :]
        dx = ctx.dx_of(dy) if ctx.needs_input_grad[0] else None
        into = dx if ctx.same else (torch.zeros_like(seen) if ctx.needs_input_grad[1] else None)
        gradients: list[torch.Tensor] = []
        for i, (site, scale, h) in enumerate(zip(ctx.sites, ctx.scales, hidden, strict=True)):
            a, b = weights[2 * i], weights[2 * i + 1]
            g = split_rows(dy, site.rows).to(a.dtype)
            g = g.flatten(-2) if site.period else g
            dh = torch.bmm(g, b) * scale
            gradients += [torch.bmm(dh.transpose(1, 2), seen), torch.bmm(g.transpose(1, 2), h)]
            if into is not None:
                add_product(into, dh, a)
        d_rows = None if ctx.same or into is None else into.to(ctx.dtype)
        return dx, d_rows, None, None, None, None, *gradients


def add_product(target: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """``target += left @ right`` in place, for ``[K, n, m]`` in any dtype; the target's last dimension may be split in two."""
    if target.dtype == left.dtype and target.is_contiguous():
        target.baddbmm_(left, right)
    else:
        target += torch.bmm(left, right).to(target.dtype).view(target.shape)
