"""What to keep finer, and a trained adapter under a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loracle.adapters.cohort import attach, detach
from loracle.adapters.peft_files import save_adapter
from loracle.diagnose.mixing import MATERIAL, candidates, mix
from loracle.diagnose.sensitivity import Sweep, sweep
from loracle.diagnose.trained import wearing
from loracle.diagnose.units import Codec
from loracle.models.linears import Linear
from loracle.models.load import LoadedBase, load_base
from loracle.models.precision import assign
from loracle.models.source import find, load_tokenizer
from loracle.spec.mixing import Mixed
from loracle.spec.study import Cell, Task
from loracle.tasks.collate import pad_token_id
from loracle.tasks.dataset import plain_text
from tests.engine import RunSpec, base, member

LINEARS = [
    Linear(name, i, "o", 10, size) for i, (name, size) in enumerate([("a", 10), ("b", 40), ("c", 20), ("d", 30)])
]
# 1,000 weights: 100, 400, 200, 300
BITS = {"nf4": 4.0, "bf16": 16.0}


def matrices(**costs: float | None) -> list[dict]:
    return [{"module": x.name, "params": x.params, "delta_loss": costs.get(x.name, 0.0)} for x in LINEARS]


def mixed(budget: str) -> Mixed:
    return Mixed(default="nf4", sensitive="bf16", budget=budget)


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        ("100%", [["b"], ["b", "a"], ["b", "a", "c"]]),  # d costs next to nothing
        ("30%", [["a"], ["a", "c"]]),  # b, the worst, has 40% of the weights
        ("8.8 bits", [["b"]]),  # (8.8 - 4) / 12 = 40% of the weights
        ("150B", [["a"]]),  # 100 weights, 12 bits more each
        ("5%", []),
    ],
)
def test_worst_first_within_the_budget(budget: str, kept: list[list[str]]) -> None:
    assert candidates(matrices(a=0.5, b=1.0, c=0.1, d=MATERIAL), LINEARS, mixed(budget), BITS, 1.6) == kept


def test_what_is_not_finite_is_the_worst() -> None:
    assert candidates(matrices(a=0.5, c=None), LINEARS, mixed("30%"), BITS, 1.0) == [["c"], ["c", "a"]]


@pytest.fixture(scope="module")
def demo() -> tuple[LoadedBase, list, int]:
    source = find("gpt2-demo")
    tokenizer = load_tokenizer(source)
    loaded = load_base(source, Cell(task=Task(data="x"), precision="bf16"), torch.device("cpu"))
    return loaded, plain_text(tokenizer, 96)[:4], pad_token_id(tokenizer)


@pytest.fixture(scope="module")
def swept(demo) -> Sweep:
    loaded, rows, pad = demo
    return sweep(loaded, Codec("nf4"), rows, pad, ("matrix", "all"))


def test_the_demos_two_culprits_fit_into_15_percent(demo, swept) -> None:
    loaded, rows, pad = demo
    found = mix(loaded, Codec("nf4"), swept, mixed("15%"), 0.05, rows, pad)
    assert [name.removeprefix("transformer.") for name in found["kept"]] == ["h.1.attn.c_proj", "h.0.mlp.c_proj"]
    assert found["kept_share"] == pytest.approx(0.104, abs=1e-3)
    assert found["needed"]
    assert found["reason"] is None
    assert found["path"][1]["delta_loss"] < 0.4 * found["uniform"]["delta_loss"]
    assert set(assign(found["precision"], loaded.linears).values()) == {"nf4", "bf16"}
    # the figure of the path is that of the model loaded with the block
    cell = Cell(task=Task(data="x"), precision=found["precision"], storage="dequantized")
    whole = load_base(loaded.source, cell, torch.device("cpu"))
    plain = sweep(whole, Codec("fp32"), rows, pad, ("all",))
    assert plain.loss - swept.loss == pytest.approx(found["path"][1]["delta_loss"], abs=2e-4)


def test_kept_in_eight_bits(demo, swept) -> None:
    loaded, rows, pad = demo
    fine = Mixed(default="nf4", sensitive="int8", budget="4.6 bits")
    found = mix(loaded, Codec("nf4"), swept, fine, 0.05, rows, pad)
    assert found["bits_per_weight"] < 4.6
    assert set(found["precision"].values()) == {"nf4", "int8"}
    assert found["path"][-1]["delta_loss"] < 0.5 * found["uniform"]["delta_loss"]


def test_within_the_margin_nothing_is_kept(demo, swept) -> None:
    loaded, rows, pad = demo
    found = mix(loaded, Codec("nf4"), swept, mixed("15%"), 10.0, rows, pad)
    assert (found["needed"], found["kept"], found["precision"]) == (False, [], "nf4")
    assert "within the margin" in found["reason"]


def test_an_adapter_is_worn_as_peft_loads_it(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    loaded = base()
    me = member(loaded, RunSpec("me", rank=3, alpha=5.0, targets=("q", "v", "up")))
    cohort = attach(loaded.model, [me], torch.float32, loaded.device)
    generator = torch.Generator().manual_seed(0)
    for _, b in cohort.adapter(0).values():
        b.copy_(torch.randn(b.shape, generator=generator) / 10)
    save_adapter(tmp_path, cohort.adapter(0), me, loaded.linears, base=loaded.source.resolved, revision=None)
    detach(loaded.model, cohort)
    ids = torch.arange(1, 24)[None]
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(loaded.source.resolved), tmp_path).double()
    with torch.no_grad():
        before = loaded.model(input_ids=ids).logits
        with wearing(loaded.model, tmp_path):
            worn = loaded.model(input_ids=ids).logits
        after = loaded.model(input_ids=ids).logits
        theirs = peft(input_ids=ids).logits
    assert torch.equal(before, after)
    assert (worn - before).abs().max() > 0.1
    assert (worn.double() - theirs).abs().max() < 1e-3 * theirs.abs().max()


@pytest.mark.parametrize("name", ["gpt2-ref", "llama-ref"])
def test_on_a_healthy_base_nothing_needs_keeping(shared, name: str) -> None:
    source = find(str(shared / "models" / name))
    tokenizer = load_tokenizer(source)
    loaded = load_base(source, Cell(task=Task(data="x"), precision="bf16"), torch.device("cpu"))
    rows, pad = plain_text(tokenizer, 256)[:4], pad_token_id(tokenizer)
    found = mix(loaded, Codec("nf4"), sweep(loaded, Codec("nf4"), rows, pad, ("all",)), mixed("15%"), 0.05, rows, pad)
    assert (found["needed"], found["kept"], found["precision"]) == (False, [], "nf4")
    assert 0 < found["uniform"]["delta_loss"] < 0.05 * found["base_loss"]
