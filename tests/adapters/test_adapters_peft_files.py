"""A member's adapter as PEFT's files: the same ΔW in PEFT's own hands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from loracle.adapters.cohort import attach, detach
from loracle.adapters.peft_files import read_adapter, save_adapter, target_modules
from loracle.models.linears import Linear
from loracle.store.files import file_sha256
from tests.engine import RunSpec, base, member


def saved(folder: Path, targets: Any, rank: int = 3, alpha: float = 5.0) -> tuple[Any, dict[str, torch.Tensor]]:
    """(the loaded base, module → ΔW ``[d_out, d_in]`` float64) after saving a random adapter to ``folder``."""
    loaded = base()
    me = member(loaded, RunSpec("me", rank=rank, alpha=alpha, targets=targets))
    other = member(loaded, RunSpec("other", rank=8, seed=4))
    cohort = attach(loaded.model, [other, me], torch.float32, loaded.device)
    generator = torch.Generator().manual_seed(0)
    deltas: dict[str, torch.Tensor] = {}
    for site, (a, b) in cohort.adapter(1).items():
        b.copy_(torch.randn(b.shape, generator=generator))
        delta = deltas.setdefault(site.module, torch.zeros(site.d_out, site.d_in, dtype=torch.float64))
        delta[site.start : site.stop] += alpha / rank * b.double() @ a.double()
    sha = save_adapter(folder, cohort.adapter(1), me, loaded.linears, base=loaded.source.resolved, revision=None)
    assert sha == file_sha256(folder / "adapter_model.safetensors")
    detach(loaded.model, cohort)
    return loaded, deltas


@pytest.mark.parametrize(
    "targets", ["all-linear", ("q", "v"), ("c_attn",), ("q", "v", "c_proj"), ("k", "up"), ("mlp.c_proj",)]
)
def test_delta_w_is_that_of_the_peft_loaded_module(tmp_path: Path, targets: Any) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    loaded, deltas = saved(tmp_path, targets)
    plain = AutoModelForCausalLM.from_pretrained(loaded.source.resolved, dtype=torch.float64)
    peft = PeftModel.from_pretrained(plain, tmp_path, autocast_adapter_dtype=False).to(torch.float64)
    adapted = {
        name.removeprefix("base_model.model."): module
        for name, module in peft.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert adapted.keys() == deltas.keys()
    for name, module in adapted.items():
        theirs = module.get_delta_weight("default").T  # Conv1D: [d_in, d_out]
        assert (theirs - deltas[name]).abs().max() < 1e-12, name
    ours = read_adapter(tmp_path)
    for name, own in ours.items():
        delta = own.alpha / own.rank * own.b.double() @ own.a.double()
        assert (delta - deltas[name]).abs().max() < 1e-12


def test_slices_with_whole_layers_need_patterns(tmp_path: Path) -> None:
    saved(tmp_path, ("q", "v", "c_proj"), rank=3, alpha=5.0)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["c_attn", "c_proj"]
    ranks = {**dict.fromkeys(read_adapter(tmp_path), config["r"]), **config["rank_pattern"]}
    alphas = {**dict.fromkeys(read_adapter(tmp_path), config["lora_alpha"]), **config["alpha_pattern"]}
    for name in ranks:
        slices = 2 if name.endswith("c_attn") else 1
        assert (ranks[name], alphas[name]) == (3 * slices, 5 * slices), name


def test_config_reads_as_people_write_it(tmp_path: Path) -> None:
    loaded, _ = saved(tmp_path, ("q", "v"))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["c_attn"]
    assert (config["r"], config["lora_alpha"]) == (6, 10)
    assert not config["rank_pattern"]
    assert not config["alpha_pattern"]
    assert config["task_type"] == "CAUSAL_LM"
    assert config["base_model_name_or_path"] == loaded.source.resolved
    assert (tmp_path / "adapter_model.safetensors").stat().st_mode & 0o777 == 0o644


def test_target_module_suffixes_name_exactly_these() -> None:
    names = [f"h.{i}.{leaf}" for i in range(2) for leaf in ("attn.c_proj", "mlp.c_proj", "mlp.c_fc")]
    linears = [Linear(name, 0, "x", 2, 2) for name in names]
    assert target_modules(["h.0.mlp.c_fc", "h.1.mlp.c_fc"], linears) == ["c_fc"]
    assert target_modules(["h.0.mlp.c_proj", "h.1.mlp.c_proj"], linears) == ["mlp.c_proj"]
    assert target_modules(["h.1.mlp.c_fc"], linears) == ["h.1.mlp.c_fc"]
