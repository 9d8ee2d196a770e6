"""The report as a whole: what is written, that it is the same each time, inert, offline and honest about gaps."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic_study import BESIDE, HOSTILE, write_study

from loracle.base.errors import StoreError
from loracle.report import write_report
from loracle.report.markdown import BODIES
from loracle.report.page import TEMPLATES
from loracle.report.sections import SECTIONS
from loracle.report.tables import COLUMNS

FIGURES = (
    "loss_curves.png", "memory_comparison.png", "metric_by_rank.png", "quality_against_memory.png",
    "rank_threshold_plot.png", "weight_similarity_matrix.png", "weight_similarity_by_layer.png",
)  # fmt: skip


class Page(HTMLParser):
    """Tags with their attributes, visible text, and what the page would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read_page(root: Path) -> Page:
    return Page((root / "report" / "index.html").read_text(encoding="utf-8"))


def words(root: Path) -> str:
    """The page's visible text, single-spaced."""
    return " ".join(" ".join(read_page(root).text).split())


def rows(root: Path, name: str) -> list[dict[str, str]]:
    with open(root / "report" / "tables" / f"{name}.csv", newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_everything_is_written(full: Path) -> None:
    report = full / "report"
    names = set(contents(report))
    assert names == {
        "index.html", "report.md", "verdicts.json", "MODEL_CARD.md", "DATA_CARD.md",
        *(f"figures/{name}" for name in FIGURES), *(f"tables/{name}.csv" for name in COLUMNS),
    }  # fmt: skip
    assert all((report / "figures" / name).read_bytes().startswith(b"\x89PNG") for name in FIGURES)
    entries = json.loads((report / "verdicts.json").read_text())
    assert {e["question"] for e in entries} >= {"degradation", "rank_threshold", "similarity"}


def test_both_renderings_have_the_same_sections_and_name_the_files_beside_them(full: Path) -> None:
    names = [section.id for section in SECTIONS]
    assert names == list(BODIES)
    assert sorted(names) == sorted(path.stem for path in (TEMPLATES / "sections").iterdir())
    markdown, page = ((full / "report" / name).read_text() for name in ("report.md", "index.html"))
    for name in ("MODEL_CARD.md", "DATA_CARD.md", "verdicts.json"):
        assert f"[{name}]({name})" in markdown
        assert f'<a href="{name}">' in page
    headings = {line.removeprefix("## ") for line in markdown.splitlines() if line.startswith("## ")}
    assert headings - {"Recommendation"} == {section.title for section in SECTIONS if f'id="{section.id}"' in page}


def test_page_runs_nothing_and_loads_nothing(full: Path, unfinished: Path) -> None:
    for root in (full, unfinished):
        page = read_page(root)
        names = {tag for tag, _ in page.tags}
        assert not names & {"script", "link", "iframe", "object", "embed", "form", "base", "svg"}
        for tag, attributes in page.tags:
            assert not [a for a in attributes if a.startswith("on") or a == "style"], (tag, attributes)
            for name in ("src", "srcset", "href"):
                value = attributes.get(name)
                if value is not None:
                    assert value.startswith(("data:image/png;base64,", "#", *BESIDE))
        assert sum(tag == "img" for tag, _ in page.tags) == len(FIGURES)


def test_policy_allows_this_style_sheet_alone(full: Path) -> None:
    import base64

    html = (full / "report" / "index.html").read_text(encoding="utf-8")
    style = re.search(r"<style>(.*?)</style>", html, re.S)
    assert style
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    policy = next(a["content"] for t, a in read_page(full).tags if t == "meta" and "http-equiv" in a)
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_hostile_text_is_shown_not_run(full: Path) -> None:
    html = (full / "report" / "index.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert "\u202e" not in html
    assert HOSTILE[0] in "".join(read_page(full).text)
    markdown = (full / "report" / "report.md").read_text(encoding="utf-8")
    assert "http://" not in markdown
    assert "<script" not in markdown
    assert "javascript:" not in markdown
    targets = re.findall(r"(?<!\\)\]\(([^)]*)\)", markdown)
    assert targets
    assert all(target.startswith(BESIDE) for target in targets)


def test_markdown_tables_keep_their_shape(full: Path, unfinished: Path) -> None:
    for root in (full, unfinished):
        width = None
        for line in (root / "report" / "report.md").read_text(encoding="utf-8").splitlines():
            if not line.startswith("|"):
                width = None
                continue
            found = len(re.findall(r"(?<!\\)\|", line))
            assert width in (None, found), line
            width = found


def test_no_csv_cell_is_a_formula(full: Path, unfinished: Path) -> None:
    for root in (full, unfinished):
        for name in COLUMNS:
            for row in rows(root, name):
                for value in row.values():
                    assert not value.startswith(("=", "+", "@"))
                    assert not value.startswith("-") or float(value) < 0
    audit = {row["field"]: row["value"] for row in rows(full, "data_audit")}
    assert audit["dropped.=unknown label"] == "1"
    assert audit["labels.4"].startswith("'=cmd")
    failed = next(row for row in rows(unfinished, "runs") if row["status"] == "failed")
    assert failed["reason"].startswith("'=reload")


def test_columns_are_the_documented_ones(full: Path) -> None:
    for name, columns in COLUMNS.items():
        header = (full / "report" / "tables" / f"{name}.csv").read_text(encoding="utf-8").splitlines()[0]
        assert header == ",".join(columns)
    assert len(rows(full, "runs")) == 28
    assert len(rows(full, "cells")) == 8
    assert len(rows(full, "learning")) == 24
    assert len(rows(full, "similarity_by_layer")) == 4 * 6
    assert {row["at_least_0_95"] for row in rows(full, "agreement")} == {"yes", "no"}


def test_numbers_stay_numbers(full: Path) -> None:
    cell = rows(full, "cells")[1]
    assert float(cell["eval_loss_low"]) < float(cell["eval_loss_mean"]) < float(cell["eval_loss_high"])
    record = json.loads((full / "runs" / "nf4-r2-qkv-s42" / "record.json").read_text())
    run = next(row for row in rows(full, "runs") if row["run"] == "nf4-r2-qkv-s42")
    assert float(run["eval_loss"]) == record["eval_loss"]
    learning = next(row for row in rows(full, "learning") if row["run"] == "nf4-r2-qkv-s42")
    assert float(learning["eval_loss_change"]) < 0
    assert float(learning["chance"]) == 0.1


def test_every_planned_run_is_counted(unfinished: Path) -> None:
    cells = rows(unfinished, "cells")
    count = {
        state: sum(int(c[state]) for c in cells)
        for state in ("planned", "done", "diverged", "oom", "failed", "interrupted", "not_run")
    }
    assert count == {
        "planned": 24, "done": 19, "diverged": 1, "oom": 1, "failed": 1, "interrupted": 1, "not_run": 1,
    }  # fmt: skip
    text = words(unfinished)
    assert "19 of 24 planned runs done" in text
    assert "of 24 planned runs 19 are done; 1 diverged, 1 out of memory, 1 failed, 1 interrupted and 1 not run." in text
    for run in ("nf4-r2-qkv-s42", "nf4-r16-qkv-s43", "nf4-r4-qkv-s44", "bf16-r4-qkv-s43", "bf16-r16-qkv-s44"):
        assert run in text
    assert "needs at least 1.2 GB" in text
    assert "no record was written" in text


def test_learning_is_shown_beside_base_and_chance(full: Path) -> None:
    text = words(full)
    assert "Of 24 finished runs, every one ended below the untrained base in evaluation loss." in text
    assert "guessing among the labels 10.0%" in text
    assert "seed 42 seed 43 seed 44" in text


def test_a_likeness_never_stands_without_its_null(full: Path, partial: Path) -> None:
    assert re.search(r"above 0\.95 · null 0\.9\d\d", words(full))
    assert "no null" in words(partial)


def test_partial_study_says_what_is_missing(partial: Path) -> None:
    text = words(partial)
    for sentence in (
        "With 2 seeds there is no interval over seeds",
        "No task metric was measured",
        "The learned updates were not compared",
        "Memory and speed were not probed",
        "confusion_matrix.png no finished run has a classification head",
        "No figure “Task metric by rank”",
        "not measured: not probed",
    ):
        assert sentence in text
    figures = {path.name for path in (partial / "report" / "figures").iterdir()}
    assert figures == {
        "loss_curves.png", "memory_comparison.png", "quality_against_memory.png", "rank_threshold_plot.png",
    }  # fmt: skip
    measured = {row["measured_bytes"] for row in rows(partial, "memory")}
    assert measured == {""}
    assert all(row["reason"] == "not probed" for row in rows(partial, "memory"))
    assert rows(partial, "cells")[0]["eval_loss_low"] == ""


def test_a_prediction_is_not_taken_for_a_peak(full: Path) -> None:
    peaks = [row for row in rows(full, "memory") if row["component"] == "peak"]
    assert all(row["predicted_bytes"] == "" and int(row["measured_bytes"]) > 0 for row in peaks)
    assert {row["storage"] for row in peaks} == {"quantized", "unquantized"}
    assert "Not predicted: saved activations, logits and loss, dequantization workspace and rest." in words(full)


def test_scores_are_told_from_other_columns(full: Path) -> None:
    from loracle.report.predictions import read_predictions

    found = read_predictions(full / "runs" / "nf4-r2-qkv-s42" / "predictions.parquet")
    assert set(found.scores) == {"exact_match", "label_accuracy"}


def test_damaged_files_are_named(tmp_path: Path) -> None:
    root = write_study(tmp_path, ranks=(4,), seeds=(42, 43, 44))
    (root / "runs" / "nf4-r4-qkv-s42" / "record.json").write_text("{")
    (root / "runs" / "nf4-r4-qkv-s43" / "predictions.parquet").write_bytes(b"torn")
    (root / "diagnose" / "similarity.json").write_text("[1]")
    (root / "probes" / "nf4-r4-qkv" / "record.json").write_text("nonsense")
    write_report(root)
    text = words(root)
    for name in ("runs/nf4-r4-qkv-s42/record.json", "runs/nf4-r4-qkv-s43/predictions.parquet", "probes/nf4-r4-qkv"):
        assert name in text
    assert str(root) not in (root / "report" / "index.html").read_text(encoding="utf-8")
    assert "its record cannot be read" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"metrics": [1]}, "metrics is not an object"),
        ({"eval_loss": "high"}, "eval_loss is high, which is no loss"),
        ({"eval_loss": -3.0}, "eval_loss is -3.0, which is no loss"),
        ({"eval_loss": float("nan")}, "eval_loss is nan, which is no loss"),
        (None, "not valid JSON"),
    ],
)
def test_a_record_that_no_worker_writes_is_named_and_left_out(
    tmp_path: Path, change: dict[str, object] | None, said: str
) -> None:
    root = write_study(tmp_path, ranks=(4,), seeds=(42, 43, 44))
    path = root / "runs" / "nf4-r4-qkv-s42" / "record.json"
    path.write_text("[" * 100_000 if change is None else json.dumps(json.loads(path.read_text()) | change))
    write_report(root)
    text = words(root)
    assert "runs/nf4-r4-qkv-s42/record.json" in text
    assert said in text
    assert "its record cannot be read" in text


def test_a_figure_that_lost_its_data_goes(tmp_path: Path) -> None:
    root = write_study(tmp_path, ranks=(4,), seeds=(42, 43, 44))
    write_report(root)
    assert (root / "report" / "figures" / "weight_similarity_matrix.png").exists()
    (root / "diagnose" / "similarity.json").unlink()
    write_report(root)
    assert not (root / "report" / "figures" / "weight_similarity_matrix.png").exists()


def test_planned_but_never_run(tmp_path: Path) -> None:
    root = write_study(tmp_path, ranks=(4, 8), diagnose=False, probes=False)
    shutil.rmtree(root / "runs")
    (root / "study.yaml").unlink()
    write_report(root)
    text = words(root)
    assert "0 of 12 planned runs done" in text
    assert "12 not run" in text


def test_empty_plan(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"schema": 1, "cells": [], "runs": []}')
    assert write_report(tmp_path).exists()


def test_no_plan_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"plan\.json"):
        write_report(tmp_path)
    assert not (tmp_path / "report").exists()


def test_one_cell_without_ranks_to_compare(tmp_path: Path) -> None:
    root = write_study(tmp_path, ranks=(8,))
    write_report(root)
    assert (root / "report" / "figures" / "rank_threshold_plot.png").exists()


def test_torch_is_never_loaded(full: Path, tmp_path: Path) -> None:
    root = tmp_path / "study"
    shutil.copytree(full, root)
    code = (
        "import sys; from pathlib import Path; import loracle.report\n"
        "assert not {'pandas', 'matplotlib', 'pyarrow', 'jinja2', 'scipy', 'huggingface_hub'} & set(sys.modules)\n"
        "loracle.report.write_report(Path(sys.argv[1]))\n"
        "heavy = {'torch', 'transformers', 'peft', 'bitsandbytes', 'datasets', 'matplotlib.pyplot'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
