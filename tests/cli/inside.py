"""A launcher whose workers work in this process: what they do is the same, and no interpreter has to start."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch

from loracle.store.files import SCHEMA, read_json, write_json


class NoSignal:
    """Nobody asks for an end."""

    def __call__(self) -> bool:
        return False

    def now(self) -> None: ...


class Ended:
    """A worker that has done its job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def events(self) -> list[dict[str, Any]]:
        return []

    def exit_code(self) -> int:
        return 0

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class Inside:
    """``LocalLauncher``'s stand-in."""

    def start(self, folder: Path, threads: int, gpu: str | None = None) -> Ended:
        from loracle.worker.__main__ import work

        job, before = read_json(folder / "job.json"), torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                record = work(folder, job, NoSignal())  # type: ignore[arg-type]
        finally:
            torch.set_num_threads(before)
        write_json(folder / "record.json", {"schema": SCHEMA, "kind": job["kind"], "id": job["id"], **record})
        return Ended(folder)

    def prepare(self, kinds: Any) -> None: ...

    def close(self) -> None: ...
