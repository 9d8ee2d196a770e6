"""AdamW (Loshchilov & Hutter 2019) of a whole cohort in one kernel: each parameter, its gradient and moments are read once.

Stands for ``CohortAdamW.update`` and the clipping before it: the same operations in the same order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 2048


@triton.jit
def _update(
    data, grad, exp_avg, exp_avg_sq, factor, stepping, one_minus_beta1, beta2, one_minus_beta2, epsilon,
    tables, b_tables, is_b, at_step, members, size,
    PLUS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    k = tl.program_id(1)
    if tl.load(stepping + k) == 0:
        return
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    at = k.to(tl.int64) * size + column
    row = tl.load(at_step) * (3 * members) + k
    decay, denominator, rate = (
        tl.load(tables + row),
        tl.load(tables + row + members),
        tl.load(tables + row + 2 * members),
    )
    if PLUS:
        b = tl.load(is_b + column, mask=inside, other=0) != 0
        decay = tl.where(b, tl.load(b_tables + row), decay)
        rate = tl.where(b, tl.load(b_tables + row + 2 * members), rate)
    g = tl.load(grad + at, mask=inside, other=0.0) * tl.load(factor + k)
    m = tl.load(exp_avg + at, mask=inside, other=0.0)
    v = tl.load(exp_avg_sq + at, mask=inside, other=0.0)
    m = m + tl.load(one_minus_beta1 + k) * (g - m)
    v = v * tl.load(beta2 + k) + g * g * tl.load(one_minus_beta2 + k)
    root = tl.sqrt_rn(v) / denominator + tl.load(epsilon + k)
    p = tl.load(data + at, mask=inside, other=0.0) * decay - rate * (m / root)
    tl.store(exp_avg + at, m, mask=inside)
    tl.store(exp_avg_sq + at, v, mask=inside)
    tl.store(data + at, p, mask=inside)


def update(
    data: torch.Tensor,
    grad: torch.Tensor,
    moments: tuple[torch.Tensor, torch.Tensor],
    factor: torch.Tensor,
    stepping: torch.Tensor,
    columns: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    tables: torch.Tensor,
    b_tables: torch.Tensor | None,
    is_b: torch.Tensor | None,
    at_step: torch.Tensor,
) -> None:
    """One step of ``data [K, P]`` (float32), in place. ``factor [K]``: what clipping leaves of the gradient; ``stepping [K]``: whose
    parameters change; ``columns``: 1 − β₁, β₂, 1 − β₂ and ε ``[K]``; ``tables [steps, 3, K, 1]``; ``at_step [1]``: which step it is."""
    members, size = data.shape
    _update[(triton.cdiv(size, BLOCK), members)](
        data, grad, *moments, factor, stepping, *columns, tables, tables if b_tables is None else b_tables,
        stepping if is_b is None else is_b, at_step, members, size,
        PLUS=b_tables is not None, BLOCK=BLOCK, num_warps=8, enable_fp_fusion=False,
    )  # fmt: skip
