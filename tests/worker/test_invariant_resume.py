"""Invariant 5: killed and resumed = never killed, bit for bit (same machine, versions, threads, same ``plan.json``)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from loracle.spec.study import Train
from loracle.store.files import read_json
from loracle.train import checkpoint
from loracle.train.fit import Fit
from tests.conftest import text_rows
from tests.engine import RunSpec, base, make_fit

pytestmark = pytest.mark.invariant

STUDY = """
name: resume
base: gpt2-demo
task: {name: banking77-10, samples: 60, eval_samples: 6, generate_samples: 3, max_new_tokens: 4}
adapter: {rank: 2, alpha: 2r, dropout: 0.1, targets: [c_attn]}
train: {steps: 40, batch_size: 2, learning_rate: 5.0e-3, eval_every: 10, best_checkpoint: true}
vary: {precision: [nf4], rank: [2, 4]}
seeds: [42]
questions: [degradation]
run: {cohort: 2, threads: 1, workers: 1, checkpoint_seconds: 0.2}
diagnose: {null_runs: 0}
"""


def loracle_run(folder: Path, study: Path) -> subprocess.Popen[bytes]:
    """``loracle run`` as a process group of its own."""
    command = [sys.executable, "-m", "loracle", "run", str(study), "--out", str(folder)]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def worker_of(folder: Path) -> int:
    """The process id of the worker that trains: who holds the claim of the one cohort."""
    [claim] = folder.glob("cohorts/*/claim.lock")
    return int(claim.read_text())


def wait_for(what: Callable[[], Any], seconds: float = 120.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def mid_training(folder: Path) -> bool:
    return any(folder.glob("cohorts/*/checkpoint-*/manifest.json")) and not any(folder.glob("runs/*/record.json"))


def results(folder: Path) -> dict[str, Any]:
    """All that must be equal."""
    out: dict[str, Any] = {"verdicts": (folder / "report" / "verdicts.json").read_text()}
    for run in sorted(folder.glob("runs/*")):
        record = read_json(run / "record.json")
        assert record["status"] == "done"
        out[run.name] = [
            record["adapter_sha256"],
            record["eval_loss"],
            record["best_step"],
            (run / "metrics.jsonl").read_text(),
            pd.read_parquet(run / "predictions.parquet").to_json(),
        ]
    return out


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study, run to its end without a break."""
    root = tmp_path_factory.mktemp("undisturbed")
    (root / "study.yaml").write_text(STUDY)
    assert loracle_run(root / "out", root / "study.yaml").wait(280) == 0
    return root / "out"


def same_plan(undisturbed: Path, folder: Path) -> Path:
    """A folder with the same study and plan, nothing trained."""
    folder.mkdir()
    for name in ("study.yaml", "plan.json"):
        shutil.copy(undisturbed / name, folder)
    return folder


@pytest.mark.parametrize(
    "victims",
    [
        "both",
        pytest.param("worker", marks=pytest.mark.slow),
        pytest.param("scheduler", marks=pytest.mark.slow),
    ],
)
def test_invariant_5_kill_9_in_mid_training(undisturbed: Path, tmp_path: Path, victims: str) -> None:
    """``kill -9`` of the worker, of the scheduler, of both: a second ``loracle run`` ends with the same bits."""
    folder = same_plan(undisturbed, tmp_path / "out")
    scheduler = loracle_run(folder, folder / "study.yaml")
    wait_for(lambda: mid_training(folder))
    worker = worker_of(folder)
    if victims in ("scheduler", "both"):
        os.kill(scheduler.pid, signal.SIGKILL)
        scheduler.wait()
    if victims in ("worker", "both"):
        os.kill(worker, signal.SIGKILL)
    if victims == "worker":  # the scheduler itself starts it again
        assert scheduler.wait(280) == 0
    assert loracle_run(folder, folder / "study.yaml").wait(280) == 0
    assert "going on from step" in "".join(p.read_text() for p in folder.glob("cohorts/*/log.txt"))
    assert results(folder) == results(undisturbed)
    assert read_json(folder / "plan.json") == read_json(undisturbed / "plan.json")


# -- one worker, without a scheduler ----------------------------------------------------------------------------------


@pytest.fixture
def job_folder(undisturbed: Path, tmp_path: Path) -> Path:
    """A train job that would take minutes, in a study folder of its own."""
    shutil.copytree(undisturbed / "data", tmp_path / "study" / "data")
    [cohort] = undisturbed.glob("cohorts/*")
    job = read_json(cohort / "job.json")
    for entry in job["members"]:
        entry["config"]["train"] |= {"steps": 100_000, "eval_every": None, "best_checkpoint": False}
    folder = tmp_path / "study" / "cohorts" / job["id"]
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(job))
    return folder


def test_invariant_5_sigterm_saves_and_a_dead_parent_ends_the_worker(job_folder: Path) -> None:
    """SIGTERM: a checkpoint, an ``interrupted`` record, exit code 143. The same happens when the parent dies."""
    worker = subprocess.Popen([sys.executable, "-m", "loracle.worker", str(job_folder)], stdout=subprocess.DEVNULL)
    wait_for(lambda: any(job_folder.glob("checkpoint-*/manifest.json")))
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 143
    record = read_json(job_folder / "record.json")
    assert record["status"] == "interrupted"
    [*_, newest] = sorted(job_folder.glob("checkpoint-*"))
    assert int(newest.name.rpartition("-")[2]) == record["step"]
    runs = job_folder.parents[1] / "runs"
    lines = [(path / "metrics.jsonl").read_text().splitlines() for path in runs.iterdir()]
    assert [len(each) for each in lines] == [record["step"]] * 2

    parent_code = (
        "import os, subprocess, sys, time\n"
        "w = subprocess.Popen([sys.executable, '-m', 'loracle.worker', sys.argv[1]], stdout=subprocess.DEVNULL,\n"
        "    env={**os.environ, 'LORACLE_PARENT': str(os.getpid())})\n"
        "print(w.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", parent_code, str(job_folder)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    orphan = int(parent.stdout.readline())
    wait_for(lambda: len(list(job_folder.glob("checkpoint-*/manifest.json"))) == 2 and newer(job_folder, newest))
    parent.kill()
    parent.wait()
    wait_for(lambda: not Path(f"/proc/{orphan}").exists() or zombie(orphan), 60)
    assert read_json(job_folder / "record.json")["status"] == "interrupted"


def newer(folder: Path, than: Path) -> bool:
    return max(path.name for path in folder.glob("checkpoint-*")) > than.name


def zombie(pid: int) -> bool:
    return " Z " in Path(f"/proc/{pid}/stat").read_text()


# -- in one process ---------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


STEPS = 6
SPECS = [
    RunSpec("a", rank=4, seed=1, dropout=0.2, train=Train(learning_rate=5e-3, schedule="cosine", warmup_steps=2)),
    RunSpec("b", rank=2, seed=2, dropout=0.1, targets=("q", "v"), train=Train(learning_rate=2e-3, weight_decay=0.1)),
]


def new_fit(tmp_path: Path, **settings: Any) -> Fit:
    metrics = (tmp_path / "a" / "metrics.jsonl", tmp_path / "b" / "metrics.jsonl")
    fit, _ = make_fit(
        base(), SPECS, text_rows(20), STEPS, batch_size=2, accumulation=2, metrics=metrics, eval_every=2, **settings
    )
    return fit


def evaluations() -> Iterator[list[float]]:
    """Made-up evaluation losses that make each member's best step another one."""
    yield from ([3.0, 3.0], [2.0, 2.5], [2.5, 1.5], [2.75, 1.75])


def go(fit: Fit, tmp_path: Path, values: Iterator[list[float]], stop_after: int | None = None) -> bool:
    return fit.run(
        lambda: next(values),
        lambda state: checkpoint.save(tmp_path, state),
        lambda facts: None,
        lambda: stop_after is not None and fit.done_steps >= stop_after,
    )


@pytest.mark.parametrize("stop_after", [1, 4])
def test_invariant_5_a_restored_fit_goes_on_bit_for_bit(tmp_path: Path, stop_after: int) -> None:
    """With dropout, accumulation, schedules and the best checkpoint kept."""
    whole = new_fit(tmp_path / "whole", best_checkpoint=True, checkpoint_seconds=1e9)
    assert go(whole, tmp_path / "whole", evaluations())
    broken, values = tmp_path / "broken", evaluations()
    first = new_fit(broken, best_checkpoint=True, checkpoint_seconds=1e9)
    assert not go(first, broken, values, stop_after)
    (broken / "a" / "metrics.jsonl").open("a").write('{"step": 99, "loss": 1}\n{"step": 1')  # a killed writer's
    second = new_fit(broken, best_checkpoint=True, checkpoint_seconds=1e9)
    found, notes = checkpoint.newest(broken, "test")
    assert found is not None
    assert (found.step, notes) == (stop_after, [])
    second.restore(found)
    assert go(second, broken, values)
    for name, tensor in whole.checkpoint().tensors.items():
        assert torch.equal(tensor, second.checkpoint().tensors[name]), name
    assert second.best_step == whole.best_step == [2, 4]
    for member in ("a", "b"):
        lines = (broken / member / "metrics.jsonl").read_text()
        assert lines == (tmp_path / "whole" / member / "metrics.jsonl").read_text()
    second.finish()
    assert not torch.equal(second.cohort.flat.data, whole.cohort.flat.data)
    whole.finish()
    assert torch.equal(second.cohort.flat.data, whole.cohort.flat.data)


@pytest.mark.parametrize("damage", ["truncated", "bit", "no manifest", "other cohort", "torn manifest"])
def test_invariant_5_a_bad_newest_checkpoint_falls_back(tmp_path: Path, damage: str) -> None:
    """The older whole one is used, and a note says what was wrong."""
    for step in (1, 2, 3):
        state = {"identity": "me", "evaluations": []}
        checkpoint.save(tmp_path, checkpoint.Checkpoint(step, {"x": torch.full((50,), float(step))}, state))
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-00000002", "checkpoint-00000003"]
    newest = tmp_path / "checkpoint-00000003"
    data = (newest / "state.safetensors").read_bytes()
    if damage == "truncated":
        (newest / "state.safetensors").write_bytes(data[:-20])
    elif damage == "bit":
        (newest / "state.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    elif damage == "torn manifest":
        (newest / "manifest.json").write_text('{"schema": 1, "sha2')
    else:
        foreign = {"identity": "you", "evaluations": []}
        checkpoint.save(tmp_path, checkpoint.Checkpoint(3, {"x": torch.zeros(50)}, foreign))
    found, notes = checkpoint.newest(tmp_path, "me")
    assert found is not None
    assert found.step == 2
    assert torch.equal(found.tensors["x"], torch.full((50,), 2.0))
    [note] = notes
    assert "checkpoint-00000003" in note
    assert "falling back" in note


def test_invariant_5_no_checkpoint_is_a_fresh_start(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path, "me") == (None, [])
