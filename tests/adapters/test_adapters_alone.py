"""Methods that train alone: every one learns, saves, and comes back through plain PEFT as it was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from loracle.adapters.alone import Alone, attach_alone, count_trainable
from loracle.base.errors import SpecError
from loracle.evaluate.loss import item_losses
from loracle.evaluate.reload import Reloader, recipe
from loracle.models.linears import linear_map
from loracle.models.load import LoadedBase, load_base, meta_model
from loracle.models.precision import deploy
from loracle.models.source import find, load_config, load_tokenizer
from loracle.spec.methods import METHODS
from loracle.spec.study import Adapter, Base, Cell, Task, Train
from loracle.train.fit import Fit, FitSettings
from tests.conftest import text_rows
from tests.engine import tiny_llama

CPU = torch.device("cpu")
STEPS = 6
ALONE = [name for name in METHODS if name != "lora"]
LINEAR_ONLY = ["olora", "loha", "lokr", "oft", "boft", "hra", "miss", "shira"]  # PEFT's do not know GPT-2's Conv1D
QUANTIZED = ["dora", "loftq", "adalora", "ia3", "ln_tuning", "prefix_tuning", "prompt_tuning", "vera"]


@dataclass
class Trained:
    cell: Cell
    loaded: LoadedBase
    who: Alone
    fit: Fit


def cell_of(method: str, precision: str = "fp32", **more: Any) -> Cell:
    adapter = Adapter(method=method, rank=4, alpha=8, targets=("c_attn",), **more.pop("adapter", {}))
    train = Train(steps=STEPS, learning_rate=more.pop("learning_rate", 2e-3))
    return Cell(task=Task(data="x", **more.pop("task", {})), precision=precision, adapter=adapter, train=train, **more)  # type: ignore[arg-type]


def trained(cell: Cell, rows: list[Any], steps: int = STEPS, vocab: int | None = None) -> Trained:
    loaded = load_base(find(cell.base.model), cell, CPU, vocab=vocab)
    who = attach_alone("run", cell, loaded, 3, 3)
    fit = Fit(who, rows, [cell.train], [3], FitSettings(STEPS, 4, 1, 1, identity="t"))
    for step in range(steps):
        fit.step(step, fit.batches(step))
    return Trained(cell, loaded, who, fit)


def check_reload(run: Trained, rows: list[Any], folder: Path, vocab: int | None = None) -> None:
    """Save, evaluate as recorded, reload by plain Transformers and PEFT: the same losses."""
    run.who.save(folder, run.loaded.source.resolved, None)
    how = recipe(run.loaded, run.cell)
    deploy(run.loaded.model)
    run.who.as_used()
    ours = item_losses(run.who, rows, 1, CPU, alone=0)
    theirs = Reloader(run.loaded, run.cell, how, [folder], vocab=vocab).item_losses(0, rows, 1)
    assert abs(ours.mean[0] - theirs.mean[0]) < 1e-4
    assert abs(ours.sums - theirs.sums).max() < 1e-2


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with random weights."""
    return Path(tiny_llama(tmp_path_factory.mktemp("llama"), 8192, tied=True))


@pytest.mark.parametrize("method", [name for name in ALONE if name != "loftq"])
def test_every_method_learns_and_comes_back(method: str, tmp_path: Path, llama: Path) -> None:
    rows = text_rows(24)
    cell = cell_of(method, learning_rate=2e-4 if method == "full" else 5e-3)
    if method in LINEAR_ONLY:
        with pytest.raises(SpecError, match=f"PEFT cannot put {method} on this base"):
            trained(cell, rows, 1)
        adapter = cell.adapter.model_copy(update={"targets": ("q_proj", "o_proj")})
        cell = cell.model_copy(update={"base": Base(model=str(llama)), "adapter": adapter})
    run = trained(cell, rows, 0)
    start = run.who.flat.data.clone()
    first = float(item_losses(run.who, rows[:8], 1, CPU, alone=0).mean[0])
    for step in range(STEPS):
        run.fit.step(step, run.fit.batches(step))
    assert torch.isfinite(run.fit.losses).all()
    assert not torch.equal(start, run.who.flat.data)
    assert float(item_losses(run.who, rows[:8], 1, CPU, alone=0).mean[0]) != first
    config = load_config(run.loaded.source)
    meta = meta_model(config)
    assert count_trainable(cell, meta, linear_map(meta, config.model_type)) == run.who.members[0].trainable_params
    check_reload(run, rows[:8], tmp_path / "adapter")


@pytest.mark.parametrize("method", QUANTIZED)
def test_methods_train_on_a_quantized_base(method: str, tmp_path: Path) -> None:
    rows = text_rows(12)
    run = trained(cell_of(method, "nf4"), rows, 2)
    assert run.loaded.storage == "quantized"
    check_reload(run, rows[:6], tmp_path / "adapter")


@pytest.mark.parametrize(("method", "saved"), [("ln_tuning", ()), ("dora", ("ln_f",)), ("ia3", ())])
def test_on_16_bit_compute_copies_come_back_rounded_and_are_recorded_so(
    method: str, saved: tuple[str, ...], tmp_path: Path
) -> None:
    rows = text_rows(12)
    run = trained(cell_of(method, "bf16", compute_dtype="bfloat16", adapter={"modules_to_save": saved}), rows, 2)
    run.who.save(tmp_path, run.loaded.source.resolved, None)
    how = recipe(run.loaded, run.cell)
    deploy(run.loaded.model)
    run.who.as_used()
    ours = item_losses(run.who, rows, 1, CPU, alone=0)
    theirs = Reloader(run.loaded, run.cell, how, [tmp_path]).item_losses(0, rows, 1)
    assert abs(ours.mean[0] - theirs.mean[0]) < 5e-3


def test_dora_on_4_bits_is_the_same_in_evaluation_mode(tmp_path: Path) -> None:
    """bitsandbytes repacks weights in eval() on some CPUs, and PEFT's DoRA reads them all the same: they are kept as they are."""
    rows = text_rows(12)
    run = trained(cell_of("dora", "nf4"), rows, 3)
    before = item_losses(run.who, rows, 1, CPU, alone=0)
    deploy(run.loaded.model)
    first, second = (item_losses(run.who, rows, 1, CPU, alone=0) for _ in range(2))
    assert abs(before.mean[0] - first.mean[0]) < 1e-5
    assert abs(first.mean[0] - second.mean[0]) < 1e-6


def test_a_run_is_a_function_of_its_seeds() -> None:
    rows = text_rows(12)
    cell = cell_of("dora", adapter={"dropout": 0.2})
    one, two = trained(cell, rows), trained(cell, rows)
    assert torch.equal(one.who.flat.data, two.who.flat.data)
    assert torch.equal(one.fit.losses, two.fit.losses)


def test_loftq_starts_from_the_best_low_rank_part_of_the_error() -> None:
    """‖W − Q − ΔW‖ is what the singular values beyond the rank leave, whatever alpha is."""
    cell = cell_of("loftq", "nf4")
    loaded = load_base(find("gpt2-demo"), cell, CPU)
    dense = load_base(find("gpt2-demo"), cell_of("dora"), CPU)
    who = attach_alone("run", cell, loaded, 3, 3)
    for name in ("transformer.h.0.attn.c_attn", "transformer.h.3.attn.c_attn"):
        layer = who.model.get_submodule(name)
        weight = dense.model.get_submodule(name).weight.detach().T
        error = weight - bnb_weight(layer.get_base_layer())
        left = error - layer.get_delta_weight("default").detach()
        values = torch.linalg.svdvals(error)
        assert float(left.norm()) == pytest.approx(float(values[4:].norm()), rel=1e-4)
        assert float(left.norm()) < float(error.norm())


def bnb_weight(layer: Any) -> torch.Tensor:
    import bitsandbytes.functional as bnb

    return bnb.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def test_added_tokens_train_their_embeddings_and_come_back(tmp_path: Path) -> None:
    tokens = ("<|query|>", "<|intent|>")
    tokenizer = load_tokenizer(find("gpt2-demo"), tokens)
    rows = text_rows(12)
    new = tokenizer.convert_tokens_to_ids(tokens[0])
    rows = [type(row)(row.item, [new, *row.input_ids], [-100, *row.labels]) for row in rows]
    cell = cell_of("lora", base=Base(add_tokens=tokens))
    assert cell.alone
    run = trained(cell, rows, 2, vocab=len(tokenizer))
    check_reload(run, rows[:6], tmp_path / "adapter", vocab=len(tokenizer))


def test_options_are_pefts_own_and_checked() -> None:
    rows = text_rows(4)
    short = trained(cell_of("prompt_tuning", adapter={"options": {"num_virtual_tokens": 5}}), rows, 1)
    assert short.who.members[0].trainable_params == 5 * 192
    with pytest.raises(SpecError, match=r"no such option.*num_virtual_tokens"):
        trained(cell_of("prompt_tuning", adapter={"options": {"num_virtual_token": 5}}), rows, 1)


@pytest.mark.parametrize(
    ("method", "precision", "message"),
    [("pissa", "nf4", "own weights"), ("olora", "int8", "own weights"), ("loftq", "fp32", "none")],
)
def test_what_cannot_go_together_says_so(method: str, precision: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        trained(cell_of(method, precision), text_rows(4), 1)


def test_a_slice_of_a_fused_layer_is_the_cohorts_own() -> None:
    cell = cell_of("dora")
    cell = cell.model_copy(update={"adapter": cell.adapter.model_copy(update={"targets": ("q",)})})
    with pytest.raises(SpecError, match="name c_attn"):
        trained(cell, text_rows(4), 1)
