"""What some operations allocate on a CUDA device beyond their result, and constants of the device's libraries.

On the meta device attention would be computed by matrix products, with all T × T scores in memory; on a GPU one kernel does it that
keeps a float a row. bitsandbytes' operations are Python on a GPU, with intermediate tensors of their own. Each stand-in allocates
what the device's way allocates and computes nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from loracle.diagnose.autocast_shapes import lowered
from loracle.models.memory_labels import counted_as

CUBLAS_WORKSPACE = 32 << 20
"""Bytes that cuBLAS takes through torch's allocator for each thread that multiplies matrices (Hopper; 8,519,680 before it)."""
OUTLIER_COLUMNS = 0
"""Columns that LLM.int8() multiplies in 16 bits; how many there are hangs on activations."""

MATRIX_PRODUCTS = frozenset(
    getattr(torch.ops.aten, name).default for name in ("mm", "bmm", "addmm", "baddbmm", "addmm_", "baddbmm_")
)
Operation = Callable[..., Any]


# -- attention --------------------------------------------------------------------------------------------------------


@contextmanager
def device_attention() -> Iterator[None]:
    """Within the block ``scaled_dot_product_attention`` on the meta device is as CUDA chooses it: flash in 16 bits without a mask,
    else memory-efficient where query and key heads are equally many, else matrix products.

    The function in ``torch.nn.functional`` is exchanged: a torch function mode would not reach into backward, where checkpointed
    blocks run again. Tensors on other devices go on to the original.
    """
    original = nn.functional.scaled_dot_product_attention

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        query, key, value = lowered((query, key, value))
        mask = args[0] if args else kwargs.get("attn_mask")
        flash = mask is None and query.dtype != torch.float32
        if query.device.type == "meta" and (flash or query.shape[1] == key.shape[1]):
            return FusedAttention.apply(query, key, value, flash)  # type: ignore[no-untyped-call]
        return original(query, key, value, *args, **kwargs)

    nn.functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = original


class FusedAttention(torch.autograd.Function):
    """``q [B, H, T, D]``, ``k`` and ``v [B, H', S, D]`` → ``[B, H, T, D]``; kept are the inputs, the result and a float a row."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, flash: bool) -> torch.Tensor:
        batch, heads, length, _ = q.shape
        out = q.new_empty(batch, length, heads, v.shape[-1]).transpose(1, 2)
        rows = length if flash else -(-length // 32) * 32
        ctx.save_for_backward(q, k, v, out, q.new_empty(batch, heads, rows, dtype=torch.float32))
        ctx.flash = flash
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        q, k, v, _, _ = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        batch, heads, length, size = q.shape
        padded = -(-length // 128) * 128
        scratch = [q.new_empty(batch, heads, padded, dtype=torch.float32)]
        if ctx.flash:
            scratch.append(q.new_empty(batch, padded, heads, -(-size // 32) * 32, dtype=torch.float32))
            if heads != k.shape[1]:
                scratch += [q.new_empty(batch, k.shape[2], heads, size) for _ in range(2)]
        del scratch
        return dq, dk, dv, None


# -- bitsandbytes -----------------------------------------------------------------------------------------------------


@functools.cache
def operations() -> dict[Any, Operation]:
    """Operation → what stands in for it on the meta device; those of bitsandbytes, where it is there."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        return {}
    own = torch.ops.bitsandbytes
    wanted: dict[str, Operation] = {
        "gemm_4bit": _gemm_4bit,
        "int8_vectorwise_quant": _int8_vectorwise_quant,
        "int8_mixed_scaled_mm": _int8_mixed_scaled_mm,
        "int8_scaled_mm": _int8_scaled_mm,
    }
    return {getattr(own, name).default: stand_in for name, stand_in in wanted.items() if hasattr(own, name)}


def _gemm_4bit(
    x: torch.Tensor,
    packed: torch.Tensor,
    shape: Any,
    absmax: torch.Tensor,
    blocksize: int,
    quant_type: str,
    bias: torch.Tensor | None = None,
    absmax_8bit: torch.Tensor | None = None,
    absmax_code: torch.Tensor | None = None,
    absmax_offset: torch.Tensor | None = None,
) -> torch.Tensor:
    """Products of more than a few hundred rows: the weight is put together and multiplied."""
    own = torch.ops.bitsandbytes
    with counted_as("dequantization_workspace"):
        if absmax_8bit is not None:
            absmax = own.dequantize_blockwise(absmax_8bit, absmax, absmax_code, 256, torch.float32) + absmax_offset
        weight = own.dequantize_4bit(packed, absmax, blocksize, quant_type, list(shape), x.dtype)
    return nn.functional.linear(x, weight, bias)


def _int8_vectorwise_quant(x: torch.Tensor, threshold: float = 0.0) -> Any:
    stats = x.new_empty(x.numel() // x.shape[-1], dtype=torch.float32)
    codes = x.new_empty(x.shape, dtype=torch.int8)
    if not threshold:
        return codes, stats, None
    large = x.abs() >= threshold
    del large
    return codes, stats, x.new_empty(OUTLIER_COLUMNS, dtype=torch.int64)


def _int8_mixed_scaled_mm(
    x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, row: Any, column: Any, outliers: Any = None, bias: Any = None
) -> Any:
    return _int8_scaled_mm(a, b, row, column, bias, x.dtype), x.new_empty(0)


def _int8_scaled_mm(
    a: torch.Tensor, b: torch.Tensor, row: Any, column: Any, bias: Any = None, dtype: torch.dtype | None = None
) -> torch.Tensor:
    exact = a.new_empty((*a.shape[:-1], b.shape[0]), dtype=torch.int32)
    half = torch.empty_like(exact, dtype=torch.float16)
    return half.to(dtype or torch.float16)
