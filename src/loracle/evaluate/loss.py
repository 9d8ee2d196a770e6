"""Loss per evaluation item, for all members of a cohort at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from loracle.adapters.batch import Row, make_batch
from loracle.adapters.cohort import Cohort
from loracle.adapters.forward import token_losses

# Tokens of one forward pass: enough to keep the machine busy, few enough to stay in a CPU's cache.
TOKENS_PER_PASS = {"cpu": 4096, "cuda": 65536}
# Of a recorded evaluation on a CPU. Under bitsandbytes' bfloat16 kernel results hang on how many rows a product has: passes of
# 1 to 4 rows agree with each other, one of 40 was off by 1.6e-4 nats (gpt2-ref, 2,731 tokens). People evaluate in small batches.
TOKENS_PER_RECORDED_PASS = 512


@dataclass(frozen=True)
class ItemLosses:
    """``sums [K, n]``: each item's loss summed over its scored tokens, in nats; ``tokens [n]``: how many those are."""

    sums: np.ndarray
    tokens: np.ndarray

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
    model: Any,
    cohort: Cohort | None,
    rows: Sequence[Row],
    pad_id: int,
    device: torch.device,
    *,
    base: bool = False,
    alone: int | None = None,
) -> ItemLosses:
    """Losses of ``rows`` under every member; with ``base`` (or no cohort) under the base, with ``alone`` under that member, K = 1."""
    members = 1 if base or cohort is None or alone is not None else len(cohort.members)
    sums = np.zeros((members, len(rows)))
    tokens = np.zeros(len(rows), dtype=np.int64)
    with bypassed(cohort, base, alone):
        recorded = base or cohort is None or alone is not None
        for items in batches_by_length([len(row.input_ids) for row in rows], members, device.type, recorded):
            chosen = [rows[i] for i in items]
            batch = make_batch([chosen] * members, pad_id).to(device)
            losses = token_losses(model, batch).double()
            per_item = torch.zeros(members, len(items), dtype=torch.float64, device=device).scatter_add_(
                1, batch.row, losses
            )
            sums[:, items] = per_item.cpu().numpy()
            for i in items:
                tokens[i] = sum(label != -100 for label in rows[i].labels[1:])
    return ItemLosses(sums, tokens)


def final_losses(model: Any, cohort: Cohort, rows: Sequence[Row], pad_id: int, device: torch.device) -> ItemLosses:
    """Losses that are recorded. On a CPU every member alone, in batches and arithmetic that a reload repeats.

    bitsandbytes' bfloat16 kernel (CPUs with AVX512-BF16) rounds activations, so that a last bit of float32 can become 0.1 in a
    token's logits: side by side, a run's evaluation would depend on its neighbours (measured: 6e-4 nats over 65 tokens).
    """
    if device.type != "cpu":
        return item_losses(model, cohort, rows, pad_id, device)
    each = [item_losses(model, cohort, rows, pad_id, device, alone=k) for k in range(len(cohort.members))]
    return ItemLosses(np.concatenate([one.sums for one in each]), each[0].tokens)


class bypassed:
    """Within the block the adapters are out of the way (``on``) or member ``alone`` answers: a batch of one member."""

    def __init__(self, cohort: Cohort | None, on: bool, alone: int | None = None) -> None:
        self.cohort, self.on, self.alone = cohort, on, alone

    def __enter__(self) -> None:
        if self.cohort is not None:
            self.cohort.state.bypass, self.cohort.state.alone = self.on, self.alone

    def __exit__(self, *error: object) -> None:
        if self.cohort is not None:
            self.cohort.state.bypass, self.cohort.state.alone = False, None
