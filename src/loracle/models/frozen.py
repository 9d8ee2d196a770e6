"""Operations with frozen weights whose backward passes keep little, over the kernels of ``models.kernels``.

On the meta device they allocate what the kernels allocate and compute nothing, so that memory can be predicted anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from loracle.models.precision import dequantized_weight


class AddNorm(torch.autograd.Function):
    """``apply(x [.., d], delta, weight [d], bias, eps, centred)`` → (x + delta, its norm), with ``delta`` and ``bias`` possibly None.

    LayerNorm (Ba et al. 2016) where ``centred``, else RMSNorm (Zhang & Sennrich 2019). Keeps the sum and one or two float32 a row.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        delta: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        eps: float,
        centred: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.contiguous()
        stream = x.view_as(x) if delta is None else torch.empty_like(x)
        out = torch.empty_like(x)
        floats = torch.empty(1 + centred, x.numel() // x.shape[-1], dtype=torch.float32, device=x.device)
        if not x.is_meta:
            from loracle.models.kernels.norms import forward

            change = None if delta is None else delta.contiguous()
            forward(x, change, weight, bias, stream, out, floats[1] if centred else None, floats[0], eps)
        ctx.save_for_backward(stream, weight, floats)
        ctx.centred, ctx.added = centred, delta is not None
        ctx.set_materialize_grads(False)
        return stream, out

    @staticmethod
    def backward(ctx: Any, d_stream: torch.Tensor | None, d_out: torch.Tensor | None) -> Any:
        stream, weight, floats = ctx.saved_tensors
        if d_out is None:
            return d_stream, d_stream if ctx.added else None, None, None, None, None
        dx = torch.empty_like(stream)
        if not stream.is_meta:
            from loracle.models.kernels.norms import backward

            through = None if d_stream is None else d_stream.contiguous()
            backward(d_out.contiguous(), through, stream, weight, floats[1] if ctx.centred else None, floats[0], dx)
        return dx, dx if ctx.added else None, None, None, None, None


class Rotary(torch.autograd.Function):
    """``apply(x [B, T, H, D], cos, sin [1 or B, T, D])`` → x turned by its positions' angles (Su et al. 2021); keeps the angles."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        cos, sin = (part.reshape(-1, part.shape[-1]).contiguous() for part in (cos, sin))
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, back=False)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        return _rotated(dy, cos, sin, back=True), None, None


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, back: bool) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.is_meta:
        from loracle.models.kernels.rotary import rotate

        flat = x.flatten(0, 1)
        flat = flat if flat.stride()[1:] == (x.shape[-1], 1) else flat.contiguous()
        rotate(flat, cos, sin, out.flatten(0, 1), back)
    return out


class GatedProduct(torch.autograd.Function):
    """``apply(gate, up)``, both ``[.., d]`` → silu(gate) · up (SwiGLU, Shazeer 2020); keeps its two inputs.

    The gradient of ``up`` is written over that of the product, which must have no other reader."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        return gated_product(gate, up)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        gate, up = ctx.saved_tensors
        dgate, dup = torch.empty_like(gate), dy.contiguous()  # in place: nothing but this reads the product's gradient
        if not gate.is_meta:
            from loracle.models.kernels.gated import backward

            backward(dup, gate, up, dgate, dup)
        return dgate, dup


def gated_product(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up, without a gradient."""
    out = torch.empty_like(gate)
    if not gate.is_meta:
        from loracle.models.kernels.gated import forward

        forward(gate, up, out)
    return out


@contextmanager
def made_again(tensor: torch.Tensor, make: Callable[[], torch.Tensor]) -> Iterator[None]:
    """Within the block autograd does not keep ``tensor`` where it would save it, but calls ``make`` when it is wanted again.

    Under gradient checkpointing, which has hooks of its own on what is saved, nothing changes.
    """
    if torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        yield
        return
    place, count = (
        tensor.untyped_storage()._cdata,
        tensor.numel(),
    )  # the hooks outlive the block: they must not hold the tensor

    def pack(saved: torch.Tensor) -> Any:
        return saved.shape if saved.untyped_storage()._cdata == place and saved.numel() == count else saved

    def unpack(kept: Any) -> torch.Tensor:
        return kept if isinstance(kept, torch.Tensor) else make().view(kept)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


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
