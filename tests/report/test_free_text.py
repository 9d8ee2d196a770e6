"""Answers in words of their own: an exact match that nothing reaches is no score; and figures of several targets."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_study import write_study

from loracle.report.answers import examples
from loracle.report.canvas import LIGHT, lines_of
from loracle.report.cards.results import results
from loracle.report.cards.subject import subjects
from loracle.report.evidence import read_study


def free_text(root: Path, reached: float) -> Path:
    """The synthetic study with exact match alone: ``reached`` in one run, 0 in all others."""
    write_study(root, ranks=(4, 8), diagnose=False)
    for i, path in enumerate(sorted(root.glob("runs/*/record.json"))):
        record = json.loads(path.read_text())
        for name in ("label_accuracy", "base_label_accuracy"):
            record["metrics"].pop(name, None)
        record["metrics"]["exact_match"] = reached if i == 0 else 0.0
        path.write_text(json.dumps(record))
        predictions = path.with_name("predictions.parquet")
        if predictions.exists():
            table = pq.read_table(predictions).drop_columns(["label_accuracy", "exact_match"])
            pq.write_table(table.append_column("exact_match", pa.array([0] * len(table))), predictions)
    return root


@pytest.mark.parametrize(("reached", "metric"), [(0.0, None), (0.1, "exact_match")])
def test_an_exact_match_that_nothing_reaches_is_no_task_metric(
    tmp_path: Path, reached: float, metric: str | None
) -> None:
    data = read_study(free_text(tmp_path, reached))
    assert data.task_metric() == metric
    shown, _ = examples(data, {})
    marks = {mark for example in shown for _, _, mark in example.answers}
    assert marks == ({""} if metric is None else {"wrong"})
    named = {result.name for subject in subjects(data, []) for result in results(data, subject)}
    assert "eval_loss" in named
    assert ("exact_match" in named) == (metric is not None)


def test_lines_of_one_precision_are_told_apart_by_colour(tmp_path: Path) -> None:
    write_study(tmp_path, ranks=(4, 8), diagnose=False)
    plan = json.loads((tmp_path / "plan.json").read_text())
    for cell in plan["cells"]:
        targets = ["q", "v"] if cell["rank"] == 4 else ["k", "v"]
        cell |= {"targets": targets, "label": f"{cell['precision']}-r{cell['rank']}-{''.join(targets)}"}
        cell["config"]["adapter"]["targets"] = targets
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    data = read_study(tmp_path)
    lines = lines_of(data, LIGHT, data.cells)
    assert {(line.name, line.hollow) for line in lines} == {
        ("bf16-qv", False), ("bf16-kv", False), ("nf4-qv", True), ("nf4-kv", True),
    }  # fmt: skip
    colours = {line.name: line.colour for line in lines}
    assert colours["bf16-qv"] == colours["nf4-qv"] != colours["bf16-kv"] == colours["nf4-kv"]
    assert len({(line.colour, line.hollow) for line in lines}) == 4
