"""Logits and losses of a cohort: the backbone runs once over all members, the language-model head only on scored positions."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn

from loracle.adapters.batch import CohortBatch
from loracle.base.errors import ModelError
from loracle.models.memory_labels import counted_as


class Answerer(Protocol):
    """Who gives logits: a cohort's members, one of them, or a base. ``size``: how many answer side by side."""

    model: Any

    @property
    def size(self) -> int: ...

    def logits(self, batch: CohortBatch) -> torch.Tensor:
        """``[K·N, V]`` of the batch's scored positions; for classification ``[K·N, C]``."""
        ...

    def answering(self, base: bool = False, alone: int | None = None) -> AbstractContextManager[int]:
        """Within the block the base, or member ``alone``, answers a batch of one member. Gives how many answer."""
        ...


def backbone(model: nn.Module) -> nn.Module:
    """The model without its head: ``input_ids`` → ``last_hidden_state``."""
    prefix = getattr(model, "base_model_prefix", "")
    inner = getattr(model, prefix, None) if prefix else None
    if inner is None:
        raise ModelError(f"{type(model).__name__} has no backbone that can run without its head")
    return inner


def head_logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Logits ``[n, V]`` of hidden states ``[n, d]``, as the model's own forward computes them."""
    with counted_as("logits_and_loss"):
        return _head_logits(model, hidden)


def _head_logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    head = model.get_output_embeddings()
    if head is None:  # a classifier
        return model.score(hidden)
    logits = head(hidden)
    config = model.config
    scale = getattr(config, "logits_scaling", None)  # Granite divides
    if scale:
        logits = logits / scale
    scale = getattr(config, "logit_scale", None)  # Cohere multiplies
    if scale:
        logits = logits * scale
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
    return torch.tanh(logits / cap) * cap if cap else logits


def scored_hidden(model: Any, batch: CohortBatch) -> torch.Tensor:
    """Last hidden states of the scored positions, ``[K·N, d]``."""
    hidden = backbone(model)(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    return hidden.reshape(-1, hidden.shape[-1]).index_select(0, batch.positions.reshape(-1))


def token_losses(logits: torch.Tensor, batch: CohortBatch) -> torch.Tensor:
    """Cross-entropy of every scored position from its logits ``[K·N, V]``, in nats: ``[K, N]``, 0 where a member has fewer."""
    with counted_as("logits_and_loss"):
        if logits.dtype not in (torch.float32, torch.float64):
            logits = logits.float()
        losses = nn.functional.cross_entropy(logits, batch.targets.reshape(-1), reduction="none")
        return torch.where(batch.valid > 0, losses.view(batch.targets.shape), 0.0)


class Untrained:
    """A model as it is, behind the calls of a cohort: one answerer, nothing to train."""

    size = 1

    def __init__(self, model: Any) -> None:
        self.model = model

    def logits(self, batch: CohortBatch) -> torch.Tensor:
        """``[N, V]`` of the scored positions."""
        return head_logits(self.model, scored_hidden(self.model, batch))

    def answering(self, base: bool = False, alone: int | None = None) -> AbstractContextManager[int]:
        """The base answers anyway."""
        return nullcontext(1)
