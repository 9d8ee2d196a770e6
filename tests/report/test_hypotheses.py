"""Hypotheses, failure modes, the guard and the table of fidelity in the report, from folders."""

from __future__ import annotations

import csv
import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from synthetic_study import write_study

from loracle.report import write_report
from loracle.verdict.hypotheses import HYPOTHESES


def page(root: Path) -> str:
    text = re.sub(
        r"<style>.*?</style>|<[^>]+>", " ", (root / "report" / "index.html").read_text(encoding="utf-8"), flags=re.S
    )
    return " ".join(html.unescape(text).split())


def rows(root: Path, name: str) -> list[dict[str, str]]:
    with open(root / "report" / "tables" / f"{name}.csv", newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def edit(path: Path, change: Any) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_the_three_hypotheses_are_answered_in_every_report(full: Path, partial: Path) -> None:
    for root in (full, partial):
        entries = json.loads((root / "report" / "verdicts.json").read_text())
        wholes = {e["question"]: e for e in entries if e["scope"].get("part") == "whole"}
        assert tuple(wholes) == HYPOTHESES
        text, markdown = page(root), (root / "report" / "report.md").read_text(encoding="utf-8")
        for entry in wholes.values():
            assert entry["statement"] in text
        assert "## Hypotheses" in markdown
        assert "## Failure modes" in markdown


def test_h1_and_h3_from_a_folder_with_their_figures(full: Path) -> None:
    text = page(full)
    assert "H1: if the cosine of the updates learned with LoRA and with QLoRA is above 0.95" in text
    assert "Below 0.95 and yet no degradation beyond the margin in 1 cell (nf4 at rank 16" in text
    assert "Likeness of the updates from early to late layers" in text
    assert "0, 3, 5" in text
    assert "Not asked: no matrix was quantized by itself" in text


def test_hypotheses_do_not_count_among_the_studys_own_verdicts(full: Path) -> None:
    entries = json.loads((full / "report" / "verdicts.json").read_text())
    own = [e for e in entries if e["question"] not in HYPOTHESES]
    tally = {v: sum(e["verdict"] == v for e in own) for v in ("supported", "rejected", "undecided")}
    assert ", ".join(f"{n} {v}" for v, n in tally.items() if n) in (full / "report" / "report.md").read_text(
        encoding="utf-8"
    )


def test_fidelity_by_rank_in_one_table(full: Path, partial: Path) -> None:
    text = page(full)
    assert "cell rank token match ≥ 0.95? identical embedding cosine ≥ 0.95? degradation within 5%? seeds" in text
    assert re.search(
        r"nf4-r16-qkv 16 0\.981 \(0\.979 to 0\.983\) yes 96\.1% 0\.991 yes \+2\.0% \(\+0\.3% to \+3\.7%\) supported 3",
        text,
    )
    assert "(no answers were compared)" in page(partial)


@pytest.fixture(scope="module")
def confounded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quantized arm checkpoints and has another learning rate, and another device in its probes."""
    root = write_study(tmp_path_factory.mktemp("confounded"), ranks=(4, 8))

    def plan(value: dict[str, Any]) -> None:
        for cell in value["cells"]:
            if cell["precision"] == "nf4":
                cell["config"]["train"] |= {"gradient_checkpointing": True, "learning_rate": 1e-3}

    edit(root / "plan.json", plan)
    write_report(root)
    return root


def test_confounded_arms_get_no_verdict_anywhere(confounded: Path) -> None:
    entries = json.loads((confounded / "report" / "verdicts.json").read_text())
    about = [
        e
        for e in entries
        if str(e["arm"]).startswith("nf4") and e["question"] != "rank_enough" and not str(e["question"]).startswith("H")
    ]
    assert {e["verdict"] for e in about} == {"confounded"}
    assert {e["question"] for e in about} == {
        "degradation",
        "gain_kept",
        "rank_threshold",
        "similarity",
        "memory",
        "speed",
    }
    text = page(confounded)
    assert "every comparison with 16-bit is confounded" in text
    assert re.search(r"nf4-r8-qkv 8 0\.961 \(0\.959 to 0\.963\) confounded", text)
    pairs = [
        row
        for row in rows(confounded, "comparisons")
        if row["arm"].startswith("nf4") and row["reference"].startswith("bf16")
    ]
    assert {row["confounded"] for row in pairs} == {"yes"}
    assert {row["differences"] for row in pairs} == {"precision, learning_rate, gradient_checkpointing"}
    assert "Found: confounded arms" in text
    assert {e["verdict"] for e in entries if e["question"] == "H1"} <= {"confounded"}


def test_the_published_pair_without_a_twin_is_listed(tmp_path: Path) -> None:
    root = write_study(tmp_path, ranks=(8,))

    def plan(value: dict[str, Any]) -> None:
        for cell in value["cells"]:
            if cell["precision"] == "nf4":
                cell["config"] |= {"compute_dtype": "bfloat16"}
                cell["config"]["train"]["gradient_checkpointing"] = True
                cell |= {"reference": None, "differences": []}

    edit(root / "plan.json", plan)
    write_report(root)
    assert "precision, compute_dtype, gradient_checkpointing confounded" in page(root)
    entries = json.loads((root / "report" / "verdicts.json").read_text())
    asked = [e for e in entries if e["question"] in ("degradation", "memory", "speed")]
    assert {e["question"] for e in asked} == {"degradation", "memory", "speed"}
    assert {e["verdict"] for e in asked} == {"confounded"}
    assert all("also differ in compute_dtype and gradient_checkpointing" in e["statement"] for e in asked)


def test_failure_modes_of_a_folder(unfinished: Path, full: Path) -> None:
    found = {row["mode"]: row for row in rows(unfinished, "failure_modes")}
    assert found["divergence"]["state"] == "found"
    assert "loss is not finite at step 17" in found["divergence"]["symptom"]
    assert "Found: divergence" in page(unfinished)
    clean = {row["mode"]: row["state"] for row in rows(full, "failure_modes")}
    assert "found" not in clean.values()
    assert clean["extreme layer sensitivity"] == "not checked"
    assert "Found:" not in page(full)


def test_likeness_along_training_where_it_was_measured(tmp_path: Path, full: Path) -> None:
    assert "Likeness along training was not measured" in page(full)
    root = write_study(tmp_path, ranks=(8,))

    def similarity(value: dict[str, Any]) -> None:
        for pair in value["pairs"]:
            first = 0.99 if pair["kind"] == "null" else 0.97
            pair["along"] = [{"step": 30, "cosine": first}, {"step": 60, "cosine": first - 0.05}]

    edit(root / "diagnose" / "similarity.json", similarity)
    write_report(root)
    text = page(root)
    assert "cell step 30 step 60 pairs nf4-r8-qkv 0.970 (0.990) 0.920 (0.940) 3" in text
    assert "along training was not measured" not in text
