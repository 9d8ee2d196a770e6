"""Where rank is needed, in the report: ranks at equal parameters, the study file that tries them, arms that did."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from synthetic_study import write_study

from loracle.report import proposals, write_report
from loracle.report.allocation import grids
from loracle.report.evidence import read_study
from loracle.report.proposals import short_names, study_file
from loracle.report.tables import all_tables
from loracle.report.tables_allocation import propose
from loracle.spec.factors import expand
from loracle.spec.load import load_study
from loracle.verdict import decide

NEED = {"q": (1.5, 0.2), "k": (2.0, 0.2), "v": (5.5, 9.0)}  # effective rank, gradient norm


def sites(scale: float = 1.0) -> list[dict[str, Any]]:
    return [
        {
            "name": f"transformer.h.{layer}.attn.c_attn.{kind}", "module": f"transformer.h.{layer}.attn.c_attn", "layer": layer,
            "kind": kind, "params_per_rank": 384, "width": 192, "rank": 8, "frobenius": 1.0, "spectral": 0.5,
            "stable_rank": 1.2, "effective_rank": need[0] * scale, "energy": [0.5, 1.0], "gradient_norm": need[1],
        }
        for layer in range(2)
        for kind, need in NEED.items()
    ]  # fmt: skip


def measured(root: Path, **changes: Any) -> Path:
    """Adds importance.json to a study folder."""
    plan = json.loads((root / "plan.json").read_text())
    for cell in plan["cells"]:
        cell["config"]["adapter"]["alpha"] = 2.0 * cell["rank"]  # as a plan has it
    (root / "plan.json").write_text(json.dumps(plan))
    cells = [cell["id"] for cell in plan["cells"]]
    runs = [run for run in plan["runs"] if run["role"] == "run"]
    content = {
        "schema": 1,
        "spectra": [
            {"run": r["id"], "cell": r["cell"], "seed": r["seed"], "sites": sites(r["seed"] / 43)} for r in runs
        ],
        "gradients": [{"cell": cells[0], "cells": cells, "tokens": 100, "sites": sites()}],
    } | changes
    (root / "diagnose").mkdir(exist_ok=True)
    (root / "diagnose" / "importance.json").write_text(json.dumps(content))
    return root


def read(root: Path) -> tuple[Any, Any, Any]:
    """(data, verdicts, tables), without the figures' seconds."""
    data = read_study(root)
    entries = decide(data.evidence())
    return data, entries, all_tables(data, entries)


def table(report: Path, name: str) -> list[dict[str, str]]:
    with open(report / "tables" / f"{name}.csv", newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = measured(write_study(tmp_path_factory.mktemp("ranks"), ranks=(4, 8), diagnose=False, probes=False))
    write_report(root)
    return root / "report"


def test_the_table_has_both_measures_and_ranks_at_equal_parameters(report: Path) -> None:
    rows = table(report, "rank_allocation")
    assert len(rows) == 6
    uniform = int(rows[0]["uniform_rank"])
    assert uniform in (4, 8)
    assert rows[0]["learned_cell"].split("-")[1] == "r8"  # the largest rank sees most directions
    for measure in ("spectrum", "gradient"):
        assert sum(int(row[f"{measure}_rank"]) for row in rows) == 6 * uniform
    by_kind = {row["kind"]: row for row in rows}
    assert int(by_kind["v"]["spectrum_rank"]) > int(by_kind["k"]["spectrum_rank"]) >= int(by_kind["q"]["spectrum_rank"])
    assert int(by_kind["v"]["gradient_rank"]) > int(by_kind["v"]["spectrum_rank"])
    assert float(by_kind["v"]["effective_rank_mean"]) == pytest.approx(5.5)


def test_page_and_markdown_show_ranks_by_layer_and_what_to_paste(report: Path) -> None:
    page, text = (report / "index.html").read_text(), (report / "report.md").read_text()
    for shown in (page, text):
        assert "Where rank is needed" in shown
        assert "Ranks by layer, proposed for" in shown
        assert "Ranks by gradient, to paste under adapter" in shown
    assert "      h.0.attn.c_attn.v: " in text
    assert "Ranks by layer, tried" not in text


def test_the_proposal_is_a_study_that_is_accepted_as_it_is(report: Path) -> None:
    path = report / "proposals" / "rank_pattern.yaml"
    study = load_study(path)
    assert study.base.model == "gpt2-demo"
    assert study.task.name == "banking10"
    assert study.seeds == (42, 43, 44)
    assert [q.name for q in study.questions] == ["allocation"]
    cells = [cell for _, cell in expand(study)]
    uniform, spectrum, gradient = (cell.adapter for cell in cells)
    assert not uniform.rank_pattern
    rows = table(report, "rank_allocation")
    for arm, measure in ((spectrum, "spectrum"), (gradient, "gradient")):
        named = {row["name"].removeprefix("transformer."): int(row[f"{measure}_rank"]) for row in rows}
        assert {name: arm.rank_pattern.get(name, arm.rank) for name in named} == named
        assert arm.alpha_at(3) / 3 == pytest.approx(uniform.scale)  # the scale stays, whatever the rank
    assert path.read_text().startswith("# Do ranks by layer help, at equal parameters and scale? Proposed for ")


def test_the_same_records_give_the_same_file(report: Path) -> None:
    data, entries, _ = read(report.parent)
    found = propose(data, entries)
    assert found is not None
    assert study_file(data, found) == ((report / "proposals" / "rank_pattern.yaml").read_text(), "")


def test_a_measure_that_says_nothing_gives_its_reason(tmp_path: Path) -> None:
    root = measured(write_study(tmp_path, ranks=(4,), diagnose=False, probes=False), spectra=[])
    data, entries, tables = read(root)
    [grid] = grids(data, entries, tables)
    assert "No ranks by spectrum: no run has finished." in grid.note
    path = root / "proposal.yaml"
    proposals.write(path, proposals.proposed(data, entries))
    assert len(yaml.safe_load(path.read_text())["vary"]["rank_pattern"]) == 2
    cells = [cell.id for cell in data.cells]
    flat = [{**site, "gradient_norm": 1.0} for site in sites()]
    data, entries, _ = read(measured(root, spectra=[], gradients=[{"cell": cells[0], "cells": cells, "sites": flat}]))
    assert study_file(data, propose(data, entries)) == (None, "neither measure would change a rank")  # type: ignore[arg-type]
    proposals.write(path, proposals.proposed(data, entries))
    assert not path.exists()  # an older one goes


def test_without_measures_there_is_nothing(tmp_path: Path) -> None:
    data, entries, tables = read(write_study(tmp_path, ranks=(4,), diagnose=False, probes=False))
    assert propose(data, entries) is None
    assert grids(data, entries, tables) == []


def test_arms_with_ranks_by_layer_stand_beside_one_rank(tmp_path: Path) -> None:
    root = write_study(tmp_path, ranks=(4, 8), diagnose=False, probes=False)
    plan = json.loads((root / "plan.json").read_text())
    for cell in plan["cells"]:  # rank 8 becomes rank 4 with a pattern
        if cell["rank"] == 8:
            cell["rank"] = cell["config"]["adapter"]["rank"] = 4
            cell["config"]["adapter"] |= {"rank_pattern": {"h.0": 8}}
            cell["trainable_params"] = 6144 * 4 + 12
    (root / "plan.json").write_text(json.dumps(plan))
    for path in root.glob("runs/*-r8-*/record.json"):
        record = json.loads(path.read_text())
        record["config"]["adapter"] |= {"rank": 4, "rank_pattern": {"h.0": 8}}
        path.write_text(json.dumps(record))
    data, entries, tables = read(root)
    rows = tables["rank_patterns"].rows
    assert [(row["cell"], row["against"]) for row in rows] == [
        ("bf16-r8-qkv", "bf16-r4-qkv"),
        ("nf4-r8-qkv", "nf4-r4-qkv"),
    ]
    assert {row["against_differs_in"] for row in rows} == {None}  # 0.05% more parameters is as many
    for row in rows:
        assert row["eval_loss_change_low_percent"] < row["eval_loss_change_percent"] < 0
        assert row["difference_n"] == 3
    assert [grid.title for grid in grids(data, entries, tables)] == ["Ranks by layer, tried"]


def test_short_names_are_as_people_write_them() -> None:
    assert short_names(["model.layers.0.q", "model.layers.1.q"]) == ["layers.0.q", "layers.1.q"]
    assert short_names(["layers.0.q", "layers.1.q"]) == ["layers.0.q", "layers.1.q"]  # never a number first
    assert short_names(["a.x", "b.x"]) == ["a.x", "b.x"]
    assert short_names(["fc"]) == ["fc"]
