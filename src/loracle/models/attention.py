"""Causal attention of the training step on a GPU: FlashAttention (Dao 2023) over rows side by side, or packed one behind another.

A packed batch has no padding between rows and no attention across them: ``LAYOUT`` says where rows begin. Covers plain causal
attention, grouped queries included; sliding windows, soft caps and position biases do not go through here (``takes``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

NAME = "loracle_causal"  # a name with "flash" in it sends Transformers looking for that package
# Architectures whose every layer is plain causal attention over absolute or rotary positions given as position_ids.
PLAIN = frozenset({"gpt2", "llama", "mistral", "qwen2", "qwen3"})
LARGEST_HEAD = 256


@dataclass
class Layout:
    """``bounds [S + 1]`` int32: where the packed rows begin and the last one ends; ``longest``: of any row, in tokens. None: rows
    lie side by side."""

    bounds: torch.Tensor | None = None
    longest: int = 0


LAYOUT = (
    Layout()
)  # of the batch in hand; backward passes recompute layers in autograd's own threads, so no context variable


def lay_out(bounds: torch.Tensor | None, longest: int) -> None:
    """The next batch is packed as ``bounds`` says, or not at all. It stays so through the backward pass, which may recompute."""
    LAYOUT.bounds, LAYOUT.longest = bounds, longest


def takes(config: Any, dtype: torch.dtype) -> bool:
    """Whether a model's attention is one that ``flash`` computes."""
    if config.model_type not in PLAIN or dtype not in (torch.bfloat16, torch.float16):
        return False
    if getattr(config, "scale_attn_by_inverse_layer_idx", False) or getattr(config, "reorder_and_upcast_attn", False):
        return False
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return False
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return head % 8 == 0 and head <= LARGEST_HEAD


class Flash(torch.autograd.Function):
    """``apply(q, k, v, bounds, longest, scale)``: ``[n, H, D]`` packed or ``[B, T, H, D]`` side by side → the same shape as q.

    Keeps q, k, v, the output and a float32 for each query and head.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bounds: torch.Tensor | None,
        longest: int,
        scale: float,
    ) -> torch.Tensor:
        if q.is_meta:
            out, lse, state, unused = _shapes_forward(q)
        else:
            out, lse, state, unused, _ = torch.ops.aten._flash_attention_forward(
                q, k, v, bounds, bounds, longest, longest, 0.0, True, False, scale=scale
            )
        ctx.save_for_backward(q, k, v, out, lse, state, unused)
        ctx.bounds, ctx.longest, ctx.scale = bounds, longest, scale
        return out

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        q, k, v, out, lse, state, unused = ctx.saved_tensors
        if q.is_meta:
            return *_shapes_backward(q, k, v), None, None, None
        dq, dk, dv = torch.ops.aten._flash_attention_backward(
            dy.contiguous(), q, k, v, out, lse, ctx.bounds, ctx.bounds, ctx.longest, ctx.longest, 0.0, True, state, unused,
            scale=ctx.scale,
        )  # fmt: skip
        return dq, dk, dv, None, None, None


def _shapes_forward(q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the forward kernels allocate, packed or side by side: the output, a float32 for each query and head, the (unused) state
    of random numbers."""
    floats = q.new_empty(q.shape[:-1], dtype=torch.float32)
    return torch.empty(q.shape, dtype=q.dtype, device="meta"), floats, q.new_empty(2), q.new_empty(0)


def _shapes_backward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The gradients, allocated beside what the backward kernels need: dq in float32, a float32 a query, and dk and dv of every query
    head where several share a key head."""
    grads = tuple(torch.empty(part.shape, dtype=part.dtype, device="meta") for part in (q, k, v))
    wide = [] if q.shape[-2] == k.shape[-2] else [torch.empty(q.shape, dtype=q.dtype, device="meta") for _ in range(2)]
    scratch = [q.new_empty(q.shape[:-1], dtype=torch.float32), q.new_empty(q.shape, dtype=torch.float32), *wide]
    del scratch, wide
    return grads


class CudnnFlash(torch.autograd.Function):
    """``apply(q, k, v, scale)``: the same for ``[B, H, T, D]`` side by side, by cuDNN, which is faster on Hopper. It makes a plan for
    every new shape (some 100 ms), so it is for few shapes."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        out, lse, *rest = torch.ops.aten._scaled_dot_product_cudnn_attention(
            q, k, v, None, True, 0.0, True, False, scale=scale
        )
        ctx.save_for_backward(q, k, v, out, lse, rest[4], rest[5])
        ctx.rest, ctx.scale = rest[:4], scale
        return out

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        q, k, v, out, lse, seed, offset = ctx.saved_tensors
        dq, dk, dv = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            dy, q, k, v, out, lse, seed, offset, None, *ctx.rest, 0.0, True, scale=ctx.scale
        )
        return dq, dk, dv, None


def flash(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' attention interface: ``[B, H, T, D]`` each → ``[B, T, H, D]``."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if LAYOUT.bounds is None and by_cudnn(query):
        return CudnnFlash.apply(query, key, value, scale).transpose(1, 2), None  # type: ignore[no-untyped-call]
    rows = [part.transpose(1, 2) for part in (query, key, value)]
    if LAYOUT.bounds is None:
        return Flash.apply(*rows, None, query.shape[2], scale), None  # type: ignore[no-untyped-call]
    flat = [part.flatten(0, 1) for part in rows]
    out = Flash.apply(*flat, LAYOUT.bounds, LAYOUT.longest, scale)  # type: ignore[no-untyped-call]
    return out.view(rows[0].shape), None


FEW = 64  # lengths that are multiples of this make few plans


def by_cudnn(query: torch.Tensor) -> bool:
    """Whether cuDNN takes queries ``[B, H, T, D]``."""
    if not query.is_cuda or query.shape[2] % FEW or query.shape[3] > 128:
        return False
    return torch.backends.cudnn.enabled and torch.cuda.get_device_capability(query.device) >= (9, 0)


def registered() -> str:
    """The name by which Transformers finds ``flash``."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if NAME not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(NAME, flash)
    return NAME


def attends_by_flash(model: Any) -> bool:
    """Whether ``flash`` is the model's attention now, so that rows may be packed."""
    return model.config._attn_implementation == NAME
