"""A spare worker: everything imported, waiting on stdin for the folder of its one job (docs/jobs.md).

Importing torch, Transformers, PEFT and bitsandbytes takes seconds; a study has its next worker do it ahead of time.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from loracle.worker.imports import importing

CHUNK = 1 << 16
# What the jobs of a study import, now and in their course.
MODULES = (
    "loracle.worker.train",
    "loracle.diagnose.probe",
    "loracle.diagnose.pairs",
    "bitsandbytes",
    "pandas",
    "pyarrow.parquet",
    "safetensors.torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
)


def wait_for_job(modules: Sequence[str] = MODULES) -> Path | None:
    """The folder to work through, once there is one; None when the study ends without a use for this process.

    stderr, a file of its own until now, goes on in the job's ``log.txt``.
    """
    with importing():
        for name in modules:
            importlib.import_module(name)
    line = sys.stdin.buffer.readline()
    try:
        folder = Path(json.loads(line)["folder"])
    except (ValueError, KeyError, TypeError):
        return None
    _no_more_input()
    _log_to(folder / "log.txt")
    return folder


def _no_more_input() -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


def _log_to(path: Path) -> None:
    """Move what was said so far to the end of ``path`` and go on there."""
    sys.stderr.flush()
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.lseek(2, 0, os.SEEK_SET)
    while chunk := os.read(2, CHUNK):
        os.write(log, chunk)
    os.ftruncate(2, 0)  # whatever is left there is added to the log by the study: nothing twice
    os.dup2(log, 2)
    os.close(log)
