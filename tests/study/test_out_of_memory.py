"""Memory that really runs out, in real workers: the cohort is split, every run finishes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from loracle.spec import Study, parse_study
from loracle.store.files import read_json
from loracle.study import Outcome, run_study
from loracle.study.launch import LocalLauncher, LocalWorker
from loracle.worker.__main__ import is_out_of_memory

MEMBER = 500_000_000  # bytes of one member's activations, about: 32 rows of some 130 tokens through the built-in base


@pytest.fixture
def four_runs(tmp_path: Path) -> Any:
    """A study of four runs, or as many seeds as are given."""
    row = {"prompt": "Say: " + "word after word " * 40, "completion": "and more of it " * 20}
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({**row, "prompt": f"{i} {row['prompt']}"}) + "\n" for i in range(80))
    )

    def make(*overrides: str) -> Study:
        tree = {
            "name": "short",
            "base": "gpt2-demo",
            "task": {
                "data": "rows.jsonl", "format": "prompt_completion", "eval_fraction": 0.1, "generate_samples": 1,
                "max_new_tokens": 1, "max_length": 256,
            },
            "adapter": {"rank": 2, "alpha": "2r", "targets": ["c_attn"]},
            "train": {"steps": 1, "batch_size": 32},
            "vary": {"precision": ["bf16"]},
            "seeds": [1, 2, 3, 4],
            "questions": ["degradation"],
            "run": {"cohort": 4, "threads": 1, "workers": 1},
            "diagnose": {"null_runs": 0},
        }  # fmt: skip
        return parse_study(tree, overrides, folder=tmp_path)

    return make


class Watched(LocalLauncher):
    """Notes the largest private writable memory of any worker that trains."""

    peak = 0

    def start(self, folder: Path, threads: int, gpu: str | None = None) -> LocalWorker:
        worker = super().start(folder, threads, gpu)
        look = worker.events

        def events() -> list[dict[str, Any]]:
            if folder.parent.name == "cohorts":
                self.peak = max(self.peak, data_bytes(worker._process.pid))
            return look()

        worker.events = events  # type: ignore[method-assign]
        return worker


def data_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData")), 0)


def finished_in_parts(outcome: Outcome) -> None:
    """Split on a real failure, and still a result for every run."""
    plan = read_json(outcome.folder / "plan.json")
    [first] = plan["cohorts"]
    assert first["id"] in plan["splits"]
    failed = read_json(outcome.folder / "cohorts" / first["id"] / "record.json")
    assert failed["status"] == "oom"
    assert outcome.summary() == "4 runs: 4 done"
    for run in plan["runs"]:
        record = read_json(outcome.folder / "runs" / run["id"] / "record.json")
        assert record["eval_loss"] > 0
        assert record["reload"]["passed"]
        assert (outcome.folder / "runs" / run["id"] / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_a_cohort_that_cannot_be_allocated_is_split_and_finishes(four_runs, tmp_path, monkeypatch):
    watched = Watched()
    run_study(four_runs("seeds=[1]", "run.device=cpu"), tmp_path / "one", launcher=watched)
    limit = watched.peak + 3 * MEMBER // 2  # two fit, four do not
    monkeypatch.setenv(
        "LORACLE_MEMORY_FRACTION", str(limit / (os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
    )
    finished_in_parts(run_study(four_runs("run.device=cpu"), tmp_path / "study"))


@pytest.mark.slow
def test_a_run_that_cannot_be_allocated_is_oom(four_runs, tmp_path, monkeypatch):
    watched = Watched()
    run_study(four_runs("seeds=[1]", "run.device=cpu"), tmp_path / "one", launcher=watched)
    limit = watched.peak - MEMBER // 3
    monkeypatch.setenv(
        "LORACLE_MEMORY_FRACTION", str(limit / (os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
    )
    outcome = run_study(four_runs("seeds=[1]", "run.device=cpu"), tmp_path / "study")
    assert {state.status for state in outcome.states.values()} == {"oom"}
    assert outcome.exit_code == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_a_capped_gpu_splits_the_cohort_and_finishes(four_runs, tmp_path, monkeypatch):
    run_study(four_runs("seeds=[1]"), tmp_path / "one")
    record = read_json(next((tmp_path / "one").glob("cohorts/*/record.json")))
    machine = read_json(tmp_path / "one" / "plan.json")["machine"]
    limit = 2.7 * record["peak_allocated_bytes"]
    monkeypatch.setenv("LORACLE_MEMORY_FRACTION", str(limit / machine["gpu_memory_bytes"]))
    finished_in_parts(run_study(four_runs(), tmp_path / "study"))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: 1 byte"
        ),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_every_way_of_saying_so_is_understood(error):
    assert is_out_of_memory(error)


def test_other_errors_are_other_errors():
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("cannot locate memory.txt"))
