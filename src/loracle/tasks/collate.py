"""Rows to padded tensors. Labels never come from the pad id, so pad = eos is harmless."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loracle.base.errors import ModelError
from loracle.tasks.rows import IGNORE, Row


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded rows: ``input_ids [B, T]``, ``labels [B, T]`` (unshifted, -100 = not scored), both int64.

    A causal model needs no attention mask for them: padding comes last and is never scored.
    """

    input_ids: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """Left-padded prompts: ``input_ids``, ``attention_mask``, ``position_ids`` (0 at the first real token)."""

    # [B, T] each, int64
    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor


def collate(
    rows: Sequence[Row], pad_id: int, device: torch.device | str | None = None, pad_to_multiple: int = 1
) -> Batch:
    """``rows`` as one right-padded batch, its length a multiple of ``pad_to_multiple``."""
    longest = max(len(row.input_ids) for row in rows)
    length = -(-longest // pad_to_multiple) * pad_to_multiple
    input_ids = torch.full((len(rows), length), pad_id, dtype=torch.int64)
    labels = torch.full((len(rows), length), IGNORE, dtype=torch.int64)
    for i, row in enumerate(rows):
        input_ids[i, : len(row.input_ids)] = torch.tensor(row.input_ids, dtype=torch.int64)
        labels[i, : len(row.labels)] = torch.tensor(row.labels, dtype=torch.int64)
    return Batch(input_ids.to(device), labels.to(device)) if device is not None else Batch(input_ids, labels)


def collate_prompts(
    prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device | str | None = None
) -> PromptBatch:
    """Token lists as one left-padded batch, for generation."""
    length = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), length), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(prompts), length), dtype=torch.int64)
    for i, prompt in enumerate(prompts):
        start = length - len(prompt)
        input_ids[i, start:] = torch.tensor(list(prompt), dtype=torch.int64)
        mask[i, start:] = 1
    positions = (mask.cumsum(1) - 1).clamp_(min=0)
    batch = (input_ids, mask, positions)
    return PromptBatch(*(t.to(device) for t in batch)) if device is not None else PromptBatch(*batch)


def pad_token_id(tokenizer: Any) -> int:
    """The tokenizer's pad token, else its eos token."""
    for name in ("pad_token_id", "eos_token_id"):
        value = getattr(tokenizer, name, None)
        if value is not None:
            return int(value)
    raise ModelError("the tokenizer has neither a pad nor an eos token: add one to its tokenizer_config.json")
