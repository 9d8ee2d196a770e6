"""Operations with frozen weights whose backward passes keep little, over the kernels of ``models.kernels``.

On the meta device they allocate what the kernels allocate and compute nothing, so that memory can be predicted anywhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from loracle.models.precision import dequantized_weight


class FrozenRMSNorm(torch.autograd.Function):
    """``apply(x [.., d], weight [d], eps)`` → ``[.., d]`` (Zhang & Sennrich 2019); keeps x and a float32 a row."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        rstd = torch.empty(x.numel() // x.shape[-1], dtype=torch.float32, device=x.device)
        if not x.is_meta:
            from loracle.models.kernels.norms import rms_forward

            rms_forward(x, weight, out, rstd, eps)
        ctx.save_for_backward(x, weight, rstd)
        return out

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        x, weight, rstd = ctx.saved_tensors
        dx = torch.empty_like(x)
        if not x.is_meta:
            from loracle.models.kernels.norms import rms_backward

            rms_backward(dy.contiguous(), x, weight, rstd, dx)
        return dx, None, None


class GatedProduct(torch.autograd.Function):
    """``apply(gate, up)``, both ``[.., d]`` → silu(gate) · up (SwiGLU, Shazeer 2020); keeps its two inputs."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        out = torch.empty_like(gate)
        if not gate.is_meta:
            from loracle.models.kernels.gated import forward

            forward(gate, up, out)
        ctx.save_for_backward(gate, up)
        return out

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        gate, up = ctx.saved_tensors
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        if not gate.is_meta:
            from loracle.models.kernels.gated import backward

            backward(dy.contiguous(), gate, up, dgate, dup)
        return dgate, dup


class FourBitProduct(torch.autograd.Function):
    """``apply(x, module)`` → x Wᵀ + b over a 4-bit weight that is dequantized for the product, and again for the backward pass;
    nothing is kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, module: Any) -> torch.Tensor:
        ctx.module = module
        return nn.functional.linear(x, dequantized_weight(module, x.dtype), module.bias)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        return dy @ dequantized_weight(ctx.module, dy.dtype), None
