"""Forecasts of a study's cells: of the largest batch of its rows, and what fits on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import GPT2Config

from loracle.diagnose.fitting import Budget, changed
from loracle.diagnose.forecast import Forecast, Geometry, Plan, forecast
from loracle.diagnose.predictions import Predictions, Setting, budget_of, evaluation_geometry, training_geometry
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
