"""Layer variants in the report: the basis they stand on, the drop on the same layers, and no table where there is one variant."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from synthetic_study import write_study

from loracle.report import write_report

TARGETS = {4: ["q", "v"], 8: ["q", "k", "v", "o"]}


def variants(root: Path, sizes: dict[int, int]) -> Path:
    """The synthetic study with its two ranks on targets of their own; ``sizes`` are their parameters."""
    write_study(root, ranks=(4, 8))
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
    write_report(root)
    return root / "report"


def rows_of(report: Path) -> list[dict[str, str]]:
    with open(report / "tables" / "layer_variants.csv", newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_variants_of_equal_size(tmp_path: Path) -> None:
    report = variants(tmp_path, {4: 24_000, 8: 24_576})
    rows = rows_of(report)
    assert [(r["basis"], r["precision"], r["rank"]) for r in rows] == [
        ("equal parameters", p, r) for p in ("bf16", "nf4") for r in ("4", "8")
    ]
    assert {r["differs_in"] for r in rows} == {"where the parameters sit"}
    assert [bool(r["drop_percent"]) for r in rows] == [False, False, True, True]
    assert {r["drop_n"] for r in rows[2:]} == {"3"}
    assert {r["best"] for r in rows} <= {"best", "may be best", "not best"}
    for page in ("index.html", "report.md"):
        text = (report / page).read_text(encoding="utf-8")
        assert "Layer variants" in text
        assert "equal parameters (± 1.2%)" in text
        assert "variants differ in: where the parameters sit." in text


def test_sizes_that_are_not_equal_and_a_study_of_one_variant(tmp_path: Path, full: Path) -> None:
    assert rows_of(variants(tmp_path, {4: 24_000, 8: 48_000})) == []
    assert rows_of(full / "report") == []
    assert "Layer variants" not in (full / "report" / "index.html").read_text(encoding="utf-8")
