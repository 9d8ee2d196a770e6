"""The sum of a residual stream and its norm with a frozen weight, LayerNorm (Ba et al. 2016) or RMSNorm (Zhang & Sennrich 2019):
one kernel each way.

Stands for an addition, a norm, and in the backward pass the norm's and the addition of the two gradients that meet there. float32
stays in registers, and one or two floats a row are kept. RMSNorm's normed value is rounded before the weight is applied, as
Transformers does.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _forward(
    x, delta, weight, bias, stream, out, mean, rstd, eps, width,
    ADD: tl.constexpr, CENTRED: tl.constexpr, BIAS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < width
    v = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        v += tl.load(delta + row * width + column, mask=inside, other=0.0).to(tl.float32)
        rounded = v.to(stream.dtype.element_ty)
        tl.store(stream + row * width + column, rounded, mask=inside)
        v = rounded.to(tl.float32)
    if CENTRED:
        m = tl.sum(v, 0) / width
        tl.store(mean + row, m)
        v = tl.where(inside, v - m, 0.0)
    r = tl.rsqrt(tl.sum(v * v, 0) / width + eps)
    tl.store(rstd + row, r)
    v = v * r
    if not CENTRED:
        v = v.to(out.dtype.element_ty).to(tl.float32)
    v = v * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        v += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, v.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    d_out, d_stream, stream, weight, mean, rstd, dx, width,
    ADD: tl.constexpr, CENTRED: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < width
    v = tl.load(stream + row * width + column, mask=inside, other=0.0).to(tl.float32)
    r = tl.load(rstd + row)
    if CENTRED:
        v = tl.where(inside, v - tl.load(mean + row), 0.0)
    v = v * r
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(d_out + row * width + column, mask=inside, other=0.0).to(tl.float32) * w
    g = g - v * (tl.sum(g * v, 0) / width) - (tl.sum(g, 0) / width if CENTRED else 0.0)
    g = g * r
    if ADD:
        g += tl.load(d_stream + row * width + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + row * width + column, g.to(dx.dtype.element_ty), mask=inside)


def _shape(x: torch.Tensor) -> tuple[int, int, int]:
    width = x.shape[-1]
    whole = triton.next_power_of_2(width)
    return width, whole, max(1, min(16, whole // 256))


def forward(
    x: torch.Tensor,
    delta: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stream: torch.Tensor,
    out: torch.Tensor,
    mean: torch.Tensor | None,
    rstd: torch.Tensor,
    eps: float,
) -> None:
    """``stream = x + delta`` (if there is one), ``out`` its norm, and what the backward pass needs: ``mean`` (LayerNorm) and ``rstd``."""
    width, whole, warps = _shape(x)
    _forward[(rstd.numel(),)](
        x, x if delta is None else delta, weight, weight if bias is None else bias, stream, out,
        rstd if mean is None else mean, rstd, eps, width,
        ADD=delta is not None, CENTRED=mean is not None, BIAS=bias is not None, WIDTH=whole, num_warps=warps,
    )  # fmt: skip


def backward(
    d_out: torch.Tensor,
    d_stream: torch.Tensor | None,
    stream: torch.Tensor,
    weight: torch.Tensor,
    mean: torch.Tensor | None,
    rstd: torch.Tensor,
    dx: torch.Tensor,
) -> None:
    """``dx`` from the gradient of the norm and, if there is one, of the stream."""
    width, whole, warps = _shape(stream)
    _backward[(rstd.numel(),)](
        d_out, d_out if d_stream is None else d_stream, stream, weight, rstd if mean is None else mean, rstd, dx, width,
        ADD=d_stream is not None, CENTRED=mean is not None, WIDTH=whole, num_warps=warps,
    )  # fmt: skip
