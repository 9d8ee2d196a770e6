"""Each architecture of the linear map: its slices are the projections they name, its head path is the model's own, and PEFT
reloads what was saved. Tiny random models from configs, float64."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from loracle.adapters.cohort import Cohort, Member, attach, detach
from loracle.adapters.forward import backbone, head_logits
from loracle.adapters.peft_files import read_adapter, save_adapter
from loracle.adapters.targets import resolve_targets
from loracle.base.errors import ModelError
from loracle.models.linears import check_weights, linear_map, take_rows
from loracle.models.load import LoadedBase, meta_model
from tests.engine import base

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 48}
LLAMA = {**SMALL, "intermediate_size": 24, "num_key_value_heads": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt_neox": {**SMALL, "intermediate_size": 24},
    "opt": {**SMALL, "ffn_dim": 24, "word_embed_proj_dim": 16},
    "opt/350m": {**SMALL, "ffn_dim": 24, "word_embed_proj_dim": 8, "do_layer_norm_before": False},
    "phi3": {**LLAMA, "pad_token_id": 0},
    "gemma": {**LLAMA, "head_dim": 6},
    "gemma2": {**LLAMA, "head_dim": 6, "final_logit_softcapping": 0.05, "query_pre_attn_scalar": 6},
    "gemma3_text": {**LLAMA, "head_dim": 6, "query_pre_attn_scalar": 6},
    "gpt2": {**SMALL, "n_positions": 64},
}
LOGICAL = dict.fromkeys(CONFIGS, ("q", "k", "v", "o", "up", "gate", "down"))
LOGICAL |= dict.fromkeys(("gpt_neox", "opt", "opt/350m", "gpt2"), ("q", "k", "v", "o", "up", "down"))
TOKENS = torch.randint(2, 48, (2, 11), generator=torch.Generator().manual_seed(1))


def config_of(family: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(family.partition("/")[0], **CONFIGS[family])


def tiny(folder: Path, family: str) -> LoadedBase:
    """A random model, saved to ``folder`` and loaded as a study loads it, in float64."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(family))
    with torch.no_grad():  # initial weights of 0.02 would leave every difference below notice
        for name, parameter in model.named_parameters():
            parameter.mul_(10.0 if parameter.ndim > 1 and "embed" not in name else 1.0)
    model.save_pretrained(folder)
    return base(folder, dtype="float64")


def test_attention_is_sdpa_where_the_architecture_has_it(tmp_path: Path) -> None:
    found = {family: tiny(tmp_path / family, family).model.config._attn_implementation for family in ("gemma2", "gpt2")}
    assert found == {"gemma2": "eager", "gpt2": "sdpa"}


def attached(loaded: LoadedBase, targets: Any, rslora: bool = False) -> Cohort:
    """A cohort of two with random adapters on ``targets`` (member 1) and on everything (member 0)."""
    sites = [tuple(resolve_targets(loaded.linears, t)) for t in ("all-linear", targets)]
    members = [
        Member("all", sites[0], 4, 8.0, init_seed=1),
        Member("me", sites[1], 3, 6.0, init_seed=2, rslora=rslora),
    ]
    cohort = attach(loaded.model, members, torch.float64, loaded.device)
    generator = torch.Generator().manual_seed(3)
    for k in range(2):
        for _, b in cohort.adapter(k).values():
            b.copy_(torch.randn(b.shape, generator=generator, dtype=b.dtype) * 0.2)
    return cohort


def logits_of(loaded: LoadedBase, tokens: torch.Tensor) -> torch.Tensor:
    hidden = backbone(loaded.model)(input_ids=tokens, use_cache=False).last_hidden_state
    return head_logits(loaded.model, hidden)


@pytest.mark.parametrize("family", CONFIGS)
def test_the_map_has_all_logical_names(family: str) -> None:
    linears = linear_map(meta_model(config_of(family)), family.partition("/")[0])
    for layer in (0, 1):
        names = {name for x in linears if x.layer == layer for name in x.slices}
        assert names == set(LOGICAL[family])
    for x in (linear for linear in linears if linear.slices):  # together its slices are the layer, each row once
        rows = torch.cat([take_rows(torch.arange(x.d_out)[:, None], span)[:, 0] for span in x.slices.values()])
        assert rows.sort().values.tolist() == list(range(x.d_out)), x.name


def projections(loaded: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, ...]]:
    """The (q, k, v) that each attention layer works on (after rotation), by watching eager attention."""
    import sys

    seen: list[tuple[torch.Tensor, ...]] = []
    module = sys.modules[type(loaded.model).__module__]
    eager = module.eager_attention_forward

    def watch(layer: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((q, k, v))
        return eager(layer, q, k, v, *args, **kwargs)

    monkeypatch.setattr(module, "eager_attention_forward", watch)
    loaded.model.set_attn_implementation("eager")
    with torch.no_grad():
        loaded.model(input_ids=TOKENS, use_cache=False)
    monkeypatch.undo()
    return seen


@pytest.mark.parametrize("target", ["q", "k", "v"])
@pytest.mark.parametrize("family", CONFIGS)
def test_a_slice_changes_the_projection_it_names_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, target: str
) -> None:
    loaded = tiny(tmp_path, family)
    before = projections(loaded, monkeypatch)[0]
    sites = tuple(s for s in resolve_targets(loaded.linears, [target]) if s.layer == 0)
    cohort = attach(loaded.model, [Member("me", sites, 2, 4.0)], torch.float64, loaded.device)
    (_, b), *rest = cohort.adapter(0).values()
    assert not rest
    b.normal_(generator=torch.Generator().manual_seed(0))
    after = projections(loaded, monkeypatch)[0]
    for kind, old, new in zip("qkv", before, after, strict=True):
        moved = (old - new).abs().amax(dim=(0, 2, 3))  # every head of it moves
        assert (moved > 1e-3).all() if kind == target else (moved == 0).all(), kind


@pytest.mark.parametrize("family", CONFIGS)
def test_backbone_and_head_are_the_models_own_logits(tmp_path: Path, family: str) -> None:
    loaded = tiny(tmp_path, family)
    with torch.no_grad():
        whole = loaded.model(input_ids=TOKENS, use_cache=False).logits
        ours = logits_of(loaded, TOKENS)
    assert whole.std() > 1e-3
    assert torch.equal(ours, whole)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("targets", [("q", "v"), ("q", "k", "o", "up", "down"), "all-linear"], ids=str)
@pytest.mark.parametrize("family", CONFIGS)
def test_peft_reloads_the_members_logits(tmp_path: Path, family: str, targets: Any, rslora: bool) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    loaded = tiny(tmp_path / "base", family)
    with torch.no_grad():
        plain = logits_of(loaded, TOKENS)
        cohort = attached(loaded, targets, rslora)
        ours = logits_of(loaded, torch.cat([TOKENS, TOKENS]))[2:]
        cohort.state.alone = 1
        alone = logits_of(loaded, TOKENS)
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", cohort.adapter(1), cohort.members[1], loaded.linears, base="base", revision=None)
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32).to(torch.float64)
    peft = PeftModel.from_pretrained(other, tmp_path / "adapter", autocast_adapter_dtype=False).to(torch.float64).eval()
    with torch.no_grad():
        theirs = peft(input_ids=TOKENS, use_cache=False).logits
    spread = (theirs - plain).abs().max()
    assert spread > 1e-3
    # Gemma and the rotary embeddings compute parts in float32: a rounding may fall to the other side there.
    assert (ours - theirs).abs().max() < 1e-5 * spread
    assert (alone - theirs).abs().max() < 1e-5 * spread
    found = read_adapter(tmp_path / "adapter")
    deltas: dict[str, torch.Tensor] = {}
    for site, (a, b) in cohort.adapter(1).items():
        delta = deltas.setdefault(site.module, torch.zeros(site.d_out, site.d_in, dtype=torch.float64))
        delta += site.spread((cohort.members[1].scale(site) * b @ a).T).T
    for name, module in found.items():
        assert (module.scale * module.b @ module.a - deltas[name]).abs().max() < 1e-12
    detach(loaded.model, cohort)


@pytest.mark.parametrize("targets", [("q", "v"), ("q", "k", "v", "o", "up", "down")], ids=str)
def test_gradients_of_interleaved_rows(tmp_path: Path, targets: Any) -> None:
    """The fused operation's gradients against autograd's own over the same layer."""
    loaded = tiny(tmp_path, "gpt_neox")
    cohort = attached(loaded, targets)
    layer = next(x for name, x in cohort.layers.items() if name.endswith("query_key_value"))
    x = torch.randn(2, 5, layer.sites[0].d_in, dtype=torch.float64, requires_grad=True)
    weights = [w for pair in zip(layer.A, layer.B, strict=True) for w in pair]
    weight = torch.randn(2, 5, layer.sites[0].d_out, dtype=torch.float64)
    fused, by_autograd = layer(x), layer._by_autograd(x, None)
    assert (fused - by_autograd).abs().max() < 1e-12
    ours = torch.autograd.grad((fused * weight).sum(), [x, *weights])
    theirs = torch.autograd.grad((by_autograd * weight).sum(), [x, *weights])
    for one, two in zip(ours, theirs, strict=True):
        assert (one - two).abs().max() < 1e-11


def test_the_scale_of_rslora_is_exported_as_pefts(tmp_path: Path) -> None:
    """Slices fused with whole layers beside them: PEFT's own scaling of every module is the member's."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    loaded = tiny(tmp_path / "base", "gpt2")
    cohort = attached(loaded, ("q", "v", "o"), rslora=True)
    site = cohort.members[1].sites[0]
    assert cohort.members[1].scale(site) == 6.0 / 3**0.5
    assert replace(cohort.members[1], rslora=False).scale(site) == 2.0
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", cohort.adapter(1), cohort.members[1], loaded.linears, base="base", revision=None)
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    peft = PeftModel.from_pretrained(other, tmp_path / "adapter")
    assert peft.peft_config["default"].use_rslora
    scales = [m.scaling["default"] for m in peft.modules() if hasattr(m, "lora_A")]  # type: ignore[union-attr, index]
    assert scales == pytest.approx([6.0 / 3**0.5] * 4, rel=1e-15)


def test_similarity_sees_interleaved_slices(tmp_path: Path) -> None:
    """By the slices of a run's record, which are JSON: of two adapters on q and v the q's are equal, the v's opposite."""
    from loracle.diagnose.similarity import compare_adapters

    loaded = tiny(tmp_path / "base", "gpt_neox")
    cohort = attached(loaded, ("q", "v"))
    assert {site.width for site in cohort.members[1].sites} == {16}
    assert cohort.members[1].sites[0].key == "gpt_neox.layers.0.attention.query_key_value[0:4 of 12]"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        pairs = cohort.adapter(1)
        save_adapter(tmp_path / name, pairs, cohort.members[1], loaded.linears, base="base", revision=None)
        for site, (_, b) in pairs.items():
            b.mul_(-1.0 if site.kind == "v" else 1.0)
    modules = {x.name: {"layer": x.layer, "slices": x.slices} for x in loaded.linears}
    found = compare_adapters(tmp_path / "one", tmp_path / "two", json.loads(json.dumps(modules)))
    rows = [(row["layer"], row["kind"], row["cosine"]) for row in found]
    assert rows == [(i, kind, pytest.approx(cosine)) for i in (0, 1) for kind, cosine in (("q", 1.0), ("v", -1.0))]


def test_published_gpt_neox_weights_call_the_head_otherwise() -> None:
    model = meta_model(config_of("gpt_neox"))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    shapes["embed_out.weight"] = shapes.pop("lm_head.weight")
    check_weights(model, shapes, "here")
    del shapes["embed_out.weight"]
    with pytest.raises(ModelError, match=r"here: the weights lack lm_head\.weight"):
        check_weights(model, shapes, "here")
