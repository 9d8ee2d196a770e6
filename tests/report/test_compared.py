"""Cells held against each other: memory on one ground, relative speed, the frontier, three layers."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from synthetic_study import write_study

from loracle.report import write_report
from loracle.report.columns import Table
from loracle.report.evidence import read_study
from loracle.report.footprint import best_basis, footprints, shared_basis
from loracle.report.tables_compared import quality_memory


def rows(root: Path, name: str) -> list[dict[str, str]]:
    with open(root / "report" / "tables" / f"{name}.csv", newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def change(path: Path, how: Any) -> None:
    value = json.loads(path.read_text())
    how(value)
    path.write_text(json.dumps(value))


def test_memory_by_rank_is_the_reduction_of_the_probes(full: Path) -> None:
    found = rows(full, "memory_by_rank")
    assert [row["rank"] for row in found] == ["2", "4", "8", "16"]
    for row in found:
        peaks = []
        for cell in (row["reference"], row["cell"]):
            peaks.append(json.loads((full / "probes" / cell / "record.json").read_text())["peak_allocated_bytes"])
        assert (row["basis"], row["device"], row["storage"]) == ("measured peak", "NVIDIA H200", "quantized")
        assert [int(row["reference_bytes"]), int(row["bytes"])] == peaks
        assert float(row["reduction_percent"]) == pytest.approx(100 * (1 - peaks[1] / peaks[0]))


def test_memory_is_never_compared_on_two_grounds(full: Path, tmp_path: Path) -> None:
    root = write_study(tmp_path, ranks=(4, 8))
    change(
        root / "probes" / "nf4-r4-qkv" / "record.json",
        lambda p: p.update(peak_allocated_bytes=None, peak_reason="torn"),
    )
    change(root / "probes" / "nf4-r8-qkv" / "record.json", lambda p: p.update(device="another GPU"))
    write_report(root)
    assert [row["basis"] for row in rows(root, "memory_by_rank")] == ["predicted parts", "predicted parts"]


def test_footprints_choose_the_best_shared_ground() -> None:
    peak = {"component": "peak", "storage": "quantized", "device": "a GPU", "predicted_bytes": 9, "measured_bytes": 10}
    parts = {
        "component": "sum_of_known",
        "storage": "quantized",
        "device": "a GPU",
        "predicted_bytes": 7,
        "measured_bytes": 6,
    }
    unmeasured, kept = peak | {"measured_bytes": None}, peak | {"storage": "dequantized", "measured_bytes": 99}
    table = Table(
        "memory", [{"cell": "a"} | peak, {"cell": "a"} | kept, {"cell": "b"} | unmeasured, {"cell": "c"} | parts]
    )
    found = footprints(table)
    assert found["a"]["measured peak"].bytes == 10
    assert shared_basis(found, ["a"]) == "measured peak"
    assert shared_basis(found, ["a", "b"]) == "predicted peak"
    assert shared_basis(found, ["a", "c"]) is None
    assert shared_basis(found, []) is None
    assert best_basis(found, ["b", "c"]) == "predicted peak"
    assert best_basis(found, ["unknown"]) is None


def test_relative_speed_is_of_like_probes_only(full: Path, tmp_path: Path) -> None:
    found = {row["cell"]: row for row in rows(full, "speed")}
    assert float(found["nf4-r8-qkv"]["relative_speed"]) == pytest.approx(41 / 66)
    assert (found["nf4-r8-qkv"]["s_per_step"], found["nf4-r8-qkv"]["reference"]) == ("0.066", "bf16-r8-qkv")
    assert found["bf16-r8-qkv"]["relative_speed"] == ""
    root = write_study(tmp_path, ranks=(8,))
    change(root / "probes" / "nf4-r8-qkv" / "record.json", lambda probe: probe.update(gradient_checkpointing=True))
    write_report(root)
    other = next(row for row in rows(root, "speed") if row["cell"] == "nf4-r8-qkv")
    assert (other["s_per_step"], other["relative_speed"]) == ("0.066", "")


def test_the_first_middle_and_last_layer_are_marked(full: Path) -> None:
    places = {row["layer"]: row["place"] for row in rows(full, "similarity_by_layer") if row["cell"] == "nf4-r8-qkv"}
    assert places == {"0": "first", "1": "", "2": "", "3": "middle", "4": "", "5": "last"}
    page = (full / "report" / "index.html").read_text(encoding="utf-8")
    assert "nf4-r8-qkv, middle" in page


def test_answers_have_both_of_the_documents_thresholds(full: Path) -> None:
    found = {
        row["cell"]: (row["at_least_0_95"], row["embedding_cosine_at_least_0_95"]) for row in rows(full, "agreement")
    }
    assert found["nf4-r2-qkv"] == ("no", "no")
    assert found["nf4-r4-qkv"] == ("no", "yes")
    assert found["nf4-r16-qkv"] == ("yes", "yes")


def test_the_frontier_has_its_probability(full: Path) -> None:
    found = [row for row in rows(full, "quality_memory") if row["metric"] == "eval_loss"]
    assert len(found) == 8
    assert {row["memory_basis"] for row in found} == {"measured peak"}
    cheapest = min(found, key=lambda row: int(row["memory_bytes"]))
    assert float(cheapest["frontier_probability"]) == 1.0
    assert all(0 <= float(row["frontier_probability"]) <= 1 for row in found)
    assert {row["metric"] for row in rows(full, "quality_memory")} == {"eval_loss", "label_accuracy"}


def test_two_seeds_have_no_probability(partial: Path) -> None:
    assert {row["frontier_probability"] for row in rows(partial, "quality_memory")} == {""}
    assert {row["memory_basis"] for row in rows(partial, "quality_memory")} == {"predicted parts"}


def test_cells_of_two_bases_share_no_frontier(tmp_path: Path) -> None:
    root = write_study(tmp_path, ranks=(4, 8))

    def another(plan: dict[str, Any]) -> None:
        for cell in plan["cells"][2:]:
            cell["config"]["base"]["name"] = "another"

    change(root / "plan.json", another)
    data = read_study(root)
    memory = Table("memory", [])
    assert {row["base"] for row in quality_memory(data, memory)} == {"gpt2-demo", "another"}
    write_report(root)
    for base in ("gpt2-demo", "another"):
        mine = [row for row in rows(root, "quality_memory") if row["base"] == base and row["metric"] == "eval_loss"]
        assert len(mine) == 2
        assert max(float(row["frontier_probability"]) for row in mine) == 1.0


def test_nothing_known_of_memory_is_said_so(tmp_path: Path) -> None:
    root = write_study(tmp_path, ranks=(4,), probes=False)
    change(root / "plan.json", lambda plan: [c.update(ledger={}, predicted_bytes=None) for c in plan["cells"]])
    write_report(root)
    assert [(row["basis"], row["reason"]) for row in rows(root, "memory_by_rank")] == [("", "not probed")]
    assert not (root / "report" / "figures" / "quality_against_memory.png").exists()
    page = (root / "report" / "index.html").read_text(encoding="utf-8")
    assert (
        "No figure “Quality against memory”: no cell has both a finished run and a measured or predicted memory."
        in page
    )
    assert "not comparable: not probed" in page
