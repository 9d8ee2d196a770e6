"""Forecasts of a study's cells: of the largest batch of its rows, and what fits on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import GPT2Config

from loracle.diagnose.fitting import Budget, changed
from loracle.diagnose.forecast import Forecast, Geometry, Plan, forecast
from loracle.diagnose.predictions import (
    Predictions,
    Setting,
    budget_of,
    evaluation_geometry,
    packed_geometry,
    training_geometry,
)
from loracle.spec.load import tuples
from loracle.spec.study import Cell
from loracle.tasks.rows import Row

CONFIG = GPT2Config(n_layer=4, n_embd=256, n_head=4, vocab_size=1000, bos_token_id=0, eos_token_id=0)
ROWS = [Row(i, [1] * n, [-100] * (n - s) + [1] * s) for i, (n, s) in enumerate([(20, 5), (90, 40), (64, 60), (300, 8)])]
WIDE = Setting(CONFIG, None, None, None, None, 256)


def cell(**settings: Any) -> Cell:
    """A cell of a task that is never read."""
    plain: dict[str, Any] = {
        "task": {"data": "x.jsonl", "format": "text", "max_length": 512},
        "precision": "bf16",
        "adapter": {"rank": 8, "targets": "all-linear"},
        "train": {"steps": 1, "batch_size": 16},
    }
    return Cell.model_validate(tuples(changed(plain, settings)))


def test_the_largest_batch_of_the_rows() -> None:
    two = cell(**{"train.batch_size": 2})
    assert training_geometry(two, ROWS) == Geometry(2, 300, 50)  # the longest row; the mean of 60 and 40
    assert training_geometry(cell(**{"task.max_length": 128}), ROWS).length == 128
    assert training_geometry(two, None) == Geometry(2, 512, 511)
    assert evaluation_geometry(ROWS, 1) == Geometry(4, 300, 29)
    assert evaluation_geometry(ROWS * 100, 64).rows == 65536 // (64 * 300)


def test_the_largest_packed_batch_is_that_of_the_runs_own_data_orders() -> None:
    whole = cell(**{"train.batch_size": 4})  # all four rows at once, whatever the order
    assert packed_geometry(whole, ROWS, (1,)) == Geometry(1, 512, 128)  # 474 tokens, 113 scored: in steps of 64 and 16
    single = cell(**{"train.batch_size": 1, "train.steps": 1})
    lengths = {packed_geometry(single, ROWS, (seed,)).length for seed in range(20)}  # type: ignore[union-attr]
    assert lengths == {64, 128, 320}  # one row a run: of 20 or 64, of 90, of 300
    assert packed_geometry(single, ROWS, range(20)) == Geometry(1, 320, 64)
    pinned = cell(**{"train.batch_size": 1, "train.steps": 1, "train.order_seed": 3})
    assert packed_geometry(pinned, ROWS, range(20)) == packed_geometry(single, ROWS, (3,))
    assert packed_geometry(pinned, ROWS, (1,), (0, 4, 9)) == packed_geometry(single, ROWS, (3, 7, 12))


def test_nothing_is_packed_without_seeds_or_where_rows_are_equally_long() -> None:
    assert packed_geometry(cell(), ROWS, ()) is None
    assert packed_geometry(cell(), None, (1,)) is None
    assert packed_geometry(cell(), ROWS[:1] * 4, (1,)) is None


def test_packed_rows_need_less_and_methods_that_do_not_pack_need_the_same() -> None:
    padded, packed = (Setting(CONFIG, ROWS * 8, None, None, None, 256, seeds) for seeds in ((), (1,)))
    predictions = Predictions()
    assert (predictions.of(cell(), packed).peak_bytes or 0) < 0.7 * (predictions.of(cell(), padded).peak_bytes or 0)
    dora = cell(**{"adapter.method": "dora"})
    assert predictions.of(dora, packed).peak_bytes == predictions.of(dora, padded).peak_bytes


def test_a_cohort_of_unlike_targets_has_room_for_all_of_them() -> None:
    """Each member has a place at every layer that any of them adapts, as the cohort really has it."""
    predictions = Predictions()
    attention, mlp = (cell(**{"adapter.targets": targets}) for targets in (("q", "k"), ("up", "down")))
    both = cell(**{"adapter.targets": ("q", "k", "up", "down")})
    together = predictions.of(mlp, WIDE, members=4, beside=[attention])
    assert together.peak_bytes == predictions.of(both, WIDE, members=4).peak_bytes
    assert (predictions.of(mlp, WIDE, members=4).peak_bytes or 0) < (together.peak_bytes or 0)
    budget = Budget(2 * 10**9, "a card")
    alike, unlike = (predictions.group(cells, [WIDE, WIDE], budget, 40) for cells in ([mlp, mlp], [mlp, attention]))
    assert unlike["bytes_per_member"] > alike["bytes_per_member"]


def test_a_group_whose_dequantized_weights_do_not_fit_is_sized_in_quantized_storage_too() -> None:
    predictions, one = Predictions(), cell(precision="nf4")
    dense, packed = (predictions.of(one, WIDE, storage=s).needs_bytes or 0 for s in ("dequantized", "quantized"))
    assert packed < dense
    found = predictions.group([one], [WIDE], Budget(dense - 1, "a card"), 3)
    assert (found["storage"], found["size"]) == ("dequantized", 1)
    assert found["quantized"]["storage"] == "quantized"
    size, room = found["quantized"]["size"], (dense - 1) * found["margin"]
    assert size == 1 or (predictions.of(one, WIDE, members=size).needs_bytes or 0) <= room
    assert "quantized" not in predictions.group([one], [WIDE], Budget(2 * dense, "a card"), 3)


def test_the_copy_for_the_best_checkpoint_is_counted() -> None:
    predictions = Predictions()
    kept = cell(**{"train.best_checkpoint": True, "train.eval_every": 1})
    with_copy, without = predictions.of(kept, WIDE), predictions.of(cell(), WIDE)
    copy = without.components["gradients"]  # as many parameters, in float32 too
    assert copy
    assert (with_copy.peak_bytes or 0) - (without.peak_bytes or 0) == copy
    assert with_copy.components == without.components | {"rest": (without.components["rest"] or 0) + copy}


def test_budgets() -> None:
    import torch

    assert budget_of("24GB", torch.device("cpu")) == Budget(24 * 10**9, "run.gpu_memory")
    assert budget_of(None, torch.device("cpu")) is None


def test_a_forecast_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Plan] = []

    def counted(plan: Plan) -> Forecast:
        made.append(plan)
        return forecast(plan)

    monkeypatch.setattr("loracle.diagnose.predictions.forecast", counted)
    predictions = Predictions()
    predictions.of(cell(), WIDE)
    predictions.of(cell(**{"train.learning_rate": 1e-3, "adapter.alpha": 64.0}), WIDE)
    assert len(made) == 1
    predictions.of(cell(**{"adapter.rank": 4}), WIDE)
    assert len(made) == 2


def test_what_fits_is_borne_out_by_forecasts() -> None:
    predictions = Predictions()
    need = predictions.of(cell(), WIDE).needs_bytes or 0
    budget = Budget(int(need * 1.4), "a card")
    found = predictions.fit(cell(), WIDE, budget)
    assert found["fits"] is True
    assert found["needs_bytes"] == need
    assert found["largest_batch"] > 16
    assert 8 < found["largest_rank"] <= 256
    for path, size in (("train.batch_size", found["largest_batch"]), ("adapter.rank", found["largest_rank"])):
        assert (predictions.of(cell(**{path: size}), WIDE).needs_bytes or 0) <= budget.bytes


def test_what_does_not_fit_gets_the_mildest_change() -> None:
    predictions = Predictions()
    need = predictions.of(cell(), WIDE).needs_bytes or 0
    found = predictions.fit(cell(), WIDE, Budget(need - (20 << 20), "a card"))
    assert found["fits"] is False
    assert found["change"] == {"train.gradient_checkpointing": True}
    assert found["change_needs_bytes"] <= need - (20 << 20)
    assert found["largest_batch"] < 16


def test_a_group_is_as_large_as_fits_for_the_cell_that_needs_most() -> None:
    predictions = Predictions()
    cells = [cell(precision="nf4"), cell(precision="nf4", **{"adapter.rank": 64})]
    budget = Budget(3 * 10**9, "a card")
    found = predictions.group(cells, [WIDE, WIDE], budget, 40)
    assert 1 < found["size"] < 40
    assert found["storage"] == "dequantized"
    need = predictions.of(cells[1], WIDE, members=found["size"], storage="dequantized").needs_bytes or 0
    assert need <= found["margin"] * budget.bytes
    assert found["bytes_per_member"] * found["size"] + found["fixed_bytes"] <= budget.bytes
    assert predictions.group([cell(precision="int8")], [WIDE], budget, 40)["size"] == 1
