"""Bases that come quantized by bitsandbytes: used as they are, the same as quantizing the plain folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from loracle.base.errors import ModelError, SpecError
from loracle.evaluate.reload import load_plain, recipe
from loracle.models.census import weight_bytes
from loracle.models.linears import check_weights, linear_map
from loracle.models.load import load_base, meta_model
from loracle.models.precision import DequantizedLinear, deploy
from loracle.models.prequantized import assign_base, held
from loracle.models.source import find, load_config, weight_shapes
from loracle.spec.study import Cell, Task
from tests.conftest import text_rows
from tests.engine import RunSpec, base, tiny_llama, train, worst

KINDS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.bfloat16},
    "int8": {"load_in_8bit": True},
}
DOUBLE = {"nf4": True, "fp4": False, "int8": None}
CPU = torch.device("cpu")
Maker = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Makes a folder as people do: loaded quantized by Transformers, saved."""
    made: dict[str, Path] = {}

    def folder(kind: str, model: str = "gpt2-demo", **extra: Any) -> Path:
        from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

        key = f"{kind}{model}{extra}"
        if key not in made:
            source = find(model).resolved
            quantization = BitsAndBytesConfig(**KINDS[kind], **extra)
            loaded = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, quantization_config=quantization)
            made[key] = tmp_path_factory.mktemp(kind) / "base"
            loaded.save_pretrained(made[key])
            if model == "gpt2-demo":
                AutoTokenizer.from_pretrained(source).save_pretrained(made[key])
        return made[key]

    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


def cell(kind: str, **settings: Any) -> Cell:
    return Cell(**{"task": Task(data="x"), "precision": kind, "double_quant": DOUBLE[kind], **settings})


@pytest.mark.parametrize("kind", KINDS)
def test_training_over_it_is_training_over_the_plain_folder(make: Maker, kind: str) -> None:
    rows = text_rows(8)
    specs = [RunSpec("a", targets=("q", "v")), RunSpec("b", rank=2, seed=43)][: 1 if kind == "int8" else 2]
    ready = base(make(kind), kind, double_quant=DOUBLE[kind])
    plain = base("gpt2-demo", kind, double_quant=DOUBLE[kind])
    assert (ready.assignment, ready.linears, ready.census) == (plain.assignment, plain.linears, plain.census)
    assert (ready.storage, ready.base_params, ready.compute_dtype) == (plain.storage, plain.base_params, torch.float32)
    one, two = train(ready, specs, rows, 3), train(plain, specs, rows, 3)
    assert torch.equal(one[0], two[0])
    assert all(worst(a, b) == 0 for a, b in zip(one[1], two[1], strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_packed_weights_are_the_folders(make: Maker, kind: str) -> None:
    from safetensors.torch import load_file

    stored = load_file(make(kind) / "model.safetensors")
    loaded = base(make(kind), kind, double_quant=DOUBLE[kind], storage="quantized")
    for name in loaded.assignment:
        assert torch.equal(loaded.model.get_submodule(name).weight.data, stored[f"{name}.weight"])


def test_it_can_be_deployed(make: Maker) -> None:
    ready = base(make("nf4"), "nf4")
    name = next(iter(ready.assignment))
    assert type(ready.model.get_submodule(name)) is DequantizedLinear
    tokens = torch.arange(20).unsqueeze(0)
    with torch.no_grad():
        found = deploy(ready.model)(input_ids=tokens).logits
        expected = deploy(base(precision="nf4").model)(input_ids=tokens).logits
    assert type(ready.model.get_submodule(name)).__name__ == "Linear4bit"
    assert torch.equal(found, expected)


def test_the_skip_list_is_respected(make: Maker, llama: str) -> None:
    names = ["lm_head", "model.layers.1.mlp", "layers.0.self_attn.q_proj"]
    folder = make("nf4", llama, llm_int8_skip_modules=names)
    ready = base(folder, "nf4")
    kept = {name for name, precision in ready.assignment.items() if precision == "fp32"}
    assert kept == {f"model.layers.1.mlp.{x}_proj" for x in ("gate", "up", "down")} | {
        "model.layers.0.self_attn.q_proj"
    }
    config = load_config(find(str(folder)))
    assert assign_base(config, cell("nf4"), ready.linears) == ready.assignment  # from the config alone
    assert 0 < ready.census["quantized_share"] < 1
    classifier = Cell(task=Task(data="x", type="classification"), precision="nf4")
    loaded = load_base(find(str(folder)), classifier, CPU, labels=("a", "b"))
    assert type(loaded.model.score) is torch.nn.Linear
    assert loaded.assignment == ready.assignment
    assert "skip list" in str(recipe(loaded, classifier).why)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (
            "nf4",
            {"precision": "bf16"},
            r"precision: .*holds nf4 weights, double_quant: true: precision can only be that",
        ),
        ("nf4", {"precision": "fp4"}, "precision: .*holds nf4"),
        ("nf4", {"precision": {"default": "nf4", "c_attn": "bf16"}}, "precision: .*holds nf4"),
        ("nf4", {"double_quant": False}, r"double_quant: .*holds nf4 weights, double_quant: true \(precision: nf4\)"),
        ("nf4", {"block_size": 128}, "block_size: this base comes quantized in blocks of 64"),
        ("fp4", {"double_quant": True}, "double_quant: .*holds fp4 weights, double_quant: false"),
        ("int8", {"precision": "nf4"}, "precision: .*holds int8 weights: precision can only be that"),
    ],
)
def test_anything_else_than_it_holds_is_an_error(
    make: Maker, kind: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        load_base(find(str(make(kind))), cell(kind, **settings), CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_inspecting_reads_the_config_alone(make: Maker, kind: str, llama: str) -> None:
    for model in ("gpt2-demo", llama):
        source = find(str(make(kind, model)))
        config = load_config(source)
        model_ = meta_model(config)
        assert held(config).precision == kind  # type: ignore[union-attr]
        linears = linear_map(model_, config.model_type)
        assert set(assign_base(config, cell(kind), linears).values()) == {kind}
        check_weights(model_, weight_shapes(source), "here")
        shapes = weight_shapes(source)
        name = f"{linears[2].name}.weight"
        with pytest.raises(ModelError, match=rf"here: {name} is \[3, 1\], but config\.json says"):
            check_weights(model_, {**shapes, name: (3, 1)}, "here")


def test_another_quantizers_folder_is_refused(tmp_path: Path) -> None:
    source = find("gpt2-demo")
    assert source.folder is not None
    config = json.loads((source.folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="quantized by gptq"):
        held(load_config(find(str(tmp_path))))


@pytest.mark.parametrize("kind", KINDS)
def test_the_plain_way_to_load_it(make: Maker, kind: str) -> None:
    ready = base(make(kind), kind, double_quant=DOUBLE[kind])
    how = recipe(ready, cell(kind))
    if kind == "fp4":  # its config says bfloat16
        assert not how.plain
        assert "compute in bfloat16 (here float32)" in str(how.why)
        return
    assert how.plain
    # the folder has its own; but quantization_config=None would make Transformers load it as if it were not quantized
    compute = {} if kind == "int8" else {"bnb_4bit_compute_dtype": "float32"}
    assert how.quantization_config == KINDS[kind] | compute
    tokens = torch.arange(20).unsqueeze(0)
    with torch.no_grad():
        plain = load_plain(ready.source, how, CPU)(input_ids=tokens).logits
        ours = deploy(ready.model)(input_ids=tokens).logits
    assert torch.allclose(plain, ours, atol=1e-4)


def test_weights_are_counted_by_their_bytes(make: Maker) -> None:
    ready = base(make("int8"), "int8", double_quant=None)
    name = "transformer.h.0.attn.c_attn"
    assert weight_bytes(ready.model.get_submodule(name)) == (192 * 576, 4 * 576)
    assert replace(ready).held is not None
