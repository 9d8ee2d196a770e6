"""A small study on made-up data, and the fake worker."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loracle.spec import Study, parse_study

FAKE = Path(__file__).with_name("fake_worker.py")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[str]]:
    """Make every worker the fake one, with these options; returns the journal of its jobs when called without any."""
    journal = tmp_path / "journal"
    state = tmp_path / "state"
    state.mkdir()
    monkeypatch.setenv("LORACLE_WORKER_COMMAND", f"{sys.executable} {FAKE}")

    def configure(**options: Any) -> list[str]:
        monkeypatch.setenv("FAKE_WORKER", json.dumps({"journal": str(journal), "state": str(state), **options}))
        return journal.read_text().split() if journal.exists() else []

    configure()
    return configure


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n' * 10)
    return path


@pytest.fixture
def make_study(rows: Path) -> Callable[..., Study]:
    """The study {bf16, nf4} x rank {2, 4} x 3 seeds, with overrides."""

    def make(*overrides: str, folder: Path = rows.parent) -> Study:
        tree = {
            "name": "small",
            "base": "some-base",
            "task": {"data": "rows.jsonl", "format": "prompt_completion"},
            "train": {"steps": 6, "batch_size": 2},
            "vary": {"precision": ["bf16", "nf4"], "rank": [2, 4]},
            "seeds": [42, 43, 44],
            "run": {"cohort": 4, "threads": 1, "workers": 2},
        }
        return parse_study(tree, overrides, folder=folder)

    return make
