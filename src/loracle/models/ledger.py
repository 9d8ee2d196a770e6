"""The ledger's words: the components that a device's memory is divided into."""

from __future__ import annotations

COMPONENTS = (
    "quantized_weights",
    "quantization_constants",
    "other_weights",
    "adapters",
    "gradients",
    "optimizer",
    "saved_activations",
    "logits_and_loss",
    "dequantization_workspace",
    "rest",
)
"""``saved_activations``: what a forward pass leaves for backward, in whole blocks of the allocator; ``rest``: temporary tensors,
cuBLAS's workspace, and what the allocator gives beyond a request for anything else."""
