"""Spare workers: processes that have imported torch and all the rest, and wait for a job folder (docs/jobs.md).

A spare differs from a fresh worker in nothing that a job could notice: it was started with the very environment that the
job's own process would have had (threads, GPU), works through one job and ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

Kind = tuple[int, str | None]
"""What a spare is good for: (threads, GPU); None is no choice of a GPU."""


class Spare:
    """One process that waits. ``log`` holds what it said on stderr before it had a job."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        try:
            self.process = subprocess.Popen(
                [*command, "--spare"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                start_new_session=True,
                env=dict(environment),
            )
        except OSError:
            self.log.close()
            raise

    def give(self, folder: Path) -> bool:
        """Hand it its one job; False when it has died."""
        assert self.process.stdin is not None
        if self.process.poll() is None:
            with contextlib.suppress(OSError):
                self.process.stdin.write(json.dumps({"folder": str(folder.resolve())}).encode() + b"\n")
                self.process.stdin.close()
                return True
        return False

    def pour(self, folder: Path) -> None:
        """What is left of its early log to the end of the job's: a spare that died before it took the job says why."""
        self.log.seek(0)
        with open(folder / "log.txt", "ab") as end:
            shutil.copyfileobj(self.log, end)
        self.log.close()

    def end(self) -> None:
        """SIGKILL, and everything given back."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.log):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class Spares:
    """The spares of one launcher, by what they are good for."""

    def __init__(self) -> None:
        self._waiting: dict[Kind, deque[Spare]] = {}

    def count(self, kind: Kind) -> int:
        """How many live ones wait for a job of this kind."""
        waiting = self._waiting.get(kind, deque())
        for dead in [spare for spare in waiting if spare.process.poll() is not None]:
            waiting.remove(dead)
            dead.end()
        return len(waiting)

    def add(self, kind: Kind, spare: Spare) -> None:
        self._waiting.setdefault(kind, deque()).append(spare)

    def take(self, kind: Kind, folder: Path) -> Spare | None:
        """The longest-waiting spare of the kind, now at work on ``folder``; None where none lives."""
        waiting = self._waiting.get(kind, deque())
        while waiting:
            spare = waiting.popleft()
            if spare.give(folder):
                return spare
            spare.end()
        return None

    def close(self) -> None:
        """End all that still wait."""
        for waiting in self._waiting.values():
            while waiting:
                waiting.popleft().end()
