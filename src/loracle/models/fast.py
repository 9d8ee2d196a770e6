"""A frozen model's own operations in fewer kernels, for the training step on a GPU; ``overrides.undo`` gives the model back as it was.

``quicken`` overrides ``forward`` of single modules (decoder blocks, norms, gated MLPs, bitsandbytes' 4-bit linears), switches
attention to ``attention.flash`` where that fits, and aligns the vocabulary of the head. Nothing changes but the order of
roundings. Only for 16-bit compute and a base that no gradient flows into.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from loracle.models import blocks
from loracle.models.attention import registered, takes
from loracle.models.frozen import FourBitProduct
from loracle.models.kernels import installed
from loracle.models.memory_labels import counted_as
from loracle.models.overrides import attend_by, override
from loracle.models.precision import is_4bit

RMS_NORMS = frozenset({"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "Phi3RMSNorm"})
GATED = frozenset({"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP"})
_LLAMA = ("Llama", "Mistral", "Qwen2")
BLOCKS: dict[str, Callable[..., Any]] = {
    "GPT2Block": blocks.gpt2_block,
    **{f"{family}DecoderLayer": blocks.llama_layer for family in (*_LLAMA, "Qwen3")},
    **{f"{family}Attention": blocks.rotary_attention for family in _LLAMA},
}
SILU = frozenset({"SiLU", "SiLUActivation"})
ALIGNED = 64  # columns of logits; cuBLAS is several times slower on rows that are not aligned to 16 bytes


def can_quicken(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels are for this device and compute dtype."""
    return installed_for(device) and dtype in (torch.bfloat16, torch.float16)


def installed_for(device: torch.device) -> bool:
    """Whether there is a Triton for this device; the meta device stands for a CUDA one."""
    return device.type == "meta" or (device.type == "cuda" and installed())


def quicken(model: Any, dtype: torch.dtype, *, attention: bool = True) -> None:
    """Override what has a faster kernel, in place; ``attention`` too, unless the base drops attention weights."""
    attention = attention and takes(model.config, dtype)
    if attention:
        attend_by(model, registered())
    for module in model.modules():
        forward = _faster(module, attention)
        if forward is not None:
            override(module, forward)
    align_head(model)


def _faster(module: Any, attention: bool) -> Callable[..., Any] | None:
    """What stands for a module's forward pass."""
    kind = type(module).__name__
    if kind in BLOCKS and attention:
        return BLOCKS[kind]
    if kind in RMS_NORMS:
        return blocks.norm_alone
    if kind in GATED and type(module.act_fn).__name__ in SILU:
        return blocks.gated_mlp
    return _four_bit if is_4bit(module) else None


def _four_bit(module: Any, x: torch.Tensor) -> torch.Tensor:
    return FourBitProduct.apply(x, module)  # type: ignore[no-untyped-call]


def align_head(model: Any) -> None:
    """Room behind the head's weight ``[V, d]`` for a multiple of 64 rows, zeros all: its values and ties stay."""
    head = model.get_output_embeddings()
    if head is None or head.weight.shape[0] % ALIGNED == 0 or room(head.weight) is not None:
        return
    rows, width = head.weight.shape
    with counted_as("other_weights"):
        roomy = head.weight.new_zeros(-(-rows // ALIGNED) * ALIGNED, width)
    roomy[:rows] = head.weight.detach()
    head.weight.data = roomy[:rows]


def room(weight: torch.Tensor) -> torch.Tensor | None:
    """The head's weight with its zero rows, ``[⌈V / 64⌉·64, d]``; None where it has no room for them."""
    rows, width = weight.shape
    padded = -(-rows // ALIGNED) * ALIGNED
    start = weight.storage_offset()
    held = weight.untyped_storage().nbytes() // weight.element_size() - start
    if rows != padded and (held != padded * width or not weight.is_contiguous()):
        return None
    return weight.detach().as_strided((padded, width), (width, 1), start)
