"""``loracle eval`` of models: a run's figures are those of its record, an adapter needs its base, errors are one line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from loracle.cli.targets import Asked, evaluated
from loracle.spec import parse_study
from loracle.store.files import read_json
from tests.cli.inside import Inside

GIVEN = ("--task", "--data", "--format", "--eval-samples", "--max-length", "--precision", "--base", "--device", "--out")
TASK = {"name": "banking77-10", "samples": 60, "eval_samples": 24, "generate_samples": 6}
STUDY: dict[str, Any] = {
    "name": "scored",
    "base": "gpt2-demo",
    "task": TASK,
    "precision": "fp32",
    "adapter": {"rank": 2, "targets": ["q", "v"]},
    "train": {"steps": 6, "batch_size": 4, "learning_rate": 8e-3},
    "cells": [
        {"precision": "fp32"},
        {"precision": "nf4"},
        {"precision": "nf4", "task": {**TASK, "type": "classification"}},
    ],
    "seeds": [42],
    "run": {"cohort": 1, "threads": 1, "workers": 1, "device": "cpu"},
    "diagnose": {"null_runs": 0},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name → folder of a finished run: fp32, nf4, and nf4 with a classification head."""
    from loracle.study import run_study

    folder = tmp_path_factory.mktemp("scored") / "study"
    study = parse_study(STUDY).model_copy(update={"questions": ()})
    outcome = run_study(study, folder, launcher=Inside())
    assert {state.status for state in outcome.states.values()} == {"done"}
    found = {}
    for run in outcome.states:
        config = read_json(folder / "runs" / run / "record.json")["config"]
        kind = "classes" if config["task"].get("type") == "classification" else config["precision"]
        found[kind] = folder / "runs" / run
    return found


@pytest.fixture
def threads() -> Iterator[None]:
    """One, as the workers had."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def score(place: Path, target: Path | str, overrides: tuple[str, ...] = (), **given: Any) -> dict[str, Any]:
    """The scores that the worker finds, without the worker's process."""
    from loracle.worker.score import ScoreJob

    options = dict.fromkeys(GIVEN) | {f"--{key.replace('_', '-')}": value for key, value in given.items()}
    what = evaluated(Asked(str(target), options, list(overrides)))
    common = {"model": str(target), "samples": options["--eval-samples"], "predictions": True, "harness": None}
    return ScoreJob(place, {**what.payload(), **common, "device": "cpu"}, lambda *a, **k: None).run()["scores"]


@pytest.mark.parametrize(("kind", "tolerance"), [("fp32", 1e-6), ("nf4", 1e-4), ("classes", 1e-4)])
def test_a_run_on_its_own_task_gives_its_record(runs, threads, tmp_path, kind, tolerance):
    record = read_json(runs[kind] / "record.json")
    found = score(tmp_path, runs[kind])
    assert found["eval_loss"] == pytest.approx(record["eval_loss"], abs=tolerance)
    wanted = {"accuracy", "macro_f1", "weighted_f1", "majority_accuracy"}
    assert set(found["metrics"]) == (wanted if kind == "classes" else {"perplexity", "exact_match", "label_accuracy"})
    for name, value in found["metrics"].items():
        assert value == pytest.approx(record["metrics"][name], rel=tolerance), name
    assert (found["task"], found["n"]) == ("banking77-10", 24)
    assert found["generated"] == (0 if kind == "classes" else 6)
    low, high = found["intervals"]["eval_loss"]
    assert low < found["eval_loss"] < high
    recorded = pd.read_parquet(runs[kind] / "predictions.parquet")
    frame = pd.read_parquet(tmp_path / "predictions.parquet")
    assert frame["loss"].to_numpy() == pytest.approx(recorded["loss"].to_numpy(), abs=1e-3)
    assert frame["prediction"].tolist() == recorded["prediction"].tolist()


def test_rows_are_made_anew_where_the_study_is_gone(runs, threads, tmp_path):
    alone = tmp_path / "moved" / "run"
    shutil.copytree(runs["classes"], alone)
    record = read_json(alone / "record.json")
    found = score(tmp_path, alone)
    assert found["eval_loss"] == pytest.approx(record["eval_loss"], abs=1e-4)
    assert found["metrics"]["accuracy"] == record["metrics"]["accuracy"]


def test_other_rows_read_as_the_runs_own_do(runs, threads, tmp_path):
    """A file of its own is evaluated whole, under the run's template and labels; 24 rows of it are a draw of 24."""
    rows = pd.read_csv(str(read_json(runs["fp32"] / "record.json")["config"]["task"]["eval"]))
    rows.iloc[:40].to_csv(tmp_path / "mine.csv", index=False)
    found = score(tmp_path, runs["fp32"], ("task.generate=false",), data=str(tmp_path / "mine.csv"))
    assert (found["task"], found["n"], found["generated"]) == ("mine.csv", 40, 0)
    own = pd.read_parquet(runs["fp32"] / "predictions.parquet").set_index("item")["loss"]
    mine = pd.read_parquet(tmp_path / "predictions.parquet").set_index("item")["loss"]
    shared = own.index.intersection(mine.index)
    assert len(shared) > 0
    assert mine[shared].to_numpy() == pytest.approx(own[shared].to_numpy(), abs=1e-4)
    few = score(tmp_path, runs["classes"], data=str(tmp_path / "mine.csv"), eval_samples=7)
    assert few["n"] == 7
    assert few["metrics"].keys() >= {"accuracy", "macro_f1"}


def test_an_adapter_from_elsewhere_is_the_run_that_it_came_from(runs, threads, tmp_path):
    foreign = tmp_path / "foreign"
    shutil.copytree(runs["fp32"] / "adapter", foreign)
    sets = tuple(f"task.{key}={value}" for key, value in TASK.items() if key != "name")
    found = score(tmp_path, foreign, sets, base="gpt2-demo", task="banking77-10", precision="fp32")
    record = read_json(runs["fp32"] / "record.json")
    assert found["eval_loss"] == pytest.approx(record["eval_loss"], abs=1e-6)
    base = score(tmp_path, "gpt2-demo", sets, task="banking77-10", precision="fp32")
    assert base["eval_loss"] == pytest.approx(record["metrics"]["base_eval_loss"], abs=1e-6)
    inside = evaluated(Asked(str(runs["fp32"] / "adapter"), dict.fromkeys(GIVEN), []))
    assert inside.adapter == (runs["fp32"] / "adapter").resolve()
    assert inside.data is not None


def test_a_lost_tensor_is_no_adapter(runs, threads, tmp_path):
    from safetensors.torch import load_file, save_file

    from loracle.base.errors import ModelError

    foreign = tmp_path / "foreign"
    shutil.copytree(runs["fp32"] / "adapter", foreign)
    tensors = load_file(foreign / "adapter_model.safetensors")
    save_file(dict(list(tensors.items())[1:]), foreign / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="lacks tensors"):
        score(tmp_path, foreign, base="gpt2-demo", task="banking77-10", eval_samples=4)


def test_as_a_user_calls_it(runs, call, tmp_path):
    """One worker process: JSON on standard output, predictions where they were asked for, no folder left behind."""
    before = set(Path(tempfile.gettempdir()).glob("loracle-eval-*"))
    out = tmp_path / "there" / "p.parquet"
    code, printed, _ = call(runs["nf4"], "--eval-samples", 6, "--out", out, "--json")
    found = json.loads(printed)
    assert code == 0
    assert {"task", "n", "eval_loss", "metrics", "intervals", "model", "base", "precision", "device"} <= set(found)
    assert (found["n"], found["base"], found["precision"]) == (6, "gpt2-demo", "nf4")
    assert len(pd.read_parquet(out)) == 6
    assert set(Path(tempfile.gettempdir()).glob("loracle-eval-*")) == before


def test_the_harness(runs, call, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'loracle[lm-eval]'")
    (tmp_path / "rows.jsonl").write_text(
        '{"q": "I lost my card", "choices": ["lost or stolen card", "exchange rate"], "label": 0}\n'
        '{"q": "How many euros?", "choices": ["card arrival", "exchange rate"], "label": 1}\n'
    )
    (tmp_path / "intents.yaml").write_text(
        "task: intents\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\n"
        'output_type: multiple_choice\ndoc_to_text: "Query: {{q}}\\nIntent:"\ndoc_to_choice: "{{choices}}"\n'
        'doc_to_target: "{{label}}"\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n'
    )
    monkeypatch.setattr("loracle.study.launch.LocalLauncher", Inside)
    code, out, err = call(runs["nf4"], "--lm-eval", tmp_path / "intents.yaml")
    assert code == 0, err
    [heads, row] = out.splitlines()[1:]
    assert heads.split() == ["task", "metric", "value", "standard", "error", "items"]
    assert row.split()[:2] == ["intents", "acc"]
    assert float(row.split()[2]) in (0.0, 0.5, 1.0)
    assert row.split()[-1] == "2"


def test_the_harness_needs_its_extra(call, monkeypatch):
    import loracle.base.extras

    monkeypatch.setattr(loracle.base.extras, "find_spec", lambda name: None)
    code, out, err = call("gpt2-demo", "--lm-eval", "hellaswag")
    assert (code, out) == (2, "")
    assert "pip install 'loracle[lm-eval]'" in err
    assert err.count("\n") == 1


@pytest.fixture
def home(tmp_path, monkeypatch):
    (tmp_path / "adapter-of-mine").mkdir()
    (tmp_path / "adapter-of-mine" / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/model"}')
    (tmp_path / "empty").mkdir()
    (tmp_path / "study" / "runs" / "r1").mkdir(parents=True)
    (tmp_path / "study" / "runs" / "r1" / "record.json").write_text(
        json.dumps({"kind": "run", "status": "failed", "reason": "why", "config": config()})
    )
    (tmp_path / "answers.json").write_text("[]")
    (tmp_path / "rows.csv").write_text("text,label\na,b\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config() -> dict[str, Any]:
    from loracle.study.cells import planned_cells

    return planned_cells(parse_study(STUDY))[0].cell.model_dump(mode="json")


ROWS = ("--data", "rows.csv")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["gpt2-demo"], 2, "name what to evaluate on: --task NAME"),
        (["gpt2-demo", "--task", "banking7"], 2, "--task: 'banking7' is not a task of the library, did you mean"),
        (["gpt2-demo", "--data", "none.csv"], 1, "none.csv: no such file"),
        (["gpt2-demo", *ROWS, "--format", "alpace"], 2, "--format: 'alpace' is not allowed, did you mean 'alpaca'?"),
        (["gpt2-demo", *ROWS, "--precision", "nf5"], 2, "--precision: 'nf5' is not a precision"),
        (["gpt2-demo", *ROWS, "--max-length", "3"], 2, "--max-length: "),
        (["gpt2-demo", *ROWS, "--device", "tpu"], 2, "--device: 'tpu' is not allowed"),
        (["gpt2-demo", *ROWS, "--base", "gpt2-demo"], 2, "--base: is for an adapter"),
        (["gpt2-demo", *ROWS, "--set", "task.nope=1"], 2, "task.nope: unknown key"),
        (["gpt2-demo", *ROWS, "--out", "folder"], 2, "--out: predictions are written as one .parquet file"),
        (["gpt2-demo", *ROWS, "--limit", "3"], 2, "--limit: needs --lm-eval"),
        (["gpt2-demo", *ROWS, "--lm-eval", "x"], 2, "--data: not with --lm-eval"),
        (["gpt2-demo", *ROWS, "--judge-seed", "3"], 2, "--judge-seed: needs --judge"),
        (["adapter-of-mine", *ROWS], 2, "adapter-of-mine: an adapter alone needs its base: --base MODEL"),
        (["empty", *ROWS], 2, "empty: holds no record.json of a run"),
        (["study", *ROWS], 2, "study: is a study: name one of its runs, for instance study/runs/r1"),
        (["study/runs/r1"], 2, "study/runs/r1: this run has no adapter (failed: why)"),
        (["answers.json", "--task", "squad"], 2, "answers.json: is a file"),
        (["--task", "squad", "--precision", "nf4"], 2, "--precision: needs a model"),
    ],
)
def test_errors_are_one_line(home, refused, arguments, code, words):
    refused(arguments, code, words)


def test_ctrl_c_leaves_nothing(home):
    """SIGINT while the worker starts: 130, one line, no temporary folder, no worker."""
    scratch = home / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "loracle", "eval", "gpt2-demo", *ROWS]
    process = subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    pid = None
    for _ in range(300):
        locks = list(scratch.glob("loracle-eval-*/jobs/evaluate/claim.lock"))
        if locks and (text := locks[0].read_text().strip()):
            pid = int(text)
            break
        time.sleep(0.1)
    assert pid is not None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "interrupted"
    assert list(scratch.glob("loracle-eval-*")) == []
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_classifiers_config_holds_its_labels_and_pad_token(runs) -> None:
    """Without a pad token Transformers refuses a classifier batches of several rows."""
    config = read_json(runs["classes"] / "adapter" / "config.json")
    assert config["pad_token_id"] is not None
    assert len(config["id2label"]) == len(read_json(runs["classes"] / "record.json")["audit"]["labels"])
