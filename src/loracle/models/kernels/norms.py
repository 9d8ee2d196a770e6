"""RMSNorm (Zhang & Sennrich 2019) with a frozen weight: one kernel each way.

Transformers computes RMSNorm in six passes with float32 copies; here the input is read once, float32 stays in registers, and only
the input and one float a row are kept. The normed value is rounded before the weight is applied, as Transformers does.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _rms_forward(x, weight, out, rstd, eps, width, WIDTH: tl.constexpr):
    row = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    inside = column < width
    v = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    r = tl.rsqrt(tl.sum(v * v, 0) / width + eps)
    tl.store(rstd + row, r)
    normed = (v * r).to(out.dtype.element_ty).to(tl.float32)
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, (w * normed).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _rms_backward(dy, x, weight, rstd, dx, width, WIDTH: tl.constexpr):
    row = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    inside = column < width
    r = tl.load(rstd + row)
    normed = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32) * r
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(dy + row * width + column, mask=inside, other=0.0).to(tl.float32) * w
    shared = tl.sum(g * normed, 0) / width
    tl.store(dx + row * width + column, ((g - normed * shared) * r).to(dx.dtype.element_ty), mask=inside)


def rms_forward(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, rstd: torch.Tensor, eps: float) -> None:
    """``out`` and ``rstd [n]`` (float32) of ``x [.., d]``."""
    width = x.shape[-1]
    _rms_forward[(rstd.numel(),)](
        x, weight, out, rstd, eps, width, WIDTH=triton.next_power_of_2(width), num_warps=_warps(width)
    )


def rms_backward(dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor, dx: torch.Tensor) -> None:
    """``dx`` of ``dy``."""
    width = x.shape[-1]
    _rms_backward[(rstd.numel(),)](
        dy, x, weight, rstd, dx, width, WIDTH=triton.next_power_of_2(width), num_warps=_warps(width)
    )


def _warps(width: int) -> int:
    return max(1, min(16, triton.next_power_of_2(width) // 256))
