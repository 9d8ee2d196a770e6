"""One synthetic study folder and its report, written once for all tests of the report."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_study import write_study

from loracle.report import write_report

UNFINISHED = {
    "nf4-r2-qkv-s42": ("diverged", "loss is not finite at step 17"),
    "nf4-r16-qkv-s43": ("oom", "needs at least 1.2 GB"),
    "nf4-r4-qkv-s44": ("failed", "=reload: |<b>![x](http://evil.example/q.png)</b>"),
    "bf16-r4-qkv-s43": ("interrupted", "SIGTERM"),
    "bf16-r16-qkv-s44": ("missing", None),
}


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study with its report."""
    root = write_study(tmp_path_factory.mktemp("full"))
    write_report(root)
    return root


@pytest.fixture(scope="session")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with a run in each state."""
    root = write_study(tmp_path_factory.mktemp("unfinished"), states=UNFINISHED)
    write_report(root)
    return root


@pytest.fixture(scope="session")
def partial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds, no task metric, nothing diagnosed or probed."""
    root = write_study(
        tmp_path_factory.mktemp("partial"), ranks=(4, 8), seeds=(42, 43), diagnose=False, probes=False, metric=False
    )
    write_report(root)
    return root
