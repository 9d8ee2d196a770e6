"""A study folder as frames: the columns of the CSV tables, the entries of verdicts.json, the lines of metrics.jsonl."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from loracle.base.errors import StoreError
from loracle.report import frames
from loracle.report.columns import COLUMNS
from loracle.report.evidence import STATES
from loracle.store.files import read_json, read_jsonl


@pytest.fixture(params=["full", "unfinished", "partial"])
def study(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def test_tables_are_those_of_the_report(study: Path) -> None:
    tables = frames.tables(study)
    assert {name: tuple(table.columns) for name, table in tables.items()} == COLUMNS
    for name, table in tables.items():
        written = pd.read_csv(study / "report" / "tables" / f"{name}.csv")
        assert len(table) == len(written), name
        for column in written.select_dtypes("number"):
            assert pd.to_numeric(table[column]).astype(float).equals(written[column].astype(float)), (name, column)


def test_records_count_every_planned_run(unfinished: Path) -> None:
    records = frames.records(unfinished)
    assert list(records.run) == [run["id"] for run in read_json(unfinished / "plan.json")["runs"]]
    assert set(records.status) == {*STATES, "not run"}
    assert records[records.status != "done"].reason.notna().all()


def test_verdicts_are_the_reports(study: Path) -> None:
    entries = read_json(study / "report" / "verdicts.json")
    verdicts = frames.verdicts(study)
    assert [(row.question, row.verdict, row.statement) for row in verdicts.itertuples()] == [
        (entry["question"], entry["verdict"], entry["statement"]) for entry in entries
    ]
    assert frames.recommendation(study)["text"] in (study / "report" / "report.md").read_text()


def test_curves_are_the_lines_of_the_runs(full: Path) -> None:
    curves = frames.curves(full)
    for run, group in curves.groupby("run"):
        lines = read_jsonl(full / "runs" / str(run) / "metrics.jsonl")
        assert list(group.step) == [line["step"] for line in lines]
        assert list(group.loss.dropna()) == [line["loss"] for line in lines if "loss" in line]
        assert list(group.eval_loss.dropna()) == [line["eval_loss"] for line in lines if "eval_loss" in line]
        assert group.seed.nunique() == group.label.nunique() == 1


def test_without_a_plan_there_is_no_study(tmp_path: Path) -> None:
    for read in (frames.tables, frames.records, frames.curves, frames.verdicts, frames.recommendation):
        with pytest.raises(StoreError, match="no plan here"):
            read(tmp_path)
