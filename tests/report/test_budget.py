"""The recommendation within a memory budget: in the report, as a file, as a study to paste, on the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from synthetic_study import write_study
from test_write_report import contents, read_page, words

import loracle.study.forecasts
from loracle.cli import main
from loracle.report import figures, write_report
from loracle.report.budget import Asked
from loracle.report.evidence import read_study
from loracle.report.snippet import snippet
from loracle.spec import parse_study
from loracle.spec.factors import cell_from_config
from loracle.spec.yaml import read_yaml
from loracle.store.files import read_json, write_json
from loracle.store.layout import StudyFolder
from loracle.study.cells import plain, planned_cells

BUDGET = 30 * 10**6
ASKED = Asked("30MB", 0.1)


DRAWN: list[Any] = []


@pytest.fixture(autouse=True)
def drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures know of no budget and take seconds: all reports here share the first one's."""
    draw = figures.all_figures
    monkeypatch.setattr(figures, "all_figures", lambda *given: DRAWN or DRAWN.extend(draw(*given)) or DRAWN)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_study(tmp_path / "demo", ranks=(8, 16))


def _forecast(root: Path, **given: Any) -> None:
    plan = read_json(root / "plan.json")
    change = {"train.batch_size": 4, "train.gradient_accumulation": 2}
    fits = {
        cell["id"]: {"budget_bytes": BUDGET, "needs_bytes": cell["predicted_bytes"] + 500_000, "largest_batch": 7}
        | {"change": change, "change_needs_bytes": 20 * 10**6}
        for cell in plan["cells"]
    }
    record = {"schema": 1, "kind": "forecast", "status": "done", "reason": None, "cells": fits}
    write_json(StudyFolder(root).forecast(BUDGET), record | {"study_sha256": plan["study_sha256"]} | given)


def _written(root: Path) -> dict[str, Any]:
    return read_json(root / "report" / "recommendation.json")


def test_the_report_says_what_to_use_and_leaves_no_cell_out(root: Path) -> None:
    _forecast(root)
    write_report(root, ASKED)
    found = _written(root)
    [place] = found["places"]
    assert (found["gpu_memory"], found["budget_bytes"], found["margin"], found["prefer"]) == (
        "30MB",
        BUDGET,
        0.1,
        "speed",
    )
    assert place["recommended"]["cell"]
    markdown = (root / "report" / "report.md").read_text()
    page = words(root)
    for cell in read_json(root / "plan.json")["cells"]:
        named = f"{cell['precision']} at rank {cell['rank']}"
        assert named in page
        assert f"| {named}" in markdown
    for one in (place["recommended"], *place["does_not_fit"]):
        assert " ".join(str(one["memory"]["text"]).split()) in page or one.get("text")
    assert place["text"].split(": ")[0] in page
    assert "recommendation.json" in markdown
    assert ("a", {"href": "recommendation.json"}) in read_page(root).tags


def test_the_same_records_and_options_give_the_same_bytes(root: Path) -> None:
    write_report(root)
    before = contents(root / "report")
    assert "recommendation.json" not in before
    _forecast(root)
    write_report(root, ASKED)
    asked = contents(root / "report")
    assert asked["index.html"] != before["index.html"]
    assert asked["verdicts.json"] == before["verdicts.json"]
    write_report(root, ASKED)
    assert contents(root / "report") == asked
    write_report(root)
    assert contents(root / "report") == before


def test_without_forecasts_the_figures_say_so(root: Path) -> None:
    write_report(root, ASKED)
    assert "no forecast was made for this budget" in _written(root)["forecasts"]["reason"]
    _forecast(root, status="failed", reason="some-base: no such folder", cells={})
    write_report(root, ASKED)
    assert _written(root)["forecasts"] == {"source": None, "reason": "some-base: no such folder"}
    assert "some-base: no such folder" in words(root)


def test_the_margin_is_the_studys_own_unless_asked(root: Path) -> None:
    path = root / "study.yaml"
    path.write_text(path.read_text().replace("  margin: null\n", "  margin: 0.07\n", 1))
    write_report(root, Asked("30MB"))
    assert _written(root)["margin"] == 0.07
    write_report(root, Asked("30MB", 0.02, "quality"))
    assert (_written(root)["margin"], _written(root)["prefer"]) == (0.02, "quality")


def _own_data(root: Path, task: dict[str, Any]) -> None:
    """Make the study one that a study file could describe: its own data, or a task of the library."""
    plan = read_json(root / "plan.json")
    for cell in plan["cells"]:
        cell["config"]["task"] = task
    write_json(root / "plan.json", plan)


@pytest.mark.parametrize(
    "task",
    [
        {"data": "rows.jsonl", "format": "prompt_completion", "template": "``` <script> {prompt}", "max_length": 64},
        {"name": "banking77-10", "max_length": 64},
    ],
)
def test_the_study_to_paste_loads_as_the_recommended_cell(root: Path, task: dict[str, Any]) -> None:
    _own_data(root, task)
    _forecast(root)
    write_report(root, ASKED)
    [place] = _written(root)["places"]
    best, text = place["recommended"], place["study_yaml"]
    study = parse_study(read_yaml(text, "study_yaml"), folder=root)
    [planned] = planned_cells(study)
    cell = planned.cell
    assert (cell.precision, cell.adapter.rank, list(cell.adapter.targets)) == (
        best["precision"], best["rank"], best["targets"],
    )  # fmt: skip
    assert cell.train.gradient_checkpointing == best["gradient_checkpointing"]
    assert (cell.train.batch_size, cell.train.gradient_accumulation) == (
        best["batch_size"], best["gradient_accumulation"],
    )  # fmt: skip
    assert (study.seeds, study.run.gpu_memory, cell.compute_dtype, cell.storage) == ((42,), "30MB", "auto", "auto")
    markdown = (root / "report" / "report.md").read_text()
    fence = re.search(r"^(`{3,})yaml\n(.*?)^\1$", markdown, re.S | re.M)
    assert fence
    assert fence[2] == text
    assert "<script>" not in (root / "report" / "index.html").read_text()


def test_a_snippet_keeps_every_setting(root: Path) -> None:
    _own_data(root, {"name": "banking77-10", "samples": 30, "max_new_tokens": 3})
    data = read_study(root)
    for cell in data.plan["cells"]:
        text = snippet(data.study, cell, {}, "24GB")
        [planned] = planned_cells(parse_study(read_yaml(text, "text"), folder=root))
        own = plain(cell_from_config(cell["config"]))
        loaded = plain(planned.cell)
        assert {k for k in own if own[k] != loaded[k]} <= {
            "compute_dtype",
            "storage",
            "task",
            "double_quant",
            "block_size",
        }
        assert (loaded["task"]["samples"], loaded["task"]["max_new_tokens"]) == (30, 3)


def test_settings_that_cannot_be_read_back_are_said(root: Path) -> None:
    _forecast(root)
    write_report(root, ASKED)
    [place] = _written(root)["places"]
    assert place["study_yaml"] is None
    assert "banking10" in place["study_yaml_reason"]


def _call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["report", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_the_command_prints_it(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loracle.study.forecasts, "forecast", lambda layout, *_, **__: _forecast(layout.root))
    code, out, _ = _call(capsys, root, "--gpu-memory", "30MB", "--margin", "0.1", "--prefer", "memory", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["recommendation"] == _written(root)
    assert found["recommendation"]["prefer"] == "memory"
    code, out, _ = _call(capsys, root, "--gpu-memory", "30MB")
    assert out.splitlines()[0] == _written(root)["text"]
    code, out, _ = _call(capsys, root, "--json")
    assert "recommendation" not in json.loads(out)
    assert not (root / "report" / "recommendation.json").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--margin", "0.1"], "--margin: goes with --gpu-memory"),
        (["--prefer", "speed"], "--prefer: goes with --gpu-memory"),
        (["--gpu-memory", "much"], "--gpu-memory: 'much' is no amount of memory"),
        (["--gpu-memory", "1GB", "--margin", "5"], "--margin: 5 is no fraction"),
        (["--gpu-memory", "1GB", "--prefer", "sped"], "--prefer: 'sped' is nothing to prefer, did you mean 'speed'?"),
    ],
)
def test_options_that_mean_nothing_are_one_line(
    root: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    code, out, err = _call(capsys, root, *arguments)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
