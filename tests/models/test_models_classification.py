"""A base as a sequence classifier: its head is apart, everything else is the language model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loracle.base.errors import ModelError
from loracle.models.linears import linear_map
from loracle.models.load import LoadedBase, load_base, meta_model
from loracle.models.source import find, load_config
from loracle.spec.study import Cell, Task
from tests.engine import tiny_llama

LABELS = ("card lost", "refund", "top up")


def classifier(model: str | Path, precision: str = "fp32", **options: Any) -> LoadedBase:
    cell = Cell(task=Task(data="x", type="classification"), precision=precision)
    return load_base(find(str(model)), cell, torch.device("cpu"), **{"labels": LABELS, **options})


def generator(model: str | Path, precision: str = "fp32") -> LoadedBase:
    return load_base(find(str(model)), Cell(task=Task(data="x"), precision=precision), torch.device("cpu"))


@pytest.fixture(scope="module", params=["gpt2-demo", "llama"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The built-in base, and a tiny Llama with a language-model head of its own."""
    if request.param != "llama":
        return str(request.param)
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("precision", ["fp32", "nf4", "int8"])
def test_the_backbone_is_the_language_models(model: str, precision: str, capfd: pytest.CaptureFixture[str]) -> None:
    ours, plain = classifier(model, precision), generator(model, precision)
    assert "MISSING" not in capfd.readouterr().err
    assert ours.linears == plain.linears
    assert ours.assignment == plain.assignment
    assert ours.census == plain.census
    states = {name: x for name, x in plain.model.state_dict().items() if "lm_head" not in name}
    found = {name: x for name, x in ours.model.state_dict().items() if not name.startswith("score")}
    assert states.keys() == found.keys()
    assert all(torch.equal(found[name], states[name]) for name in states)


def test_the_head_is_apart(model: str) -> None:
    quantized = classifier(model, "nf4")
    assert type(quantized.model.score) is torch.nn.Linear
    assert quantized.model.score.weight.shape[0] == 3
    assert quantized.model.score.weight.dtype == torch.float32
    assert not any("score" in x.name for x in quantized.linears)
    assert quantized.model.config.id2label == dict(enumerate(LABELS))
    assert quantized.model.config.label2id == {label: i for i, label in enumerate(LABELS)}


def test_parameters_are_the_backbones(model: str) -> None:
    plain = generator(model)
    head = 0 if plain.model.config.tie_word_embeddings else plain.model.lm_head.weight.numel()
    assert classifier(model).base_params == classifier(model, "nf4").base_params == plain.base_params - head


def test_the_heads_start_is_fixed_and_leaves_the_generator_alone(model: str) -> None:
    torch.manual_seed(5)
    first = classifier(model).model.score.weight
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))
    assert torch.equal(first, classifier(model).model.score.weight)


def test_shapes_alone(model: str) -> None:
    config = load_config(find(model))
    found = meta_model(config, labels=7)
    assert found.score.weight.shape[0] == 7  # type: ignore[union-attr, index]
    plain = meta_model(config)
    assert linear_map(found, config.model_type) == linear_map(plain, config.model_type)


def test_another_classifiers_head_is_not_taken_over(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(find("gpt2-demo").resolved, num_labels=9)
    model.save_pretrained(tmp_path)
    assert classifier(tmp_path).model.score.weight.shape[0] == 3


def test_any_other_weight_must_be_there(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = find("gpt2-demo")
    assert source.folder is not None
    (tmp_path / "config.json").write_bytes((source.folder / "config.json").read_bytes())
    weights = load_file(source.weights[0])
    name = next(n for n in weights if n.endswith("h.2.mlp.c_fc.weight"))
    save_file({n: x for n, x in weights.items() if n != name}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"the weights lack transformer\.h\.2\.mlp\.c_fc\.weight"):
        classifier(tmp_path)


def test_labels_are_needed() -> None:
    with pytest.raises(ModelError, match="needs its labels"):
        classifier("gpt2-demo", labels=())
