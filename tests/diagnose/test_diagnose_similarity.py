"""Similarity against dense ΔW, agreement of generations, sizing and inspection."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from loracle.adapters.peft_files import ModuleAdapter, save_adapter
from loracle.diagnose.inspect import inspect, steps_of
from loracle.diagnose.pairs import agree
from loracle.diagnose.similarity import compare, compare_adapters, principal_angle_cosine, token_match
from loracle.diagnose.sizing import measure
from loracle.models.source import BUILTIN
from loracle.spec.study import Cell, Task, Train
from loracle.store.layout import StudyFolder
from loracle.tasks.library import load_task
from tests.conftest import text_rows
from tests.engine import RunSpec, base, make_fit, member


def adapter(seed: int, rank: int = 3, alpha: float = 6.0, d_in: int = 10, d_out: int = 12) -> ModuleAdapter:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, d_in, generator=generator), torch.randn(d_out, rank, generator=generator)
    return ModuleAdapter(a, b, rank, alpha)


def dense(one: ModuleAdapter) -> torch.Tensor:
    return one.alpha / one.rank * one.b.double() @ one.a.double()


@pytest.mark.parametrize("rows", [(0, 12), (4, 8)])
@pytest.mark.parametrize("ranks", [(3, 3), (2, 4)])
def test_figures_are_those_of_dense_updates(rows: tuple[int, int], ranks: tuple[int, int]) -> None:
    one, two = adapter(1, ranks[0], 6.0), adapter(2, ranks[1], 5.0)
    found = compare(one, two, rows)
    x, y = (dense(m)[rows[0] : rows[1]] for m in (one, two))
    assert found["cosine"] == pytest.approx(float((x * y).sum() / x.norm() / y.norm()), abs=1e-12)
    assert found["l2"] == pytest.approx(float((x - y).norm()))
    assert found["relative_difference"] == pytest.approx(float((y - x).norm() / x.norm()))
    u, v = (torch.linalg.svd(m, full_matrices=False)[0][:, :r] for m, r in zip((x, y), ranks, strict=True))
    angles = torch.linalg.svdvals(u.T @ v).clamp(max=1)
    assert found["principal_angle_cosine"] == pytest.approx(float(angles.mean()), abs=1e-9)


def test_it_is_the_update_that_counts_not_its_factors() -> None:
    """B·A is unchanged when both factors are turned: cosine 1, difference 0, whatever A and B look like."""
    one = adapter(1)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(5)))[0]
    two = ModuleAdapter(turn.T @ one.a, one.b @ turn, 3, 6.0)
    found = compare(one, two, (0, 12))
    assert found["cosine"] == pytest.approx(1.0, abs=1e-6)
    assert found["relative_difference"] == pytest.approx(0.0, abs=1e-3)
    assert found["principal_angle_cosine"] == pytest.approx(1.0, abs=1e-6)
    half = compare(one, ModuleAdapter(one.a, one.b, 3, 3.0), (0, 12))
    assert (half["cosine"], half["relative_difference"]) == (pytest.approx(1.0), pytest.approx(0.5))


def test_an_untrained_update_has_no_direction() -> None:
    one, zero = adapter(1), ModuleAdapter(torch.ones(3, 10), torch.zeros(12, 3), 3, 6.0)
    assert set(compare(one, zero, (0, 12)).values()) == {None}
    assert principal_angle_cosine(zero.b, one.b) is None


def test_slices_of_saved_runs_and_a_null_pair(tmp_path: Path) -> None:
    """Trained adapters: one ``init_seed`` with two data orders (a null pair) is far closer than two inits; a slice that
    nobody trained has no row."""
    rows, spec = text_rows(16), {"rank": 2, "targets": ("q", "v"), "train": Train(learning_rate=1e-3)}
    folders = []
    for i, (init, order) in enumerate([(1, 1), (1, 2), (5, 1)]):
        loaded = base()
        fit, cohort = make_fit(loaded, [RunSpec("x", seed=init, **spec)], rows, 4, batch_size=4)  # type: ignore[arg-type]
        fit.orders[0].seed = order
        for step in range(4):
            fit.step(step, fit.batches(step))
        me = member(loaded, RunSpec("x", seed=init, **spec))  # type: ignore[arg-type]
        save_adapter(tmp_path / str(i), cohort.adapter(0), me, loaded.linears, base="x", revision=None)
        folders.append(tmp_path / str(i))
    modules = {x.name: {"layer": x.layer, "slices": x.slices} for x in loaded.linears}
    null, other, itself = (compare_adapters(folders[0], folders[i], modules) for i in (1, 2, 0))
    assert {row["kind"] for row in null} == {"q", "v"}
    assert [row["layer"] for row in null] == sorted(row["layer"] for row in null)
    assert all(row["cosine"] == pytest.approx(1.0) for row in itself)
    assert sum(r["cosine"] for r in null) > sum(r["cosine"] for r in other) + 0.1 * len(null)


@pytest.mark.parametrize(
    ("one", "two", "rate"),
    [([1, 2, 3], [1, 2, 3], 1.0), ([1, 2, 3, 4], [1, 9, 3], 0.5), ([], [], 1.0), ([], [1], 0.0), ([2, 1], [1, 2], 0.0)],
)
def test_token_match(one: list[int], two: list[int], rate: float) -> None:
    assert token_match(one, two) == rate


def test_agreement_is_over_the_items_that_both_generated(tmp_path: Path) -> None:
    for name, ids in (("a", [[1, 2], [3], None]), ("b", [[1, 9], [3], [4]])):
        (tmp_path / name).mkdir()
        pd.DataFrame({"item": [0, 1, 2], "prediction_ids": ids}).to_parquet(tmp_path / name / "predictions.parquet")
    assert agree(tmp_path / "a", tmp_path / "b") == {"token_match": 0.75, "exact": 0.5, "items": 2}
    missing = agree(tmp_path / "a", tmp_path / "nowhere")
    assert missing["token_match"] is None
    assert missing["reason"] == "no generations to compare"


@pytest.mark.parametrize("most", [1, 3, 5])
def test_sizing_is_within_what_was_asked(most: int) -> None:
    loaded = base()
    members = [member(loaded, RunSpec("a")), member(loaded, RunSpec("b", rank=2, targets=("q",)))]
    found = measure(loaded, members, [Train(batch_size=2)] * 2, text_rows(8), 1, most)
    assert 1 <= found["size"] <= most
    sizes = [c["members"] for c in found["candidates"]]
    assert sizes[0] == 1
    assert max(sizes) <= most
    assert found["size"] in sizes
    assert found["ms_per_step"] > 0
    assert found["reason"].startswith("measured")
    assert type(loaded.model.get_submodule("transformer.h.0.attn.c_attn")).__name__ == "Conv1D"  # taken off again


# -- inspection -------------------------------------------------------------------------------------------------------


def job(
    model: str, task: dict[str, Any] | None = None, adapter: dict[str, Any] | None = None, weights: bool = False
) -> Any:
    """An inspect job of one nf4 cell."""
    merged = load_task(Task(name="banking77-10", samples=40, eval_samples=6, **(task or {})))
    config = json.loads(Cell(task=merged, precision="nf4").model_dump_json())
    config["base"]["model"] = model
    config["adapter"] |= adapter or {}
    return {"cells": [{"key": "c0", "config": config}], "groups": [], "device": "cpu", "weights": weights}


def silent(*_: Any, **__: Any) -> None:
    pass


def test_inspection_needs_no_weights(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(BUILTIN / "gpt2-demo", tmp_path / "base"))
    (folder / "model.safetensors").unlink()
    record = inspect(StudyFolder(tmp_path / "study"), job(str(folder)), silent)
    assert record["status"] == "done", record
    [found] = record["bases"].values()
    assert found["fingerprint"] is None
    assert "no weights" in found["fingerprint_reason"]
    assert (found["name"], found["n_layers"], len(found["linears"])) == ("base", 4, 16)
    cell = record["cells"]["c0"]
    assert round(cell["effective_bits"], 3) == 4.127
    assert cell["steps"] == -(-record["data"][cell["data"]]["train_rows"] // 8)
    assert cell["storage"] == "dequantized"
    assert len(pd.read_parquet(tmp_path / "study" / "eval.parquet")) == 6
    record = inspect(StudyFolder(tmp_path / "study"), job(str(folder), weights=True), silent)
    assert record["status"] == "failed"
    assert "no weights" in record["reason"]
    assert record["usage"] is False


def test_ranks_are_found_before_anything_is_predicted(tmp_path: Path) -> None:
    asked = job("gpt2-demo", adapter={"targets": ["q", "v"], "alpha": "2r", "parameters": 110_592})
    plain = job("gpt2-demo", adapter={"targets": ["q", "v"], "alpha": "2r", "rank": 36})
    del asked["cells"][0]["config"]["adapter"]["rank"]
    one, two = (inspect(StudyFolder(tmp_path / n), j, silent)["cells"]["c0"] for n, j in (("a", asked), ("b", plain)))
    assert one.pop("rank") == 36
    assert one.pop("parameters") == {"asked": 110_592, "have": 110_592, "off_percent": 0.0}
    assert one == two


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"adapter": {"targets": ["c_atn"]}}, "adapter.targets: 'c_atn' matches no linear layer"),
        ({"adapter": {"rank": 193}}, "adapter.rank: 193 is above the width 192"),
        ({"task": {"max_length": 4096}}, "task.max_length: 4096 tokens"),
    ],
)
def test_what_cannot_work_is_the_users_to_mend(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    record = inspect(StudyFolder(tmp_path), job("gpt2-demo", **changes), silent)
    assert record["status"] == "failed"
    assert record["usage"] is True
    assert record["reason"].startswith(reason)


def test_steps_from_epochs() -> None:
    task = Task(data="x")
    assert steps_of(Cell(task=task, train=Train(steps=7)), None) == 7
    assert steps_of(Cell(task=task, train=Train(epochs=1.5, batch_size=4, gradient_accumulation=2)), 30) == 6
    assert steps_of(Cell(task=task), 17) == 3
    assert steps_of(Cell(task=task), None) is None
