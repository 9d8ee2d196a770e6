"""Decoder blocks of GPT-2 and of the Llama family as they are, with each addition to the residual stream fused into the norm after it.

Every function here stands for one module's ``forward`` in Transformers (5.17 to 5.23) and computes the same; with a cache or
cross-attention the module's own goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from loracle.models.attention import flash
from loracle.models.frozen import AddNorm, GatedProduct, Rotary, gated_product, made_again


def add_norm(x: torch.Tensor, delta: torch.Tensor | None, norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(x + delta, its norm by the frozen module ``norm``)."""
    if isinstance(norm, nn.LayerNorm):
        return AddNorm.apply(x, delta, norm.weight, norm.bias, norm.eps, True)  # type: ignore[no-untyped-call]
    return AddNorm.apply(x, delta, norm.weight, None, norm.variance_epsilon, False)  # type: ignore[no-untyped-call]


def norm_alone(norm: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """A norm that stands by itself."""
    return add_norm(hidden_states, None, norm)[1]


def gated_mlp(mlp: Any, x: torch.Tensor) -> torch.Tensor:
    """down(silu(gate(x)) · up(x)). The product is made again for the backward pass of an adapter that wants it."""
    gate, up = mlp.gate_proj(x), mlp.up_proj(x)
    product = GatedProduct.apply(gate, up)  # type: ignore[no-untyped-call]
    gate, up = gate.detach(), up.detach()
    with made_again(product, lambda: gated_product(gate, up)):
        return mlp.down_proj(product)


def checkpointing(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """``forward`` of a layer, checkpointed where the layer is. Transformers does that around ``__call__`` up to some 5.2x and within
    the class's ``forward`` after, which ours stands for."""

    @wraps(forward)
    def layer_forward(layer: Any, *args: Any, **more: Any) -> torch.Tensor:
        within = "__call__" not in GradientCheckpointingLayer.__dict__
        if within and layer.gradient_checkpointing and layer.training:
            return layer._gradient_checkpointing_func(partial(forward, layer, **more), *args)
        return forward(layer, *args, **more)

    return layer_forward


@checkpointing
def gpt2_block(block: Any, hidden_states: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
    """``GPT2Block.forward``."""
    if any(part is not None for part in (*rest, more.get("past_key_values"), more.get("encoder_hidden_states"))):
        return type(block).forward(block, hidden_states, *rest, **more)
    stream, normed = add_norm(hidden_states, None, block.ln_1)
    stream, normed = add_norm(stream, block.attn(normed)[0], block.ln_2)
    return stream + block.mlp(normed)


@checkpointing
def llama_layer(layer: Any, hidden_states: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
    """``LlamaDecoderLayer.forward``, and those that are copies of it."""
    if rest or more.get("past_key_values") is not None:
        return type(layer).forward(layer, hidden_states, *rest, **more)
    stream, normed = add_norm(hidden_states, None, layer.input_layernorm)
    attended = layer.self_attn(hidden_states=normed, **more)[0]
    stream, normed = add_norm(stream, attended, layer.post_attention_layernorm)
    return stream + layer.mlp(normed)


def rotary_attention(attention: Any, hidden_states: torch.Tensor, *rest: Any, **more: Any) -> tuple[torch.Tensor, None]:
    """``LlamaAttention.forward``, and those that are copies of it: q, k, v, rotary positions, causal attention, o."""
    if rest or more.get("past_key_values") is not None or more.get("position_embeddings") is None:
        return type(attention).forward(attention, hidden_states, *rest, **more)
    shape = (*hidden_states.shape[:-1], -1, attention.head_dim)
    q, k, v = (getattr(attention, f"{kind}_proj")(hidden_states).view(shape) for kind in "qkv")
    cos, sin = more["position_embeddings"]
    q, k = (Rotary.apply(part, cos, sin) for part in (q, k))  # type: ignore[no-untyped-call]
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    out, _ = flash(attention, q, k, v, None, scaling=attention.scaling)
    return attention.o_proj(out.reshape(*hidden_states.shape[:-1], -1)), None
