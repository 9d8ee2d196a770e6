"""The map of a model's linear layers: raw names, layer numbers, and logical names (q, k, v, o, up, gate, down).

Logical names are known for the Llama family (Llama, TinyLlama, Mistral, Qwen2, Qwen3, Gemma 1 to 3), OPT, and the fused
projections of GPT-2, GPT-NeoX (interleaved by head) and Phi-3; any other architecture works by raw names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from loracle.base.errors import ModelError

CLASSIFIER_HEADS = ("score", "classifier")
"""What Transformers' sequence classifiers call their head."""
LOGICAL = ("q", "k", "v", "o", "up", "gate", "down")
_LLAMA = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "o_proj": "o",
    "up_proj": "up",
    "gate_proj": "gate",
    "down_proj": "down",
}
_GPT2 = {"attn.c_attn": "qkv", "attn.c_proj": "o", "mlp.c_fc": "up", "mlp.c_proj": "down"}
_GPT_NEOX = {
    "attention.query_key_value": "qkv_by_head",
    "attention.dense": "o",
    "mlp.dense_h_to_4h": "up",
    "mlp.dense_4h_to_h": "down",
}
_OPT = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "o", "fc1": "up", "fc2": "down"}
_PHI3 = {"qkv_proj": "qkv", "o_proj": "o", "gate_up_proj": "gate_up", "down_proj": "down"}
FAMILIES: dict[str, dict[str, str]] = {
    "gpt2": _GPT2,
    "gpt_neox": _GPT_NEOX,
    "opt": _OPT,
    "phi3": _PHI3,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"), _LLAMA),
}
# What published checkpoints call a parameter that Transformers has renamed since.
_ONCE = {"lm_head.weight": "embed_out.weight"}  # GPT-NeoX

Rows = tuple[int, ...]
"""Output rows of a linear layer: ``(start, stop)``, or ``(start, stop, period)``: those of every ``period`` rows."""


def split_rows(y: torch.Tensor, rows: Rows) -> torch.Tensor:
    """The view of ``rows`` in the last dimension of ``y [.., d_out]``: ``[.., width]``, or ``[.., groups, stop - start]``
    where they are interleaved."""
    start, stop, *period = rows
    return (y.view(*y.shape[:-1], -1, period[0]) if period else y)[..., start:stop]


def take_rows(weight: torch.Tensor, rows: Rows) -> torch.Tensor:
    """``rows`` of ``weight [d_out, n]`` as ``[width, n]``; a view where they are contiguous."""
    found = split_rows(weight.T, rows)
    return (found.flatten(-2) if len(rows) > 2 else found).T


@dataclass(frozen=True)
class Linear:
    """One frozen linear layer. ``slices`` maps each logical name in it to its rows of the output."""

    name: str
    layer: int | None
    kind: str
    d_in: int
    d_out: int
    slices: dict[str, Rows] = field(default_factory=dict)

    @property
    def params(self) -> int:
        """Weight elements, without bias."""
        return self.d_in * self.d_out


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(d_in, d_out) of a linear of any kind, or None for another module."""
    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    if isinstance(module, nn.Linear):  # bitsandbytes' linears are subclasses
        return int(module.in_features), int(module.out_features)
    return None


def layer_number(name: str) -> int | None:
    """The first number in a dotted name: the layer."""
    match = re.search(r"\.(\d+)\.", name)
    return int(match.group(1)) if match else None


def linear_map(model: nn.Module, model_type: str) -> list[Linear]:
    """All linear layers of the backbone, in order; heads (output embeddings, classification) are left out.

    ``model`` may lie on the meta device: only shapes are read.
    """
    family = FAMILIES.get(model_type, {})
    heads = _heads(model)
    found: list[Linear] = []
    for name, module in model.named_modules():
        shape = linear_shape(module)
        if shape is None or id(module) in heads:
            continue
        logical = next((kind for suffix, kind in family.items() if name.endswith("." + suffix)), None)
        kind = logical or name.rpartition(".")[2]
        found.append(Linear(name, layer_number(name), kind, *shape, slices=_slices(logical, shape[1], model)))
    return found


def check_weights(model: nn.Module, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """The weights in a folder (name → shape) against the model's modules; the first that is absent or misshapen is an error.

    Checkpoints may leave out the backbone's prefix, and one of two tied tensors. Architectures that Transformers renames on
    loading are not checked here: loading them says what is missing.
    """
    prefix = getattr(model, "base_model_prefix", "") + "."
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    expected = dict(model.named_parameters(remove_duplicate=False))
    for group in names.values():
        found = [n for x in group for n in (x, x.removeprefix(prefix), _ONCE.get(x, x)) if n in shapes]
        if not found:
            raise ModelError(f"{where}: the weights lack {group[0]}: copy or download the model again")
        shape = _stored_shape(found[0], tuple(expected[group[0]].shape), shapes)
        if shapes[found[0]] != shape:
            raise ModelError(f"{where}: {found[0]} is {list(shapes[found[0]])}, but config.json says {list(shape)}")


def _stored_shape(name: str, shape: tuple[int, ...], stored: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape that the weight ``name`` of ``shape`` has in a file: bitsandbytes packs two 4-bit weights in a byte, ``[n / 2, 1]``,
    and holds int8 as ``[d_out, d_in]``, also where the module (GPT-2's Conv1D) is turned."""
    if any(key.startswith(f"{name}.quant_state.") for key in stored):
        return (-(-math.prod(shape) // 2), 1)
    turned = f"{name.removesuffix('weight')}SCB" in stored and stored[name] == shape[::-1]
    return shape[::-1] if turned else shape


def _heads(model: nn.Module) -> set[int]:
    get_head: Any = getattr(model, "get_output_embeddings", None)
    head = get_head() if get_head else None
    named = (getattr(model, attribute, None) for attribute in (*CLASSIFIER_HEADS, "lm_head"))
    return {id(module) for module in (head, *named) if module is not None}


def _slices(logical: str | None, d_out: int, model: nn.Module) -> dict[str, Rows]:
    if logical is None:
        return {}
    if logical == "gate_up":
        return {"gate": (0, d_out // 2), "up": (d_out // 2, d_out)}
    if not logical.startswith("qkv"):
        return {logical: (0, d_out)}
    config: Any = getattr(model, "config", None)
    heads = getattr(config, "num_attention_heads", 1)
    if logical == "qkv_by_head" and heads > 1:  # q, k and v of the first head, then those of the second, …
        period = d_out // heads
        size = period // 3
        return {kind: (i * size, (i + 1) * size, period) for i, kind in enumerate("qkv")}
    shared = getattr(config, "num_key_value_heads", None) or heads  # grouped-query attention: fewer key and value heads
    q, kv = (d_out * n // (heads + 2 * shared) for n in (heads, shared))
    return {"q": (0, q), "k": (q, q + kv), "v": (q + kv, d_out)}
