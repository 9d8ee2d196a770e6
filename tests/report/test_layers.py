"""Layer variants in the report: the basis they stand on, the drop on the same layers, and no table where there is one variant."""

from __future__ import annotations

import json
from pathlib import Path

from synthetic_study import write_study

from loracle.report.columns import COLUMNS, Table
from loracle.report.evidence import read_study
from loracle.report.layers import grid
from loracle.report.tables_layers import layer_variants

TARGETS = {4: ["q", "v"], 8: ["q", "k", "v", "o"]}


def variants(root: Path, sizes: dict[int, int]) -> Table:
    """The synthetic study with its two ranks on targets of their own; ``sizes`` are their parameters."""
    write_study(root, ranks=(4, 8), diagnose=False)
    plan = json.loads((root / "plan.json").read_text())
    for cell in plan["cells"]:
        rank = cell["rank"]
        cell |= {"targets": TARGETS[rank], "trainable_params": sizes[rank]}
        cell["config"]["adapter"] |= {"targets": TARGETS[rank], "alpha": 2 * rank}
    (root / "plan.json").write_text(json.dumps(plan))
    for path in root.glob("runs/*/record.json"):
        record = json.loads(path.read_text())
        rank = record["config"]["adapter"]["rank"]
        record["config"]["adapter"] |= {"targets": TARGETS[rank], "alpha": 2 * rank}
        path.write_text(json.dumps(record))
    return table(root)


def table(root: Path) -> Table:
    return Table("layer_variants", list(layer_variants(read_study(root))))


def test_variants_of_equal_size(tmp_path: Path) -> None:
    found = variants(tmp_path, {4: 24_000, 8: 24_576})
    assert [(r["basis"], r["precision"], r["rank"]) for r in found.rows] == [
        ("equal parameters", p, r) for p in ("bf16", "nf4") for r in (4, 8)
    ]
    assert {r["differs_in"] for r in found.rows} == {"where the parameters sit"}
    assert [r.get("drop_percent") is not None for r in found.rows] == [False, False, True, True]
    assert all(r["drop_low_percent"] < r["drop_percent"] < r["drop_high_percent"] for r in found.rows[2:])
    assert {r["best"] for r in found.rows} <= {"best", "may be best", "not best"}
    assert found.to_csv().startswith(",".join(COLUMNS["layer_variants"]))
    shown = grid(found)
    assert shown is not None
    assert shown.rows[0][0].text == "equal parameters (± 1.2%)"
    assert "At equal parameters variants differ in: where the parameters sit." in shown.note


def test_sizes_that_are_not_equal_and_a_study_of_one_variant(tmp_path: Path, full: Path) -> None:
    assert variants(tmp_path, {4: 24_000, 8: 48_000}).rows == []
    assert grid(table(full)) is None
    assert "Layer variants" not in (full / "report" / "index.html").read_text(encoding="utf-8")
