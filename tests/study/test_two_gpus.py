"""A study over all GPUs of a machine: cohorts side by side, probes side by side, each on a GPU of its own."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from loracle.spec import parse_study
from loracle.store.files import read_json
from loracle.study import run_study
from loracle.study.launch import LocalLauncher, LocalWorker

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA GPUs")]


class Placed(LocalLauncher):
    """Notes which GPU each kind of job was given."""

    def __init__(self) -> None:
        super().__init__()
        self.gpus: dict[str, list[str | None]] = defaultdict(list)

    def start(self, folder: Path, threads: int, gpu: str | None = None) -> LocalWorker:
        self.gpus[folder.parent.name].append(gpu)
        return super().start(folder, threads, gpu)


def test_cohorts_and_probes_spread_over_both_gpus(tmp_path):
    story = (
        " and so it went on, day after day, until the rain came back to the hills." * 3
    )  # tokens enough to average rounding
    rows = [{"prompt": f"Day {i}:", "completion": f" It was the {i}th{story}"} for i in range(80)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree: dict[str, Any] = {
        "name": "both",
        "base": "gpt2-demo",
        "task": {"data": "rows.jsonl", "format": "prompt_completion", "eval_fraction": 0.2, "generate_samples": 1},
        "adapter": {"rank": 2, "alpha": "2r", "targets": ["c_attn"]},
        "train": {"steps": 4, "batch_size": 4},
        "vary": {"precision": ["bf16", "nf4"]},
        "seeds": [1, 2],
        "questions": ["degradation", "memory", "speed"],
        "run": {"cohort": 2},
        "diagnose": {"null_runs": 0},
    }
    placed = Placed()
    outcome = run_study(parse_study(tree, folder=tmp_path), tmp_path / "study", launcher=placed)
    assert outcome.summary() == "4 runs: 4 done", [state.reason for state in outcome.states.values()]
    assert not outcome.problems
    assert len(set(placed.gpus["cohorts"])) == 2
    assert len(set(placed.gpus["probes"])) == 2
    probes = [read_json(path) for path in (tmp_path / "study").glob("probes/*/record.json")]
    assert len(probes) == 2
    assert all(probe["status"] == "done" for probe in probes)
