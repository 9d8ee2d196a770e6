"""What AdaLoRA's next step depends on beside its parameters: PEFT's running importances, and the ranks that are masked.

Source: Zhang et al. 2023 (arXiv:2303.10512), equations 9 to 11, as PEFT's ``RankAllocator`` holds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

ADAPTER = "default"


def _parts(adapter: Any, kind: str) -> dict[str, torch.Tensor]:
    """Name → parameter, in the order and under the names that PEFT's allocator knows."""
    every = adapter.base_model.model.named_parameters()
    return {name: p for name, p in every if kind in name and ADAPTER in name}


def allocation(adapter: Any) -> dict[str, torch.Tensor]:
    """The allocator's state as tensors: importances while ranks are still moved, ``mask`` once some were."""
    allocator, pattern = adapter.base_model.rankallocator, adapter.peft_config[ADAPTER].rank_pattern
    found: dict[str, torch.Tensor] = {}
    if allocator.exp_avg_ipt:
        for name in ("exp_avg_ipt", "exp_avg_unc"):
            found[name] = torch.cat([part.reshape(-1) for part in getattr(allocator, name).values()])
    if pattern:
        found["mask"] = torch.tensor([kept for part in pattern.values() for kept in part], dtype=torch.uint8)
    return found


def restore_allocation(adapter: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """What ``allocation`` gave, back in place."""
    allocator = adapter.base_model.rankallocator
    allocator.reset_ipt()
    if "exp_avg_ipt" in tensors:
        parts = _parts(adapter, "lora_")
        sizes = [part.numel() for part in parts.values()]
        for name in ("exp_avg_ipt", "exp_avg_unc"):
            pieces = torch.split(tensors[name], sizes)
            values = zip(parts.items(), pieces, strict=True)
            setattr(allocator, name, {key: piece.to(part).view_as(part) for (key, part), piece in values})
        allocator.ipt = {
            key: torch.zeros_like(part) for key, part in parts.items()
        }  # of one step: made anew by the next
    if "mask" in tensors:
        ranks = {name: part.shape[0] for name, part in _parts(adapter, "lora_E").items()}
        masks = torch.split(tensors["mask"], list(ranks.values()))
        pattern = {name: mask.bool().tolist() for name, mask in zip(ranks, masks, strict=True)}
        adapter.peft_config[ADAPTER].rank_pattern = pattern


def keep_what_is_there(adapter: Any) -> None:
    """Before saving: the ranks kept are those whose value is not 0. With ``best_checkpoint`` the values may be older than the
    last mask, and PEFT would drop some that still count."""
    config = adapter.peft_config[ADAPTER]
    if config.rank_pattern:
        values = _parts(adapter, "lora_E")
        config.rank_pattern = {name: (part != 0).view(-1).tolist() for name, part in values.items()}
