"""Launchers: how a worker process comes to life and is heard. The study side never loads torch; workers do.

A launcher starts one job folder and hands back a ``Worker``. Local processes are here, spare ones (spares.py) among them;
another launcher (Ray) needs the same calls, of which ``prepare`` and ``close`` may do nothing. A worker runs in a session
of its own, so Ctrl-C in the terminal reaches the study alone, which then asks each worker to stop. It must be started from
the main thread: workers ask the kernel to end them with their parent *thread* (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from loracle.base.errors import LoracleError
from loracle.study.spares import Kind, Spare, Spares

COMMAND_VARIABLE = "LORACLE_WORKER_COMMAND"  # another worker program, for tests
MAX_PENDING = 1 << 20  # bytes of an unfinished line that are kept


class Worker(Protocol):
    """A started job."""

    folder: Path

    def events(self) -> list[dict[str, Any]]:
        """Progress since the last call; never blocks."""

    def exit_code(self) -> int | None:
        """None while it runs; negative: ended by that signal."""

    def terminate(self) -> None:
        """Ask it to save and stop."""

    def kill(self) -> None:
        """End it now."""


class Launcher(Protocol):
    """Starts workers."""

    def start(self, folder: Path, threads: int, gpu: str | None = None) -> Worker:
        """Start the job that lies in ``folder``."""

    def prepare(self, kinds: Mapping[Kind, int]) -> None:
        """Jobs of these kinds, (threads, GPU), are about to come, so many of each."""

    def close(self) -> None:
        """No more jobs come."""


class LocalLauncher:
    """Worker processes on this machine."""

    def __init__(self, command: Sequence[str] | None = None, spares: bool | None = None) -> None:
        """``spares``: whether workers are started ahead of their jobs; a foreign command need not know how."""
        self.command = list(command) if command is not None else worker_command()
        self.keeps_spares = spares if spares is not None else command is None and COMMAND_VARIABLE not in os.environ
        self.spares = Spares()

    def start(self, folder: Path, threads: int, gpu: str | None = None) -> LocalWorker:
        """Start ``python -m loracle.worker FOLDER``, or give FOLDER to a spare; its log goes to the end of ``FOLDER/log.txt``."""
        spare = self.spares.take((threads, gpu), folder)
        if spare is not None:
            return LocalWorker(folder, spare.process, spare)
        with open(folder / "log.txt", "ab") as log:
            try:
                process = subprocess.Popen(
                    [*self.command, str(folder)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,
                    env=worker_environment(os.environ, threads, gpu),
                )
            except OSError as error:
                raise LoracleError(f"cannot start a worker ({self.command[0]}): {error.strerror}") from None
        return LocalWorker(folder, process)

    def prepare(self, kinds: Mapping[Kind, int]) -> None:
        """Start spares where fewer wait than are wanted. One that cannot be started is no loss: the job will say so."""
        for (threads, gpu), wanted in kinds.items() if self.keeps_spares else ():
            for _ in range(wanted - self.spares.count((threads, gpu))):
                with contextlib.suppress(OSError):
                    self.spares.add((threads, gpu), Spare(self.command, worker_environment(os.environ, threads, gpu)))

    def close(self) -> None:
        """End the spares that nobody needed."""
        self.spares.close()


class LocalWorker:
    """One worker process of this machine; ``spare`` where it was started ahead of its job."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], spare: Spare | None = None) -> None:
        assert process.stdout is not None
        self.folder = folder
        self._spare = spare
        self._process = process
        self._stdout = process.stdout.fileno()
        self._pending = b""
        self._open = True
        os.set_blocking(self._stdout, False)

    def events(self) -> list[dict[str, Any]]:
        """Progress lines read since the last call."""
        while self._open and len(self._pending) < MAX_PENDING:
            try:
                chunk = os.read(self._stdout, 1 << 16)
            except BlockingIOError:
                break
            self._open = bool(chunk)
            self._pending += chunk
        *lines, self._pending = self._pending.split(b"\n")
        if len(self._pending) >= MAX_PENDING:
            self._pending = b""
        return [event for line in lines if (event := parse_event(line)) is not None]

    def exit_code(self) -> int | None:
        """The process's exit code; closes the pipe when it has ended and all was read."""
        return self._process.poll()

    def terminate(self) -> None:
        """SIGTERM to the worker."""
        if self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """SIGKILL to the worker and whatever it started; waits for it."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.close()

    def close(self) -> None:
        """Give the pipe back."""
        self._open = False
        if self._process.stdout is not None:
            self._process.stdout.close()
        if self._spare is not None:
            self._spare.pour(self.folder)
            self._spare = None


def parse_event(line: bytes) -> dict[str, Any] | None:
    """One progress line; anything else that a library may print is None."""
    try:
        event = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    return event if isinstance(event, dict) and event.get("event") == "progress" else None


def worker_command(*arguments: str) -> list[str]:
    """``python -m loracle.worker``, or what ``LORACLE_WORKER_COMMAND`` says."""
    given = os.environ.get(COMMAND_VARIABLE)
    return [*(shlex.split(given) if given else [sys.executable, "-m", "loracle.worker"]), *arguments]


def worker_environment(environment: Mapping[str, str], threads: int, gpu: str | None = None) -> dict[str, str]:
    """The worker's environment: the same loracle, a parent to end with, fixed threads, no telemetry."""
    source = str(Path(__file__).resolve().parents[2])
    path = [source, *(p for p in environment.get("PYTHONPATH", "").split(os.pathsep) if p and p != source)]
    ours = {
        "LORACLE_PARENT": str(os.getpid()),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(path),
    }
    if gpu is not None:
        ours["CUDA_VISIBLE_DEVICES"] = gpu
    return {**environment, **ours}


def last_log_line(folder: Path, limit: int = 300) -> str:
    """The last line of the worker's log: why it died, as far as it could say."""
    try:
        with open(folder / "log.txt", "rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - 8192))
            lines = log.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    texts = [line.strip() for line in lines if line.strip()]
    return texts[-1][:limit] if texts else ""
