"""Likeness along training, from a study that keeps its adapters at evaluation points."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loracle.adapters.peft_files import read_adapter
from loracle.cli.app import app
from loracle.diagnose.along import along
from loracle.store.layout import StudyFolder

STUDY = """
name: along
base: gpt2-demo
task: {name: banking77-10, samples: 60, eval_samples: 6, generate_samples: 2, max_new_tokens: 2}
adapter: {rank: 2, alpha: 2r, targets: [q, v]}
train: {steps: 6, batch_size: 2, learning_rate: 5.0e-3, eval_every: 3}
vary: {precision: [bf16, nf4]}
seeds: [42]
questions: [degradation, similarity]
run: {threads: 1, workers: 1}
diagnose: {along_training: true}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("along")
    (root / "study.yaml").write_text(STUDY)
    done = CliRunner().invoke(app, ["run", str(root / "study.yaml"), "--out", str(root / "out")])
    assert done.exit_code == 0, done.output
    return root / "out"


def test_adapters_are_kept_and_compared_at_every_evaluation_point(folder: Path) -> None:
    pairs = json.loads((folder / "diagnose" / "similarity.json").read_text())["pairs"]
    assert {pair["kind"] for pair in pairs} == {"precision", "null"}
    for pair in pairs:
        assert [point["step"] for point in pair["along"]] == [3, 6]
        final = [layer["cosine"] for layer in pair["layers"]]
        assert pair["along"][-1]["cosine"] == pytest.approx(sum(final) / len(final))
    run = pairs[0]["b"]
    last, kept = (read_adapter(folder / "runs" / run / place) for place in ("adapter", "along/step-00000006"))
    assert all(bool((last[name].b == kept[name].b).all()) for name in last)
    report = (folder / "report" / "report.md").read_text(encoding="utf-8")
    assert "Likeness of the updates along training" in report
    assert "step 3 | step 6" in report


def test_steps_that_only_one_has_are_left_out(folder: Path, tmp_path: Path) -> None:
    pair = json.loads((folder / "diagnose" / "similarity.json").read_text())["pairs"][0]
    for run in (pair["a"], pair["b"]):
        shutil.copytree(folder / "runs" / run, tmp_path / "runs" / run)
    (tmp_path / "runs" / pair["b"] / "along" / "step-00000003" / "adapter_config.json").unlink()
    modules = json.loads((folder / "runs" / pair["a"] / "record.json").read_text())["modules"]
    assert [p["step"] for p in along(StudyFolder(tmp_path), pair["a"], pair["b"], modules)] == [6]


def test_what_was_not_kept_is_not_measured_and_says_so(folder: Path) -> None:
    for path in (folder / "runs").glob("*/along"):
        shutil.rmtree(path)
    path = folder / "diagnose" / "similarity.json"
    value = json.loads(path.read_text())
    for pair in value["pairs"]:
        del pair["along"]
    path.write_text(json.dumps(value))
    assert CliRunner().invoke(app, ["report", str(folder)]).exit_code == 0
    report = (folder / "report" / "report.md").read_text(encoding="utf-8")
    assert "Likeness along training was not measured" in report
