"""The crew: jobs in, worker processes side by side, one callback for each that ends. Knows nothing of studies."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loracle.base.errors import StoreError
from loracle.store.files import read_json, write_json
from loracle.study.interrupt import Interrupted, Stop
from loracle.study.launch import Launcher, Worker, last_log_line
from loracle.study.places import Place, Places
from loracle.study.progress import Progress
from loracle.study.resources import memory_kills
from loracle.study.spares import Kind

LOOK_S = 0.02  # between two looks at the workers
GRACE_S = 60.0  # a worker has this long to save after SIGTERM


@dataclass(frozen=True)
class Job:
    """One job folder (docs/jobs.md). ``attempts`` counts earlier ends of it in this study; ``needs_bytes`` is its predicted
    peak on a GPU (None: unknown, so nothing runs beside it), ``alone`` that it measures time."""

    folder: Path
    payload: dict[str, Any]
    title: str
    threads: int = 1
    attempts: int = 0
    needs_bytes: int | None = None
    alone: bool = False
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return str(self.payload["id"])


@dataclass(frozen=True)
class Ended:
    """How a worker ended. ``record`` is its record where the worker vouches for one (exit code 0), else empty.
    ``shared``: another job was on its GPU at some time."""

    code: int
    record: dict[str, Any]
    line: str
    memory_killed: bool | None = None
    shared: bool = False

    @property
    def status(self) -> str:
        return str(self.record.get("status", "died"))

    @property
    def reason(self) -> str:
        if self.record:
            return str(self.record.get("reason") or self.status)
        how = f"killed by signal {-self.code}" if self.code < 0 else f"exit code {self.code}"
        return f"worker died ({how})" + (f": {self.line}" if self.line else "")


@dataclass
class _Running:
    job: Job
    worker: Worker
    place: Place
    kills: int | None
    shared: bool = False


class Crew:
    """Runs jobs, at most ``workers`` at a time, where ``places`` has room for them."""

    def __init__(
        self, launcher: Launcher, stop: Stop, progress: Progress, places: Places | None = None, grace_s: float = GRACE_S
    ) -> None:
        self.launcher, self.stop, self.progress, self.grace_s = launcher, stop, progress, grace_s
        self.places = places or Places()

    def run(
        self,
        jobs: Iterable[Job],
        workers: int,
        ended: Callable[[Job, Ended], list[Job]],
        following: Sequence[Kind] = (),
    ) -> None:
        """Work until nothing is left. ``ended`` gives the jobs that follow from one that ended; they go first.
        ``following`` are the kinds of jobs that come after all these."""
        queue, running, changed = deque(jobs), list[_Running](), True
        try:
            while queue or running:
                self._heed_stop(running)
                if changed:
                    self._start_what_can(queue, running, workers)
                    self.launcher.prepare(self.places.ahead(_where(running), queue, following))
                over = [one for one in running if self._look(one)]
                for one in over:
                    running.remove(one)
                    queue.extendleft(reversed(ended(one.job, self._end(one))))
                changed = bool(over)
                time.sleep(LOOK_S if running else 0)
        finally:
            for one in running:
                one.worker.kill()

    def one(self, job: Job, following: Sequence[Kind] = ()) -> Ended:
        """Run a single job."""
        found: list[Ended] = []

        def keep(_: Job, end: Ended) -> list[Job]:
            found.append(end)
            return []

        self.run([job], 1, keep, following)
        return found[0]

    def _start_what_can(self, queue: deque[Job], running: list[_Running], workers: int) -> None:
        """Start every job of the queue that has a place, in order."""
        for job in list(queue):
            place = self.places.free(job, _where(running), workers)
            if place is None:
                continue
            queue.remove(job)
            running.append(self._start(job, place))
            here = [one for one in running if one.place == place and place.gpu is not None]
            for one in here:
                one.shared = one.shared or len(here) > 1

    def _start(self, job: Job, place: Place) -> _Running:
        (job.folder / "record.json").unlink(missing_ok=True)  # an old record must not pass for this job's
        write_json(job.folder / "job.json", job.payload)
        self.progress.started(job.id, job.title, job.attempts)
        worker = self.launcher.start(job.folder, job.threads, self.places.visible(place))
        return _Running(job, worker, place, memory_kills())

    def _look(self, one: _Running) -> bool:
        """Pass on the worker's progress; whether it has ended."""
        over = one.worker.exit_code() is not None
        for event in one.worker.events():
            self.progress.event(one.job.id, event)
        return over

    def _end(self, one: _Running) -> Ended:
        code = one.worker.exit_code() or 0
        one.worker.kill()  # it has ended: this only gives its pipe back
        record: dict[str, Any] = {}
        if code == 0:
            try:
                record = read_json(one.job.folder / "record.json")
            except StoreError as error:
                record = {"status": "failed", "reason": f"the worker left no record: {error}"}
        now = memory_kills()
        killed = None if now is None or one.kills is None else code == -9 and now > one.kills
        end = Ended(code, record, last_log_line(one.job.folder), killed, one.shared)
        self.progress.ended(one.job.id, end.status, "" if end.status == "done" else end.reason)
        return end

    def _heed_stop(self, running: list[_Running]) -> None:
        """On a signal: SIGTERM to all, wait for them to save, then raise. A second signal does not wait."""
        if self.stop.number is None:
            return
        if running:
            self.progress.note(f"stopping: {len(running)} worker(s) save their state (again to stop at once)")
        for one in running:
            one.worker.terminate()
        deadline, times = time.monotonic() + self.grace_s, self.stop.times
        while any(not self._look(one) for one in running) and time.monotonic() < deadline and self.stop.times == times:
            time.sleep(LOOK_S)
        raise Interrupted("interrupted", self.stop.exit_code)


def _where(running: Sequence[_Running]) -> list[tuple[Place, Job]]:
    return [(one.place, one.job) for one in running]
