"""Likeness of texts: cosine of their embeddings, mean-pooled last hidden states of the untrained base or of a sentence encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loracle.adapters.forward import backbone
from loracle.base.errors import ModelError, one_line
from loracle.evaluate.loss import batches_by_length

LENGTH = 256  # tokens of a text that count


@dataclass(frozen=True)
class Encoder:
    """``hidden(ids [b, T], mask [b, T])`` → last hidden states ``[b, T, d]``; ``name`` says whose they are."""

    name: str
    tokenizer: Any
    hidden: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    device: torch.device


def base_encoder(model: Any, tokenizer: Any, device: torch.device) -> Encoder:
    """The base model itself: causal and padded on the right, so no mask is needed."""

    def hidden(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return backbone(model)(input_ids=ids, use_cache=False).last_hidden_state

    return Encoder("base", tokenizer, hidden, device)


def sentence_encoder(model: str, device: torch.device) -> Encoder:
    """An encoder in Hugging Face format (a sentence-transformers folder is one), mean-pooled."""
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        encoder = AutoModel.from_pretrained(model, use_safetensors=True, trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"diagnose.sentence_encoder: {model} cannot be loaded: {one_line(error)}") from None
    encoder = encoder.to(device).eval()
    return Encoder(
        Path(model).name,
        tokenizer,
        lambda ids, mask: encoder(input_ids=ids, attention_mask=mask).last_hidden_state,
        device,
    )


def cosines(encoder: Encoder, texts: Sequence[Sequence[str]], references: Sequence[str]) -> np.ndarray:
    """``[K, n]``: cosine of each text's and its reference's embedding; 0 where one of them is empty."""
    flat = [text for each in texts for text in each]
    vectors = embeddings(encoder, [*flat, *references])
    wanted = vectors[len(flat) :]
    return np.einsum("knd,nd->kn", vectors[: len(flat)].reshape(len(texts), len(references), -1), wanted)


@torch.no_grad()
def embeddings(encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    """``[n, d]`` float64 of length 1: the mean over a text's tokens of the last hidden state; zeros for an empty text."""
    distinct = sorted({text for text in texts if text.strip()})
    rows = encoder.tokenizer(distinct, verbose=False)["input_ids"] if distinct else []
    ids = {text: row[:LENGTH] for text, row in zip(distinct, rows, strict=True) if row}
    known = list(ids)
    found: dict[str, np.ndarray] = {}
    for items in batches_by_length([len(ids[text]) for text in known], 1, encoder.device.type) if known else []:
        for i, vector in zip(items, _means(encoder, [ids[known[i]] for i in items]), strict=True):
            found[known[i]] = vector
    width = len(next(iter(found.values()))) if found else 1
    raw = np.stack([found.get(text, np.zeros(width)) for text in texts])
    norms = np.linalg.norm(raw, axis=1, keepdims=True)
    return raw / np.where(norms > 0, norms, 1.0)


def _means(encoder: Encoder, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """``[b, d]``: means over each row's own tokens."""
    length = max(len(row) for row in rows)
    padded = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows], device=encoder.device)
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=encoder.device)
    hidden = encoder.hidden(padded, mask).double() * mask.unsqueeze(-1)
    return (hidden.sum(1) / mask.sum(1, keepdim=True)).cpu().numpy()
