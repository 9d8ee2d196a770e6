"""Forecasts for another memory budget: made once by a worker, kept in the study folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loracle.spec import Study
from loracle.store.files import read_json, write_json
from loracle.store.layout import StudyFolder
from loracle.study import run_study
from loracle.study.forecasts import forecast

Fake = Callable[..., list[str]]
BYTES = {"bf16": 9_000, "nf4": 3_000}


@pytest.fixture
def done(fake: Fake, make_study: Callable[..., Study], tmp_path: Path) -> StudyFolder:
    """A finished study that was planned for no GPU."""
    run_study(make_study(), tmp_path / "small")
    fake(cell_bytes=BYTES)
    return StudyFolder(tmp_path / "small")


def _jobs(fake: Fake) -> list[str]:
    return fake(cell_bytes=BYTES)


def test_forecasts_are_made_once_for_a_budget(done: StudyFolder, fake: Fake) -> None:
    before = {path: path.read_bytes() for path in (done.plan, done.study_yaml, done.eval_set())}
    jobs = len(_jobs(fake))
    forecast(done, "4kB")
    record = read_json(done.forecast(4000))
    fits = {cell["precision"]: record["cells"][cell["id"]] for cell in read_json(done.plan)["cells"]}
    assert (fits["bf16"]["fits"], fits["nf4"]["fits"]) == (False, True)
    assert fits["bf16"]["change"] == {"train.batch_size": 1}
    assert len(_jobs(fake)) == jobs + 1
    forecast(done, "4kB")
    assert len(_jobs(fake)) == jobs + 1
    forecast(done, "20kB")
    assert len(_jobs(fake)) == jobs + 2
    assert {path: path.read_bytes() for path in before} == before


def test_forecasts_of_another_plan_do_not_count(done: StudyFolder, fake: Fake) -> None:
    forecast(done, "4kB")
    jobs = len(_jobs(fake))
    write_json(done.forecast(4000), read_json(done.forecast(4000)) | {"study_sha256": "another"})
    forecast(done, "4kB")
    assert len(_jobs(fake)) == jobs + 1


def test_a_plan_for_the_same_budget_needs_no_worker(done: StudyFolder, fake: Fake) -> None:
    plan: dict[str, Any] = read_json(done.plan)
    for cell in plan["cells"]:
        cell["fit"] = {"budget_bytes": 4000, "fits": True, "needs_bytes": 7, "change": None}
    write_json(done.plan, plan)
    jobs = len(_jobs(fake))
    forecast(done, "4kB")
    assert len(_jobs(fake)) == jobs
    assert {fit["needs_bytes"] for fit in read_json(done.forecast(4000))["cells"].values()} == {7}


def test_what_cannot_be_forecast_has_its_reason_and_is_tried_again(done: StudyFolder, fake: Fake) -> None:
    fake(broken="no such base")
    forecast(done, "4kB")
    record = read_json(done.forecast(4000))
    assert (record["status"], record["cells"]) == ("failed", {})
    assert "no such base" in record["reason"]
    fake(cell_bytes=BYTES)
    forecast(done, "4kB")
    assert read_json(done.forecast(4000))["status"] == "done"
