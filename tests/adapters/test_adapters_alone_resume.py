"""AdaLoRA beyond its parameters (importances, masks), and what no method can do, said before anything trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loracle.adapters.alone import attach_alone, check_method, count_trainable
from loracle.base.errors import SpecError
from loracle.models.linears import linear_map
from loracle.models.load import load_base, meta_model
from loracle.models.source import find, load_config
from loracle.spec.study import Adapter, Base, Cell, Task, Train
from loracle.train import checkpoint
from loracle.train.fit import Fit, FitSettings
from tests.adapters.test_adapters_alone import Trained, check_reload
from tests.conftest import text_rows

CPU = torch.device("cpu")
STEPS = 12


def adalora(**train: Any) -> Cell:
    adapter = Adapter(method="adalora", rank=4, alpha=8, targets=("c_attn",), options={"deltaT": 1})
    return Cell(
        task=Task(data="x"), precision="fp32", adapter=adapter, train=Train(steps=STEPS, learning_rate=5e-3, **train)
    )


def started(cell: Cell, rows: list[Any], **more: Any) -> Trained:
    loaded = load_base(find(cell.base.model), cell, CPU)
    who = attach_alone("run", cell, loaded, 3, 3)
    return Trained(
        cell, loaded, who, Fit(who, rows, [cell.train], [3], FitSettings(STEPS, 4, 1, 1, identity="t", **more))
    )


def steps(fit: Fit, first: int, last: int) -> None:
    for step in range(first, last):
        fit.step(step, fit.batches(step))
        fit.done_steps = step + 1


@pytest.mark.parametrize("at", [1, 5, 8, 10])  # before, while and after ranks are moved (to step 8 of 12)
def test_adalora_goes_on_as_if_never_stopped(at: int, tmp_path: Path) -> None:
    rows = text_rows(24)
    whole, first, second = (started(adalora(), rows) for _ in range(3))
    steps(whole.fit, 0, STEPS)
    steps(first.fit, 0, at)
    checkpoint.save(tmp_path / "c", first.fit.checkpoint())
    found, _ = checkpoint.newest(tmp_path / "c", "t")
    assert found is not None
    second.fit.restore(found)
    steps(second.fit, at, STEPS)
    assert torch.equal(whole.who.flat.data, second.who.flat.data)
    assert whole.who.save(tmp_path / "a", "base", None) == second.who.save(tmp_path / "b", "base", None)
    assert (whole.who.flat.data == 0).any()  # ranks were masked, so there was something to lose


def test_adalora_of_an_earlier_step_comes_back_whole(tmp_path: Path) -> None:
    """``best_checkpoint``: the values are older than the last mask."""
    rows = text_rows(24)
    run = started(adalora(), rows)
    steps(run.fit, 0, 1)
    early = run.who.flat.data.clone()
    steps(run.fit, 1, STEPS)
    run.who.flat.data.copy_(early)
    check_reload(run, rows, tmp_path / "adapter")


@pytest.mark.parametrize(
    ("method", "precision", "more", "where"),
    [
        ("pissa", "nf4", {}, "precision"),
        ("loftq", "bf16", {}, "precision"),
        ("dora", "int8", {}, "precision"),
        ("olora", "bf16", {}, "adapter.method"),
        ("lora", "bf16", {"modules_to_save": ("nope",)}, "adapter.modules_to_save"),
        ("prefix_tuning", "bf16", {"options": {"num_virtual_tokens": -3}}, "adapter.method"),
        ("prefix_tuning", "bf16", {"options": {"num_virtual_tokens": "many"}}, "adapter.method"),
        ("boft", "bf16", {}, "adapter.method"),
        ("dora", "bf16", {"options": {"r": 3}}, "adapter.options.r"),
        ("dora", "bf16", {"options": {"target_modules": ["c_fc"]}}, "adapter.options.target_modules"),
        ("dora", "bf16", {"options": {"task_type": "SEQ_CLS"}}, "adapter.options.task_type"),
    ],
)
def test_what_cannot_work_is_said_from_shapes_alone(method: str, precision: Any, more: Any, where: str) -> None:
    cell = Cell(task=Task(data="x"), precision=precision, adapter=Adapter(method=method, targets=("c_attn",), **more))
    config = load_config(find("gpt2-demo"))
    model = meta_model(config)
    linears = linear_map(model, config.model_type)

    def counted() -> None:
        check_method(cell, model, linears, CPU)
        count_trainable(cell, model, linears)

    with pytest.raises(SpecError) as caught:
        counted()
    assert caught.value.where == where


@pytest.mark.parametrize(
    "more",
    [
        {"task": {"type": "classification", "labels": ("a", "b")}},
        {"adapter": {"modules_to_save": ("wte",)}},
        {"base": {"add_tokens": ("<a>",)}},
    ],
)
def test_pissa_with_modules_trained_beside_it_is_refused(more: dict[str, Any]) -> None:
    """PEFT's conversion at saving has no start of theirs: it used to end in a KeyError after all the training."""
    cell = Cell(
        base=Base(**more.get("base", {})),
        task=Task(data="x", **more.get("task", {})),
        adapter=Adapter(method="pissa", **more.get("adapter", {})),
    )
    with pytest.raises(SpecError, match="PEFT turns pissa into a LoRA"):
        check_method(cell, meta_model(load_config(find("gpt2-demo"))), [], CPU)


def test_prefix_tuning_under_gradient_checkpointing_is_refused() -> None:
    cell = Cell(task=Task(data="x"), adapter=Adapter(method="prefix_tuning"), train=Train(gradient_checkpointing=True))
    model = meta_model(load_config(find("gpt2-demo")))
    with pytest.raises(SpecError, match="gradient_checkpointing"):
        check_method(cell, model, [], CPU)
