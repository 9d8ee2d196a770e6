"""Which tensors of a base belong to which component of the ledger, for tensors of shapes alone and for real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from loracle.adapters.cohort import CohortLoRA
from loracle.diagnose.caching_allocator import rounded
from loracle.models.precision import packed_of
from loracle.spec.study import UNQUANTIZED


def frozen_linear(model: Any, name: str) -> Any:
    """The base's own linear behind a cohort's or PEFT's layer."""
    layer = model.get_submodule(name)
    return layer.base if isinstance(layer, CohortLoRA) else getattr(layer, "base_layer", layer)


def quantized_layers(model: Any, assignment: Mapping[str, str]) -> Iterator[tuple[Any, list[tuple[torch.Tensor, str]]]]:
    """Each layer that is held quantized, and its tensors with their components, the packed weight first."""
    for name, precision in assignment.items():
        packed: Any = packed_of(frozen_linear(model, name))
        if precision in UNQUANTIZED or packed.weight.is_floating_point():
            continue
        found = _tensors(packed.weight, 3) + _tensors(packed, 1)
        constants = [tensor for tensor in found if tensor is not packed.bias]
        yield packed, [(packed.weight, "quantized_weights"), *((t, "quantization_constants") for t in constants)]


def base_tensors(model: Any, assignment: Mapping[str, str]) -> Iterator[tuple[torch.Tensor, str]]:
    """All tensors of a base that outlive a step, with their components; some more than once, the first counts."""
    for _, tensors in quantized_layers(model, assignment):
        yield from tensors
    for tensor in model.parameters():
        yield tensor, "other_weights"
    for tensor in model.buffers():
        yield tensor, "other_weights"


def base_bytes(model: Any, assignment: Mapping[str, str], device_type: str) -> dict[str, int]:
    """Component → bytes of the frozen tensors on the device, each storage once, rounded as the allocator does."""
    seen: set[int] = set()
    found = dict.fromkeys(("quantized_weights", "quantization_constants", "other_weights"), 0)
    for tensor, component in base_tensors(model, assignment):
        storage = tensor.untyped_storage()
        if tensor.requires_grad or tensor.device.type != device_type or storage._cdata in seen:
            continue
        seen.add(storage._cdata)
        found[component] += rounded(storage.nbytes())
    return found


def _tensors(thing: Any, depth: int) -> list[torch.Tensor]:
    """Tensors among the attributes of a weight or module, and of what those hold: absmax, codes, offsets, scales."""
    found: list[torch.Tensor] = []
    for value in vars(thing).values() if hasattr(thing, "__dict__") else ():
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, dict):
            found += [v for v in value.values() if isinstance(v, torch.Tensor)]
        elif depth and not isinstance(value, nn.Module):
            found += _tensors(value, depth - 1)
    return found


def rewrap_checkpoints(model: nn.Module, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Exchange the checkpoint function of every checkpointed layer of ``model`` for ``wrap`` of it."""
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            own: Any = module
            own._gradient_checkpointing_func = wrap(own._gradient_checkpointing_func)
