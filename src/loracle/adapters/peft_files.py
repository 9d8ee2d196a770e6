"""A member's adapter as PEFT's files: ``adapter_config.json`` and ``adapter_model.safetensors``.

Slices of one fused layer leave as one adapter on that layer with the same ΔW: their A's stacked, their B's block-placed in the rows
of their slice, their ranks added and alpha so that the scale is kept. Ranks by layer leave as ``rank_pattern`` and ``alpha_pattern``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from loracle.adapters.cohort import Member
from loracle.adapters.ranks import lora_scale
from loracle.adapters.targets import Site
from loracle.models.linears import Linear
from loracle.store.files import file_sha256, replacing, write_json

PREFIX = "base_model.model."
Pairs = Mapping[Site, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class ModuleAdapter:
    """One module's adapter as PEFT holds it: ``a: [r, d_in]``, ``b: [d_out, r]``."""

    a: torch.Tensor
    b: torch.Tensor
    rank: int
    alpha: float
    rslora: bool = False

    @property
    def scale(self) -> float:
        """ΔW = scale·B·A."""
        return lora_scale(self.alpha, self.rank, self.rslora)


def fuse(pairs: Pairs, member: Member) -> dict[str, ModuleAdapter]:
    """Module name → its one adapter, from the sites' own, which have one scale a module."""
    by_module: dict[str, list[Site]] = {}
    for site in pairs:
        by_module.setdefault(site.module, []).append(site)
    out: dict[str, ModuleAdapter] = {}
    for module, sites in by_module.items():
        first, total = member.size(sites[0]), sum(member.rank_at(site) for site in sites)
        b = torch.cat([site.spread(pairs[site][1].cpu().T) for site in sites]).T
        a = torch.cat([pairs[site][0].cpu() for site in sites])
        factor = total / first.rank
        alpha = first.alpha * (math.sqrt(factor) if member.rslora else factor)
        out[module] = ModuleAdapter(a, b, total, alpha, member.rslora)
    return out


def target_modules(modules: Sequence[str], linears: Sequence[Linear]) -> list[str]:
    """Short suffixes where they name exactly these modules (as people write them), else the full names."""
    wanted = set(modules)
    for depth in (1, 2):
        suffixes = {".".join(name.split(".")[-depth:]) for name in modules}
        hit = {line.name for line in linears if any(line.name == s or line.name.endswith("." + s) for s in suffixes)}
        if hit == wanted:
            return sorted(suffixes)
    return sorted(wanted)


HEADS = ["classifier", "score"]  # what PEFT itself saves beside the adapter of a classifier


def adapter_config(
    fused: Mapping[str, ModuleAdapter], member: Member, linears: Sequence[Linear], base: str, revision: str | None
) -> dict[str, Any]:
    """PEFT's config of the adapter, made by PEFT itself."""
    from peft import LoraConfig, TaskType

    first = next(iter(fused.values()))
    ranks = {name: m.rank for name, m in fused.items() if m.rank != first.rank}
    alphas = {name: _number(m.alpha) for name, m in fused.items() if m.alpha != first.alpha}
    config = LoraConfig(
        r=first.rank,
        lora_alpha=_number(first.alpha),
        target_modules=target_modules(list(fused), linears),
        lora_dropout=member.dropout,
        bias="none",
        task_type=TaskType.SEQ_CLS if member.head else TaskType.CAUSAL_LM,
        modules_to_save=HEADS if member.head else None,
        inference_mode=True,
        base_model_name_or_path=base,
        revision=revision,
        rank_pattern=ranks,
        alpha_pattern=alphas,
        fan_in_fan_out=False,
        use_rslora=member.rslora,
    )
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}


def _number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


def save_adapter(
    folder: Path,
    pairs: Pairs,
    member: Member,
    linears: Sequence[Linear],
    *,
    base: str,
    revision: str | None,
    head: torch.Tensor | None = None,
) -> str:
    """Write the two files atomically, the classification ``head [C, d]`` with them; returns the SHA-256 of the weights file."""
    fused = fuse(pairs, member)
    tensors: dict[str, torch.Tensor] = {}
    for name, module in fused.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = module.a.contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = module.b.contiguous()
    if head is not None:
        tensors[f"{PREFIX}score.weight"] = head.cpu().contiguous()
    weights = folder / "adapter_model.safetensors"
    with replacing(weights) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    write_json(folder / "adapter_config.json", adapter_config(fused, member, linears, base, revision))
    return file_sha256(weights)


def read_adapter(folder: Path) -> dict[str, ModuleAdapter]:
    """Module name → adapter, from PEFT's files."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "adapter_model.safetensors")
    out: dict[str, ModuleAdapter] = {}
    for key in sorted(tensors):
        if not key.endswith(".lora_A.weight"):
            continue
        name = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        a, b = tensors[key], tensors[key.replace(".lora_A.", ".lora_B.")]
        alpha = float(config["alpha_pattern"].get(name, config["lora_alpha"]))
        out[name] = ModuleAdapter(a, b, a.shape[0], alpha, bool(config.get("use_rslora", False)))
    return out
