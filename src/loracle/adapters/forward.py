"""Losses of a cohort: the backbone runs once over all members, the language-model head only on scored positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from loracle.adapters.batch import CohortBatch
from loracle.base.errors import ModelError


def backbone(model: nn.Module) -> nn.Module:
    """The model without its head: ``input_ids`` → ``last_hidden_state``."""
    prefix = getattr(model, "base_model_prefix", "")
    inner = getattr(model, prefix, None) if prefix else None
    if inner is None:
        raise ModelError(f"{type(model).__name__} has no backbone that can run without its head")
    return inner


def head_logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Logits ``[n, V]`` of hidden states ``[n, d]``, as the model's own forward computes them."""
    logits = model.get_output_embeddings()(hidden)
    config = model.config
    scale = getattr(config, "logits_scaling", None)  # Granite divides
    if scale:
        logits = logits / scale
    scale = getattr(config, "logit_scale", None)  # Cohere multiplies
    if scale:
        logits = logits * scale
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
    return torch.tanh(logits / cap) * cap if cap else logits


def token_losses(model: Any, batch: CohortBatch) -> torch.Tensor:
    """Cross-entropy of every scored token, in nats: ``[K, N]``, 0 where a member has fewer than N."""
    hidden = backbone(model)(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    chosen = hidden.reshape(-1, hidden.shape[-1]).index_select(0, batch.positions.reshape(-1))
    logits = head_logits(model, chosen)
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    losses = nn.functional.cross_entropy(logits, batch.targets.reshape(-1), reduction="none")
    return torch.where(batch.valid > 0, losses.view(batch.targets.shape), 0.0)
