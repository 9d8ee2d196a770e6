"""silu(gate) · up (SwiGLU, Shazeer 2020): one kernel each way, and nothing kept but its two inputs.

silu is rounded before the product, as Transformers' two operations do.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 2048


@triton.jit
def _forward(gate, up, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    g = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    s = (g * tl.sigmoid(g)).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + at, (s * u).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _backward(dy, gate, up, dgate, dup, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    d = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    sigma = tl.sigmoid(g)
    tl.store(dup + at, (d * g * sigma).to(dup.dtype.element_ty), mask=inside)
    tl.store(dgate + at, (d * u * sigma * (1 + g * (1 - sigma))).to(dgate.dtype.element_ty), mask=inside)


def forward(gate: torch.Tensor, up: torch.Tensor, out: torch.Tensor) -> None:
    """``out`` of ``gate`` and ``up``, contiguous and of one shape."""
    count = gate.numel()
    _forward[(triton.cdiv(count, BLOCK),)](gate, up, out, count, BLOCK=BLOCK, num_warps=8)


def backward(dy: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, dgate: torch.Tensor, dup: torch.Tensor) -> None:
    """``dgate`` and ``dup`` of ``dy``."""
    count = gate.numel()
    _backward[(triton.cdiv(count, BLOCK),)](dy, gate, up, dgate, dup, count, BLOCK=BLOCK, num_warps=8)
