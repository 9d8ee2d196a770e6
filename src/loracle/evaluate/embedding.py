"""Likeness of texts: cosine of their embeddings, the base model's mean-pooled last hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from loracle.adapters.forward import Answerer, backbone
from loracle.evaluate.loss import batches_by_length

LENGTH = 256  # tokens of a text that count


def cosines(
    base: Answerer, tokenizer: Any, texts: Sequence[Sequence[str]], references: Sequence[str], device: torch.device
) -> np.ndarray:
    """``[K, n]``: cosine of each text's and its reference's embedding under the untrained base; 0 where one of them is empty."""
    flat = [text for each in texts for text in each]
    with base.answering(base=True):
        vectors = embeddings(base.model, tokenizer, [*flat, *references], device)
    wanted = vectors[len(flat) :]
    return np.einsum("knd,nd->kn", vectors[: len(flat)].reshape(len(texts), len(references), -1), wanted)


@torch.no_grad()
def embeddings(model: Any, tokenizer: Any, texts: Sequence[str], device: torch.device) -> np.ndarray:
    """``[n, d]`` float64 of length 1: the mean over a text's tokens of the last hidden state; zeros for an empty text."""
    distinct = sorted({text for text in texts if text.strip()})
    ids = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:LENGTH] for text in distinct]
    found: dict[str, np.ndarray] = {}
    width = 1
    for items in batches_by_length([max(1, len(i)) for i in ids], 1, device.type):
        items = [i for i in items if ids[i]]
        length = max((len(ids[i]) for i in items), default=0)
        if not length:
            continue
        padded = torch.zeros(len(items), length, dtype=torch.int64)
        mask = torch.zeros(len(items), length, 1, dtype=torch.float64)
        for row, i in enumerate(items):
            padded[row, : len(ids[i])] = torch.tensor(ids[i])
            mask[row, : len(ids[i])] = 1
        hidden = backbone(model)(input_ids=padded.to(device), use_cache=False).last_hidden_state.double().cpu()
        means = (hidden * mask).sum(1) / mask.sum(1)
        width = means.shape[1]
        found |= {distinct[i]: means[row].numpy() for row, i in enumerate(items)}
    raw = np.stack([found.get(text, np.zeros(width)) for text in texts])
    norms = np.linalg.norm(raw, axis=1, keepdims=True)
    return raw / np.where(norms > 0, norms, 1.0)
