"""Dequantization of bitsandbytes' 4-bit weights, constants included, in one kernel (QLoRA, Dettmers et al. 2023, section 3).

Stands for ``bitsandbytes.functional.dequantize_4bit``, which takes three launches and reads the constants twice under double
quantization. Same operations in the same order, so the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

BYTES = 1024  # packed bytes of one program


@triton.jit
def _dequantize(
    codes, absmax, table, codes2, absmax2, offset, out, count,
    BLOCK: tl.constexpr, BLOCK2: tl.constexpr, NESTED: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * BYTES + tl.arange(0, BYTES)
    inside = at < count
    pair = tl.load(codes + at, mask=inside, other=0).to(tl.int32)
    block = at // (BLOCK // 2)
    if NESTED:
        code = tl.load(absmax + block, mask=inside, other=0).to(tl.int32)
        scale = tl.load(codes2 + code) * tl.load(absmax2 + block // BLOCK2, mask=inside, other=0.0)
        scale = scale + tl.load(offset)
    else:
        scale = tl.load(absmax + block, mask=inside, other=0.0)
    first = tl.load(table + (pair >> 4)) * scale
    second = tl.load(table + (pair & 15)) * scale
    both = tl.interleave(first, second)
    into = tl.program_id(0) * (2 * BYTES) + tl.arange(0, 2 * BYTES)
    tl.store(out + into, both.to(out.dtype.element_ty), mask=into < 2 * count)


def dequantize(packed: torch.Tensor, state: Any, dtype: torch.dtype) -> torch.Tensor:
    """The dense weight ``[d_out, d_in]`` of ``packed`` (uint8, two weights a byte) in ``dtype``; ``state`` is its ``QuantState``."""
    out = torch.empty(tuple(state.shape), dtype=dtype, device=packed.device)
    count = packed.numel()
    nested = bool(state.nested)
    second = state.state2 if nested else state
    _dequantize[(triton.cdiv(count, BYTES),)](
        packed, state.absmax, state.code, second.code, second.absmax, state.offset if nested else state.absmax, out, count,
        BLOCK=state.blocksize, BLOCK2=second.blocksize, NESTED=nested, BYTES=BYTES, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return out
