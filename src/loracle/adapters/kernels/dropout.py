"""Adapter dropout in one kernel: the mask of ``adapters.dropout.keep_mask``, bit for bit."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from loracle.adapters.dropout import _C1, _C2, _COL


@triton.jit
def _mix(value, C1: tl.constexpr, C2: tl.constexpr):
    value = value ^ ((value >> 16) & 0xFFFF)
    value = value * C1
    value = value ^ ((value >> 13) & 0x7FFFF)
    value = value * C2
    return value ^ ((value >> 16) & 0xFFFF)


@triton.jit
def _drop(
    x, out, keys, codes, threshold, factor, tokens, width, SHARED: tl.constexpr,
    C1: tl.constexpr, C2: tl.constexpr, COL: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    member = row // tokens
    code = tl.load(codes + (row - member * tokens if SHARED else row))
    token = _mix(tl.load(keys + member) ^ code, C1, C2)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = column < width
    bits = _mix(token ^ (column * COL), C1, C2)
    keep = (bits & 0x7FFFFFFF) >= tl.load(threshold + member)
    v = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    v = tl.where(keep, v * tl.load(factor + member), 0.0)
    tl.store(out + row * width + column, v.to(out.dtype.element_ty), mask=inside)


def drop(
    x: torch.Tensor,
    out: torch.Tensor,
    keys: torch.Tensor,
    codes: torch.Tensor,
    threshold: torch.Tensor,
    factor: torch.Tensor,
) -> None:
    """``out [K, n, d]`` of ``x``, both contiguous."""
    members, tokens, width = x.shape
    block = min(4096, triton.next_power_of_2(width))
    _drop[(members * tokens, triton.cdiv(width, block))](
        x, out, keys, codes, threshold, factor, tokens, width, SHARED=codes.dim() == 1,
        C1=_C1, C2=_C2, COL=_COL, WIDTH=block, num_warps=4,
    )  # fmt: skip
