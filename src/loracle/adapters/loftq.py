"""LoftQ's start (Li et al. 2023, algorithm 1 with one step): ΔW = B·A·scale is the best rank-r part of what quantization lost.

The quantized weights stay as they are, so that the adapter goes with any plain load of the base.
"""

from __future__ import annotations

from typing import Any

import torch

from loracle.models.load import LoadedBase, load_base
from loracle.models.precision import oriented_weight
from loracle.spec.study import Cell, Task


def _generation(cell: Cell) -> Task:
    """The cell's task as one without a head, which has no say here."""
    return cell.task.model_copy(update={"type": "generation"})


@torch.no_grad()
def start_from_error(adapter: Any, cell: Cell, loaded: LoadedBase) -> None:
    """Set every ``lora_A`` and ``lora_B`` of PEFT's model; ``W - Q`` is taken against the base loaded without quantization."""
    from peft.utils.integrations import dequantize_module_weight

    base = cell.base.model_copy(update={"add_tokens": ()})
    plain = cell.model_copy(
        update={
            "base": base,
            "precision": "fp32",
            "compute_dtype": "float32",
            "storage": "auto",
            "task": _generation(cell),
        }
    )
    dense = load_base(loaded.source, plain, torch.device("cpu"))
    for name in loaded.assignment:
        layer = adapter.get_base_model().get_submodule(name)
        if not hasattr(layer, "lora_A"):
            continue
        a, b, scale = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"]
        error = oriented_weight(dense.model.get_submodule(name)).float()
        error = error.to(a.device) - dequantize_module_weight(layer.get_base_layer()).float()
        u, s, v = torch.linalg.svd(error, full_matrices=False)
        root = (s[: a.shape[0]] / scale).sqrt()
        a.copy_(root.unsqueeze(1) * v[: a.shape[0]])
        b.copy_(u[:, : a.shape[0]] * root)
