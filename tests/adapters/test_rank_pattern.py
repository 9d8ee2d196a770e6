"""rank_pattern: ranks that differ by layer within a member; the engine's invariants, and PEFT's own meaning of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from loracle.adapters.cohort import attach, detach, initial_a
from loracle.adapters.peft_files import read_adapter, save_adapter
from loracle.adapters.ranks import site_sizes, trainable_params
from loracle.adapters.targets import resolve_targets
from loracle.base.errors import SpecError
from loracle.models.linears import Linear
from loracle.spec.study import Adapter, Cell, Task, Train
from tests.conftest import text_rows
from tests.engine import RunSpec, base, make_fit, member, train, worst

GPT2 = [
    Linear(f"h.{i}.{leaf}", i, kind, 8, d_out, {k: (8 * j, 8 * j + 8) for j, k in enumerate(slices)})
    for i in range(2)
    for leaf, kind, d_out, slices in (("attn.c_attn", "qkv", 24, "qkv"), ("attn.c_proj", "o", 8, "o"))
]
PATTERN = {"attn.c_attn": 2, "h.1.mlp.c_fc": 9, "mlp.c_proj": 1, "h.[01].attn.c_proj": 6}


def sizes(targets: Any, **settings: Any) -> dict[str, tuple[int, float]]:
    found = site_sizes(Adapter(**settings), resolve_targets(GPT2, targets))
    return {site.name: (size.rank, size.alpha) for site, size in found.items()}


# -- which layer has which rank ---------------------------------------------------------------------------------------


def test_patterns_fit_the_end_of_a_name_and_the_rest_keeps_the_rank() -> None:
    found = sizes("all-linear", rank=4, alpha=8.0, rank_pattern={"attn.c_attn": 2, "h.1.*proj": 8})
    assert found == {
        "h.0.attn.c_attn": (2, 8.0),
        "h.0.attn.c_proj": (4, 8.0),
        "h.1.attn.c_attn": (2, 8.0),
        "h.1.attn.c_proj": (8, 8.0),
    }


def test_alpha_2r_follows_each_layers_rank() -> None:
    found = sizes(("c_proj",), rank=4, alpha="2r", rank_pattern={"h.1.attn.c_proj": 8})
    assert found == {"h.0.attn.c_proj": (4, 8.0), "h.1.attn.c_proj": (8, 16.0)}


def test_a_slice_is_named_by_its_layer_and_kind() -> None:
    found = sizes(("q", "v"), rank=4, alpha="2r", rank_pattern={"h.0.attn.c_attn.v": 7, "h.1.attn.c_attn": 3})
    assert [rank for rank, _ in found.values()] == [4, 7, 3, 3]
    assert list(found)[:2] == ["h.0.attn.c_attn.q", "h.0.attn.c_attn.v"]


def test_the_count_of_parameters_is_exact() -> None:
    sites = resolve_targets(GPT2, ("q", "c_proj"))
    adapter = Adapter(rank=2, alpha="2r", rank_pattern={"h.0.attn.c_proj": 5})
    assert trainable_params(site_sizes(adapter, sites)) == 16 * (2 + 5 + 2 + 2)


@pytest.mark.parametrize(
    ("targets", "settings", "says"),
    [
        (("c_proj",), {"rank_pattern": {"c_attn": 2}}, r"adapter\.rank_pattern: 'c_attn' fits none of the adapted layers; names"),
        (("c_proj",), {"alpha_pattern": {"mlp": 2.0}, "alpha": 8.0}, r"adapter\.alpha_pattern: 'mlp' fits none"),
        (
            ("c_proj",),
            {"rank_pattern": {"c_proj": 2, "h.0.*": 3}},
            r"adapter\.rank_pattern: h\.0\.attn\.c_proj is 2 by 'c_proj' and 3 by 'h\.0\.\*': name it once",
        ),
        (("c_proj",), {"rank_pattern": {"h.1.*": 9}}, r"adapter\.rank_pattern\.h\.1\.\*: 9 is above the width 8 of h\.1\.attn\.c_proj"),
        (("q", "v"), {"rank_pattern": {"c_attn.q": 2}, "alpha": 8.0}, r"adapter\.rank_pattern: .*which has one scale in PEFT, not 4 and 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(targets: Any, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        sizes(targets, **{"rank": 8, "alpha": "2r", **settings})


# -- the engine -------------------------------------------------------------------------------------------------------

CALM = Train(learning_rate=2e-4)
ME = RunSpec("me", rank=4, per_rank="2r", dropout=0.1, pattern=PATTERN, train=CALM)
OTHERS = [
    RunSpec("wide", rank=16, alpha=32, seed=7, dropout=0.2, train=Train(learning_rate=1e-3)),
    RunSpec("turned", rank=8, alpha=4, seed=3, train=CALM, pattern={"mlp.c_proj": 12, "c_attn": 1}),
    RunSpec("slices", targets=("q", "v"), per_rank="2r", seed=1, train=CALM, pattern={"h.0.attn.c_attn.q": 7}),
]


@pytest.mark.invariant
def test_invariant_1_cohort_invariance_fp64_with_ranks_by_layer() -> None:
    rows, steps = text_rows(40), 15
    loaded = base(dtype="float64")
    shared_losses, together = train(loaded, [OTHERS[0], ME, *OTHERS[1:]], rows, steps, batch_size=2)
    for i, spec in ((1, ME), (2, OTHERS[1]), (3, OTHERS[2])):
        alone_losses, alone = train(loaded, [spec], rows, steps, batch_size=2)
        assert (alone_losses[:, 0] - shared_losses[:, i]).abs().max() < 1e-8
        assert worst(alone[0], together[i]) < 1e-5
    ranks = {site.module.removeprefix("transformer."): a.shape[0] for site, (a, _) in together[1].items()}
    assert (ranks["h.0.attn.c_attn"], ranks["h.1.mlp.c_fc"], ranks["h.0.mlp.c_fc"]) == (2, 9, 4)
    assert (ranks["h.1.attn.c_proj"], ranks["h.2.attn.c_proj"]) == (6, 4)


@pytest.mark.invariant
def test_invariant_1_padding_of_a_smaller_layer_stays_exactly_zero() -> None:
    loaded = base()
    fit, cohort = make_fit(loaded, [ME, OTHERS[1]], text_rows(12), 3, batch_size=2)
    for step in range(3):
        fit.step(step, fit.batches(step))
    layer = cohort.layers["transformer.h.0.attn.c_attn"]
    a, b = layer.A[0].detach(), layer.B[0].detach()
    assert a.shape[1] == 2
    assert bool(b[0].any())
    assert not a[1, 1:].any()
    assert not b[1, :, 1:].any()
    assert layer.scales[0].flatten().tolist() == [2.0, 4.0]  # 2r, and a fixed alpha / the layer's own rank
    assert torch.equal(
        initial_a(42, layer.sites[0], 2), initial_a(42, layer.sites[0], 4)[:2]
    )  # as a smaller uniform rank
    detach(loaded.model, cohort)


@pytest.mark.invariant
@pytest.mark.parametrize("alpha", [{"alpha": 8.0}, {"per_rank": "2r"}])
def test_invariant_2_agreement_with_pefts_rank_pattern(alpha: dict[str, Any], tmp_path: Path) -> None:
    """Plain PEFT, given the study's own pattern, follows a cohort of one at every step."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    pattern = {"attn.c_attn": 2, "h.1.mlp.c_fc": 9}
    settings = Train(learning_rate=2e-4, max_grad_norm=None, weight_decay=0.0)
    spec = RunSpec("me", rank=4, pattern=pattern, train=settings, **alpha)
    rows, steps = text_rows(30), 10
    loaded = base(dtype="float64")
    fit, cohort = make_fit(loaded, [spec], rows, steps)
    start = cohort.adapter(0)
    plain = AutoModelForCausalLM.from_pretrained(loaded.source.resolved, dtype=torch.float64)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["c_attn", "c_proj", "c_fc"],
        rank_pattern=pattern,
        alpha_pattern={k: 2 * r for k, r in pattern.items()} if "per_rank" in alpha else {},
        fan_in_fan_out=True,
    )
    peft: Any = get_peft_model(plain, config, autocast_adapter_dtype=False).to(torch.float64)
    for site, (a, _) in start.items():
        theirs = peft.base_model.model.get_submodule(site.module).lora_A["default"].weight
        assert theirs.shape == a.shape, site
        theirs.data.copy_(a)
    trained = [p for p in peft.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == cohort.members[0].trainable_params
    optimizer = torch.optim.AdamW(trained, lr=2e-4, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1 - s / steps)
    for step in range(steps):
        batch = [rows[i] for i in fit.orders[0].take(step * 4, 4)]
        count = sum(sum(label != -100 for label in r.labels[1:]) for r in batch)
        total = 0.0
        for row in batch:
            logits = peft(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(row.labels[1:]), reduction="sum") / count
            loss.backward()
            total += float(loss.detach())
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        fit.step(step, fit.batches(step))
        assert abs(float(fit.losses[step, 0]) - total) < 1e-8, step
    for site, (a, b) in cohort.adapter(0).items():
        module = peft.base_model.model.get_submodule(site.module)
        assert (module.lora_A["default"].weight - a).abs().max() < 1e-5
        assert (module.lora_B["default"].weight - b).abs().max() < 1e-5
    detach(loaded.model, cohort)


# -- as PEFT's files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        RunSpec("fixed", rank=3, alpha=5.0, pattern=PATTERN),
        RunSpec("kept", rank=3, per_rank="2r", pattern=PATTERN),
        RunSpec("slices", rank=3, targets=("q", "v", "up"), per_rank="2r", pattern={"h.0.attn.c_attn.q": 7, "c_fc": 2}),
    ],
    ids=lambda spec: spec.name,
)
def test_plain_peft_loads_the_saved_adapter_with_the_same_delta_w(spec: RunSpec, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    loaded = base()
    me = member(loaded, spec)
    cohort = attach(loaded.model, [member(loaded, RunSpec("other", rank=8)), me], torch.float32, loaded.device)
    generator = torch.Generator().manual_seed(0)
    deltas: dict[str, torch.Tensor] = {}
    for site, (a, b) in cohort.adapter(1).items():
        b.copy_(torch.randn(b.shape, generator=generator))
        delta = deltas.setdefault(site.module, torch.zeros(site.d_out, site.d_in, dtype=torch.float64))
        size = me.size(site)
        delta[site.start : site.stop] += size.alpha / size.rank * b.double() @ a.double()
    save_adapter(tmp_path, cohort.adapter(1), me, loaded.linears, base=loaded.source.resolved, revision=None)
    detach(loaded.model, cohort)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["rank_pattern"]
    plain = AutoModelForCausalLM.from_pretrained(loaded.source.resolved, dtype=torch.float64)
    peft = PeftModel.from_pretrained(plain, tmp_path, autocast_adapter_dtype=False).to(torch.float64)
    adapted = {
        n.removeprefix("base_model.model."): m for n, m in peft.named_modules() if hasattr(m, "get_delta_weight")
    }
    assert adapted.keys() == deltas.keys()
    for name, module in adapted.items():
        assert (module.get_delta_weight("default").T - deltas[name]).abs().max() < 1e-11, name
    for name, own in read_adapter(tmp_path).items():
        assert (own.scale * own.b.double() @ own.a.double() - deltas[name]).abs().max() < 1e-11


def test_a_lora_that_trains_alone_has_the_same_ranks() -> None:
    """Beside modules that are trained in full PEFT trains it: by full names, so that its own way of matching is no matter."""
    from loracle.adapters.methods import peft_config

    loaded = base()
    adapter = Adapter(
        rank=4, alpha="2r", targets=("c_attn", "c_fc"), rank_pattern={"h.1.*": 9}, modules_to_save=("wpe",)
    )
    cell = Cell(task=Task(data="x"), adapter=adapter)
    config = peft_config(cell, loaded.model, loaded.linears, 0)
    assert config.rank_pattern["transformer.h.1.attn.c_attn"] == 9
    assert config.alpha_pattern["transformer.h.1.mlp.c_fc"] == 18
    assert config.rank_pattern["transformer.h.0.attn.c_attn"] == 4
