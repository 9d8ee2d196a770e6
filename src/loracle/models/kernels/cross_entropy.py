"""Cross-entropy over rows of logits, and its gradient written over them, in one kernel.

Stands for ``log_softmax``, ``nll_loss`` and their backward passes on a float32 copy of the logits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

COLUMNS = 4096


@triton.jit
def _losses(
    logits,
    stride,
    targets,
    losses,
    VOCABULARY: tl.constexpr,
    PADDED: tl.constexpr,
    GRADIENT: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    base = logits + row * stride
    target = tl.load(targets + row)
    column = tl.arange(0, COLUMNS)
    top = tl.full((COLUMNS,), float("-inf"), tl.float32)
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, VOCABULARY, COLUMNS):
        at = start + column
        z = tl.load(base + at, mask=at < VOCABULARY, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(top, z)
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(top - shift) + tl.exp(z - shift)
        top = higher
    largest = tl.max(top, 0)
    total = tl.sum(total * tl.exp(top - largest), 0)
    lse = largest + tl.log(total)
    chosen = tl.load(base + target).to(tl.float32)
    tl.store(losses + row, lse - chosen)
    if GRADIENT:
        for start in range(0, PADDED, COLUMNS):
            at = start + column
            z = tl.load(base + at, mask=at < VOCABULARY, other=float("-inf")).to(tl.float32)
            p = tl.exp(z - lse)
            p = tl.where(at == target, p - 1.0, p)
            tl.store(base + at, p.to(logits.dtype.element_ty), mask=at < PADDED)


def row_losses(
    logits: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor, vocabulary: int, gradient: bool
) -> None:
    """``losses [n]`` (float32, in nats) of ``logits [n, V_padded]`` against ``targets [n]``, over the first ``vocabulary`` columns.

    With ``gradient`` the logits are overwritten by softmax − onehot, zero in the padding.
    """
    _losses[(logits.shape[0],)](
        logits, logits.stride(0), targets, losses, VOCABULARY=vocabulary, PADDED=logits.shape[1],
        GRADIENT=gradient, COLUMNS=COLUMNS, num_warps=8,
    )  # fmt: skip


@triton.jit
def _scatter(gradient, scale, positions, valid, out, width, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    if tl.load(valid + row) > 0:
        column = tl.arange(0, WIDTH)
        inside = column < width
        g = tl.load(gradient + row * width + column, mask=inside, other=0.0).to(tl.float32) * tl.load(scale + row)
        into = tl.load(positions + row).to(tl.int64)
        tl.store(out + into * width + column, g.to(out.dtype.element_ty), mask=inside)


def scatter_rows(
    gradient: torch.Tensor, scale: torch.Tensor, positions: torch.Tensor, valid: torch.Tensor, out: torch.Tensor
) -> None:
    """``out[positions[i]] = scale[i] · gradient[i]`` for every valid ``i``; positions of valid rows are unlike each other."""
    width = gradient.shape[1]
    _scatter[(gradient.shape[0],)](
        gradient, scale, positions, valid, out, width, WIDTH=triton.next_power_of_2(width), num_warps=4
    )
