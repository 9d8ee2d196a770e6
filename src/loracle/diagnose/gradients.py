"""Inputs and output gradients of a base's linear layers, from one forward and one backward pass that trains nothing.

What LoRA would learn from first is the gradient of a weight, Σ g xᵀ over positions; what an error ΔW of that weight does to the
loss is, to first order, Σ gᵀ ΔW x. Both follow from x and g, so that no gradient of a weight has to be held.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from loracle.adapters.batch import CohortBatch
from loracle.adapters.forward import head_logits, scored_hidden
from loracle.models.linears import Linear

Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Linear's name → its inputs ``[b, T, d_in]`` and the gradients of the summed loss by its outputs ``[b, T, d_out]``, float32."""


def inputs_and_gradients(model: Any, linears: Sequence[Linear], batch: CohortBatch) -> Pairs:
    """Of one batch of one member. The model is left as it was: its parameters need no gradient and get none."""
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, given: Any, output: torch.Tensor) -> None:
            inputs[name], outputs[name] = given[0].detach(), output

        return hook

    embedding = model.get_input_embeddings()
    handles = [embedding.register_forward_hook(lambda module, given, output: output.detach().requires_grad_())]
    handles += [model.get_submodule(x.name).register_forward_hook(keep(x.name)) for x in linears]
    try:
        with torch.enable_grad():
            logits = head_logits(model, scored_hidden(model, batch))
            loss = cross_entropy(logits.float(), batch.targets.view(-1), reduction="sum")
            names = list(outputs)
            gradients = torch.autograd.grad(loss, [outputs[name] for name in names])
    finally:
        for handle in handles:
            handle.remove()
    return {name: (inputs[name].float(), g.float()) for name, g in zip(names, gradients, strict=True)}
