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
from loracle.worker.along import keep
from tests.conftest import text_rows
from tests.engine import RunSpec, base, make_fit

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


def test_kept_adapters_are_those_of_their_step(tmp_path: Path) -> None:
    """Two seeds of one cohort, kept after two steps and after three; where only one has a step it is left out."""
    loaded, rows = base(), text_rows(16)
    fit, cohort = make_fit(
        loaded, [RunSpec(n, rank=2, targets=("q", "v"), seed=i) for i, n in enumerate("ab")], rows, 3
    )
    place, modules = StudyFolder(tmp_path), {site.module: {"layer": site.layer} for site in cohort.members[0].sites}
    for step in range(3):
        fit.step(step, fit.batches(step))
        if step:
            keep(place, ["a", "b"], loaded, cohort, step + 1)
    assert [point["step"] for point in along(place, "a", "b", modules)] == [2, 3]
    assert [point["cosine"] for point in along(place, "a", "a", modules)] == pytest.approx([1.0, 1.0])
    first, last = (read_adapter(place.along("a", step)) for step in (2, 3))
    assert any(bool((first[name].b != last[name].b).any()) for name in first)
    (place.along("b", 2) / "adapter_config.json").unlink()
    [point] = along(place, "a", "b", modules)
    assert point["step"] == 3
    assert -1 <= point["cosine"] <= 1
    assert along(place, "a", "nobody", modules) == []


@pytest.mark.slow
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


@pytest.mark.slow
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
