"""Loss per evaluation item, for all members of a cohort at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from loracle.adapters.batch import Row, make_batch, scored
from loracle.adapters.forward import Answerer, Untrained, token_losses

# Tokens of one forward pass: enough to keep the machine busy, few enough to stay in a CPU's cache.
TOKENS_PER_PASS = {"cpu": 4096, "cuda": 65536, "meta": 65536}  # meta: shapes alone, as on a GPU
# Of a recorded evaluation on a CPU. Under bitsandbytes' bfloat16 kernel results hang on how many rows a product has: passes of
# 1 to 4 rows agree with each other, one of 40 was off by 1.6e-4 nats (gpt2-ref, 2,731 tokens). People evaluate in small batches.
TOKENS_PER_RECORDED_PASS = 512


@dataclass(frozen=True)
class ItemLosses:
    """``sums [K, n]``: each item's loss summed over its scored tokens, in nats; ``tokens [n]``: how many those are.

    ``predicted [K, n]``: the class with the largest logit, for classification.
    """

    sums: np.ndarray
    tokens: np.ndarray
    predicted: np.ndarray | None = None

    @property
    def mean(self) -> np.ndarray:
        """``[K]``: Σ loss / Σ scored tokens."""
        return self.sums.sum(1) / max(1, int(self.tokens.sum()))


def batches_by_length(
    lengths: Sequence[int], members: int, device_type: str, recorded: bool = False
) -> list[list[int]]:
    """Item numbers in batches of near-equal length, each within the token budget of one pass."""
    small = recorded and device_type == "cpu"
    budget = TOKENS_PER_RECORDED_PASS if small else TOKENS_PER_PASS[device_type]
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    out: list[list[int]] = []
    for i in order:
        longest = lengths[out[-1][0]] if out else 0
        if out and (len(out[-1]) + 1) * longest * members <= budget:
            out[-1].append(i)
        else:
            out.append([i])
    return out


@torch.no_grad()
def item_losses(
    who: Answerer,
    rows: Sequence[Row],
    pad_id: int,
    device: torch.device,
    *,
    base: bool = False,
    alone: int | None = None,
) -> ItemLosses:
    """Losses of ``rows`` under every member of ``who``; with ``base`` under its base, with ``alone`` under that member, K = 1.

    A pass that does not fit in a device's memory is taken in halves.
    """
    tokens = np.array([scored(row)[0].size for row in rows], dtype=np.int64)
    with who.answering(base, alone) as members:
        sums = np.zeros((members, len(rows)))
        predicted = np.zeros((members, len(rows)), dtype=np.int64) if rows and rows[0].label_id is not None else None
        recorded = base or alone is not None or isinstance(who, Untrained)
        left = batches_by_length([len(row.input_ids) for row in rows], members, device.type, recorded)
        while left:
            items = left.pop(0)
            try:
                sums[:, items], guesses = _one_pass(who, [rows[i] for i in items], members, pad_id, device)
            except torch.OutOfMemoryError:
                if len(items) == 1:
                    raise
                half = len(items) // 2
                left[:0] = [items[:half], items[half:]]
                continue
            if predicted is not None and guesses is not None:
                predicted[:, items] = guesses
    return ItemLosses(sums, tokens, predicted)


def _one_pass(
    who: Answerer, rows: Sequence[Row], members: int, pad_id: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray | None]:
    """(summed losses ``[K, rows]``, the classes with the largest logit, for classification) of one forward pass."""
    batch = make_batch([rows] * members, pad_id).to(device)
    logits = who.logits(batch) if rows[0].label_id is not None else None
    losses = (who.losses(batch) if logits is None else token_losses(logits, batch)).double()
    per_item = torch.zeros(members, len(rows), dtype=torch.float64, device=device)
    sums = per_item.scatter_add_(1, batch.row, losses).cpu().numpy()
    return sums, None if logits is None else logits.argmax(-1).view(members, -1).cpu().numpy()


def final_losses(who: Answerer, rows: Sequence[Row], pad_id: int, device: torch.device) -> ItemLosses:
    """Losses that are recorded. On a CPU every member alone, in batches and arithmetic that a reload repeats.

    bitsandbytes' bfloat16 kernel (CPUs with AVX512-BF16) rounds activations, so that a last bit of float32 can become 0.1 in a
    token's logits: side by side, a run's evaluation would depend on its neighbours (measured: 6e-4 nats over 65 tokens).
    """
    if device.type != "cpu":
        return item_losses(who, rows, pad_id, device)
    each = [item_losses(who, rows, pad_id, device, alone=k) for k in range(who.size)]
    guesses = [one.predicted for one in each if one.predicted is not None]
    sums = np.concatenate([one.sums for one in each])
    return ItemLosses(sums, each[0].tokens, np.concatenate(guesses) if guesses else None)
