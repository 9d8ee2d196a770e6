"""Logits and losses of a cohort: the backbone runs once over all members, the language-model head only on scored positions."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn

from loracle.adapters.batch import CohortBatch
from loracle.base.errors import ModelError
from loracle.models.attention import lay_out
from loracle.models.fast import can_quicken, room
from loracle.models.memory_labels import counted_as


class Answerer(Protocol):
    """Who gives logits: a cohort's members, one of them, or a base. ``size``: how many answer side by side."""

    model: Any

    @property
    def size(self) -> int: ...

    def losses(self, batch: CohortBatch) -> torch.Tensor:
        """Cross-entropy of every scored position, in nats: ``[K, N]``, 0 where a member has fewer."""
        ...

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


def every_hidden(model: Any, batch: CohortBatch) -> torch.Tensor:
    """Last hidden states of all tokens, ``[K·b·T, d]``, or ``[K·M, d]`` of a packed batch."""
    extra = {} if batch.position_ids is None else {"position_ids": batch.position_ids}
    lay_out(batch.bounds, batch.longest)
    hidden = backbone(model)(input_ids=batch.input_ids, use_cache=False, **extra).last_hidden_state
    return hidden.reshape(-1, hidden.shape[-1])


def scored_hidden(model: Any, batch: CohortBatch) -> torch.Tensor:
    """Last hidden states of the scored positions, ``[K·N, d]``."""
    return every_hidden(model, batch).index_select(0, batch.positions.reshape(-1))


def model_losses(model: Any, batch: CohortBatch) -> torch.Tensor:
    """``token_losses`` under the model's own head; in chunks that never hold all logits, where there are kernels for it."""
    weight = fusable_head(model)
    if weight is None:
        chosen = scored_hidden(model, batch)
        with counted_as("logits_and_loss"):
            return token_losses(head_logits(model, chosen), batch)
    hidden = every_hidden(model, batch)
    with counted_as("logits_and_loss"):
        losses = ChunkedLosses.apply(  # type: ignore[no-untyped-call]
            hidden,
            weight,
            model.config.vocab_size,
            batch.positions.reshape(-1),
            batch.targets.reshape(-1),
            batch.valid.reshape(-1),
        )
    return torch.where(batch.valid > 0, losses.view(batch.targets.shape), 0.0)


def fusable_head(model: Any) -> torch.Tensor | None:
    """The head's weight ``[V, d]`` with zero rows up to a multiple of 64, if losses may be taken from it in chunks."""
    head = model.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None or head.weight.requires_grad:
        return None
    if any(getattr(model.config, name, None) for name in ("logits_scaling", "logit_scale", "final_logit_softcapping")):
        return None
    if not can_quicken(head.weight.device, head.weight.dtype) or head.weight.shape[0] != model.config.vocab_size:
        return None
    return room(head.weight)


CHUNK_BYTES = 1 << 26  # of logits held at a time


class ChunkedLosses(torch.autograd.Function):
    """``apply(hidden [n, d], weight [V', d], V, positions [m], targets [m], valid [m])`` → losses ``[m]`` float32.

    The head's product, the cross-entropy and its gradient in one pass over chunks of positions: at most ``CHUNK_BYTES`` of logits
    exist, and what is kept for the backward pass is one gradient ``[m, d]`` (the idea of Liger-Kernel, Hsu et al. 2024).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        vocabulary: int,
        positions: torch.Tensor,
        targets: torch.Tensor,
        valid: torch.Tensor,
    ) -> torch.Tensor:
        count, keep = positions.numel(), ctx.needs_input_grad[0]
        losses = torch.empty(count, dtype=torch.float32, device=hidden.device)
        gradient = hidden.new_empty(count, hidden.shape[1]) if keep else None
        chunk = max(64, CHUNK_BYTES // (2 * weight.shape[0]) // 64 * 64)
        for start in range(0, count, chunk):
            part = slice(start, min(start + chunk, count))
            logits = hidden.index_select(0, positions[part]) @ weight.T
            if not logits.is_meta:
                from loracle.models.kernels.cross_entropy import row_losses

                row_losses(logits, targets[part], losses[part], vocabulary, keep)
            if gradient is not None:
                torch.mm(logits, weight, out=gradient[part])
            del logits
        if keep:
            ctx.save_for_backward(gradient, positions, valid)
            ctx.like = hidden.shape
        return losses

    @staticmethod
    def backward(ctx: Any, d_losses: torch.Tensor) -> Any:
        gradient, positions, valid = ctx.saved_tensors
        d_hidden = gradient.new_zeros(ctx.like)
        if not gradient.is_meta:
            from loracle.models.kernels.cross_entropy import scatter_rows

            scatter_rows(gradient, d_losses.contiguous(), positions, valid, d_hidden)
        return d_hidden, None, None, None, None, None


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

    def losses(self, batch: CohortBatch) -> torch.Tensor:
        """``[1, N]``."""
        return model_losses(self.model, batch)

    def answering(self, base: bool = False, alone: int | None = None) -> AbstractContextManager[int]:
        """The base answers anyway."""
        return nullcontext(1)
