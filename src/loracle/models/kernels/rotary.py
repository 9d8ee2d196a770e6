"""Rotary position embedding (Su et al. 2021) of queries or keys in one kernel, in the half-split layout of Transformers' Llama."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _rotate(
    x, cos, sin, out, x_row, rows_of_angles, heads,
    BACK: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, HALF)[None, :]
    inside = head < heads
    angle = (row % rows_of_angles) * (2 * HALF) + column
    c = tl.load(cos + angle).to(tl.float32)
    s = tl.load(sin + angle).to(tl.float32)
    if BACK:
        s = -s
    at = head * (2 * HALF) + column
    first = tl.load(x + row * x_row + at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + row * x_row + at + HALF, mask=inside, other=0.0).to(tl.float32)
    into = out + row * (heads * 2 * HALF) + at
    tl.store(into, (first * c - second * s).to(out.dtype.element_ty), mask=inside)
    tl.store(into + HALF, (second * c + first * s).to(out.dtype.element_ty), mask=inside)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor, back: bool) -> None:
    """``out [n, H, D]`` of ``x [n, H, D]`` (heads contiguous) by ``cos``, ``sin [m, D]``, row i by angles i mod m.

    ``back``: the inverse.
    """
    tokens, heads, width = x.shape
    _rotate[(tokens,)](
        x, cos, sin, out, x.stride(0), cos.shape[0], heads,
        BACK=back, HALF=width // 2, HEADS=triton.next_power_of_2(heads), num_warps=4,
    )  # fmt: skip
