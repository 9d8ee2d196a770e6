"""What classification, methods, integer precisions and chat add to a report; known truth, same bytes, nothing runs."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from pathlib import Path

import pytest
from part_two import INTEGER_LOSS, write_classification, write_integers, write_methods
from synthetic_study import BESIDE

from loracle.report import write_report
from loracle.report.evidence import read_study
from loracle.report.tables_classes import score


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classification(tmp_path_factory.mktemp("classified"))


@pytest.fixture(scope="module")
def methods(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_methods(tmp_path_factory.mktemp("methods"))


@pytest.fixture(scope="module")
def integers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_integers(tmp_path_factory.mktemp("integers"))


@pytest.fixture(scope="module", autouse=True)
def _written(classified: Path, methods: Path, integers: Path) -> None:
    for root in (classified, methods, integers):
        write_report(root)


def rows(root: Path, name: str) -> list[dict[str, str]]:
    with open(root / "report" / "tables" / f"{name}.csv", newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def page(root: Path) -> str:
    return (root / "report" / "index.html").read_text(encoding="utf-8")


def test_the_same_records_give_the_same_bytes(classified: Path, methods: Path) -> None:
    for root in (classified, methods):
        before = {p: hashlib.sha256(p.read_bytes()).digest() for p in (root / "report").rglob("*") if p.is_file()}
        write_report(root)
        assert {p: hashlib.sha256(p.read_bytes()).digest() for p in before} == before


def test_nothing_runs_and_nothing_loads(classified: Path, methods: Path, integers: Path) -> None:
    for root in (classified, methods, integers):
        html = page(root)
        assert "<script" not in html
        assert "onerror=alert" not in re.sub(r"&lt;.*?&gt;", "", html)
        assert all(value.startswith(("data:image/png", "#", *BESIDE))
                   for value in re.findall(r'<[^>]*? (?:src|srcset|href)="([^"]*)"', html))  # fmt: skip
        assert "http://" not in (root / "report" / "report.md").read_text(encoding="utf-8")
        for path in (root / "report" / "tables").glob("*.csv"):
            for row in rows(root, path.stem):
                assert not [v for v in row.values() if v.startswith(("=", "+", "@"))]


def test_confusion_counts_every_answer_once(classified: Path) -> None:
    found = rows(classified, "confusion")
    for cell in ("bf16-r8", "nf4-r8"):
        mine = [row for row in found if row["cell"] == cell]
        assert sum(int(row["count"]) for row in mine) == 60 * 3
        right = sum(int(row["count"]) for row in mine if row["reference"] == row["prediction"])
        accuracy = float(next(row for row in rows(classified, "cells") if row["cell"] == cell)["accuracy_mean"])
        assert right / 180 == pytest.approx(accuracy)
    assert (classified / "report" / "figures" / "confusion_matrix.png").exists()
    assert "Labels most often confused" in page(classified)


def test_scores_of_a_label_by_hand() -> None:
    pairs = {("a", "a"): 3, ("a", "b"): 1, ("b", "a"): 2}
    found = score(pairs, "a")
    assert (found.precision, found.recall, found.f1, found.support) == (3 / 5, 3 / 4, 6 / 9, 4)
    assert score(pairs, "b").f1 == 0.0
    assert score(pairs, "never seen").support == 0


def test_classes_agree_with_confusion(classified: Path) -> None:
    found = [row for row in rows(classified, "classes") if row["cell"] == "bf16-r8"]
    assert len(found) == 10
    assert sum(int(row["support"]) for row in found) == 60


def test_accuracy_is_the_primary_metric_beside_the_commonest_label(classified: Path) -> None:
    entries = json.loads((classified / "report" / "verdicts.json").read_text())
    asked = [e for e in entries if e["question"] == "task_metric"]
    assert [e["metric"] for e in asked] == ["accuracy", "macro_f1"]
    assert [e["primary"] for e in asked] == [True, False]
    assert asked[0]["margin"] == 0.01
    assert "over seeds alone" in asked[1]["statement"]
    assert "always saying the commonest label 10.0%" in page(classified)
    kept = next(e for e in entries if e["question"] == "gain_kept")
    assert "the gain is over guessing evenly among the labels" in kept["statement"]
    assert "guessing evenly among the labels in evaluation loss" in page(classified)


def test_many_labels_are_listed_not_drawn(tmp_path: Path) -> None:
    root = write_classification(tmp_path, labels=tuple(f"label_{i}" for i in range(41)))
    write_report(root)
    assert not (root / "report" / "figures" / "confusion_matrix.png").exists()
    assert "41 labels are too many to draw" in page(root)
    assert "Labels most often confused" in page(root)


def test_methods_stand_beside_lora(methods: Path) -> None:
    found = {row["cell"]: row for row in rows(methods, "methods")}
    assert found["bf16-r8"]["against"] == found["nf4-r8"]["against"] == ""
    full, dora, prefix = (found[f"bf16-{name}"] for name in ("full", "dora-r8", "prefix-tuning"))
    assert (full["against"], full["against_differs_in"], full["rank"], full["targets"]) == ("bf16-r8", "", "", "")
    assert dora["against_differs_in"] == "learning_rate"
    assert (prefix["against_differs_in"], prefix["rank"]) == ("", "")
    assert float(full["eval_loss_change_high_percent"]) < 0 < float(prefix["eval_loss_change_low_percent"])
    assert float(full["trainable_percent"]) == pytest.approx(100 * 3_500_000 / 3_524_576)
    assert float(full["tensor_bytes_sum"]) == 14_000_000 + 4 * 4 * 3_500_000
    assert (full["peak_allocated_bytes"], full["peak_reason"]) == ("", "a CPU keeps no count of peak memory")
    assert found["bf16-r8"]["metric"] == "f1"
    assert float(prefix["low"]) < float(prefix["difference_vs_lora"]) < float(prefix["high"])
    assert "Methods side by side" in page(methods)
    assert "bf16-full" in page(methods)


def test_one_method_needs_no_section(classified: Path) -> None:
    assert "Methods side by side" not in page(classified)
    assert len(rows(classified, "methods")) == 2


def test_squad_examples_show_the_question_and_all_answers(methods: Path) -> None:
    html = page(methods)
    assert "Question: what is 0?" in html
    assert "the answer | answer" in html
    assert "references" in html
    assert html.count('<p class="quote">…') == 4


def test_partly_right_answers_say_so(methods: Path) -> None:
    from loracle.report import answers

    data = read_study(methods)
    run = next(r for r in data.runs if r.predictions is not None)
    assert run.predictions is not None
    row = int((run.predictions.scores["f1"] == 0.5).argmax())
    assert answers._mark(run, row) == "partly right, F1 0.50"


def test_a_study_of_one_cell_still_shows_answers(tmp_path: Path) -> None:
    root = write_methods(tmp_path)
    plan = json.loads((root / "plan.json").read_text())
    plan["cells"] = plan["cells"][:1]
    plan["runs"] = [run for run in plan["runs"] if run["cell"] == "bf16-r8"]
    (root / "plan.json").write_text(json.dumps(plan))
    write_report(root)
    assert "the first items that were answered" in page(root)


def test_a_broken_precision_is_named_at_the_top(integers: Path) -> None:
    html = page(integers)
    text = "int2: broken on this base before training (lost 76% of what it knows over guessing)."
    assert html.index(text) < html.index("What is decided")
    assert "int3: broken" not in html
    lost = {row["precision"]: row["knowledge_lost"] for row in rows(integers, "cells")}
    assert lost["fp32"] == ""
    assert set(lost) == set(INTEGER_LOSS)
    values = [float(lost[name]) for name in ("int8", "int4", "int3", "int2")]
    assert values == pytest.approx([0.0, 0.0088, 0.0531, 0.7612], abs=1e-4)
    entries = json.loads((integers / "report" / "verdicts.json").read_text())
    told = {e["scope"]["precision"] for e in entries if "broken on this base" in e["statement"]}
    assert told == {"int2"}


def test_latency_is_there_where_it_was_measured(integers: Path, methods: Path) -> None:
    found = rows(integers, "latency")
    assert len(found) == 5
    assert {float(row["latency_mean_s"]) for row in found} == {1.25}
    assert {row["runs"] for row in found} == {"3"}
    assert "Latency of answers" in page(integers)
    assert rows(methods, "latency") == []
    assert "Latency of answers" not in page(methods)
