"""What a study shows while it runs: bars on a terminal, plain lines elsewhere. Always on standard error."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol, TextIO

PLAIN_EVERY_S = 15.0
FIRST_LOOK = ("load", "tokenize")  # phases in which a wrong study shows itself


class Progress(Protocol):
    """What the scheduler tells."""

    def open(self, total: int, done: int) -> None:
        """Training begins: ``done`` of ``total`` runs have ended already."""

    def started(self, job: str, title: str, attempt: int) -> None:
        """A worker was started."""

    def event(self, job: str, event: dict[str, Any]) -> None:
        """A worker's progress line (docs/jobs.md)."""

    def ended(self, job: str, status: str, reason: str) -> None:
        """A worker has ended."""

    def advance(self, runs: int) -> None:
        """So many more runs have ended."""

    def note(self, text: str) -> None:
        """Something the user should know."""

    def close(self) -> None:
        """Nothing more comes."""


class Silent:
    """Shows nothing."""

    def open(self, total: int, done: int) -> None: ...
    def started(self, job: str, title: str, attempt: int) -> None: ...
    def event(self, job: str, event: dict[str, Any]) -> None: ...
    def ended(self, job: str, status: str, reason: str) -> None: ...
    def advance(self, runs: int) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


class Plain:
    """One line for each change of phase, and one now and then within a phase.

    Lines of the first look at model and data are held back until it has got past them: a study that cannot work ends with
    its one error line, and nothing else.
    """

    def __init__(self, stream: TextIO | None = None, every_s: float = PLAIN_EVERY_S) -> None:
        self.stream, self.every_s = stream or sys.stderr, every_s
        self.total = self.done = 0
        self._titles: dict[str, str] = {}
        self._last: dict[str, tuple[str, float]] = {}
        self._held: list[str] | None = []

    def open(self, total: int, done: int) -> None:
        self.total, self.done = total, done
        self._release()
        self.note(f"{total} runs, {done} of them finished before")

    def started(self, job: str, title: str, attempt: int) -> None:
        self._titles[job] = title
        self._say(f"{title}: started" + (f" again (attempt {attempt + 1})" if attempt else ""))

    def event(self, job: str, event: dict[str, Any]) -> None:
        phase, before = str(event.get("phase", "")), self._last.get(job, ("", 0.0))
        now = time.monotonic()
        if phase == before[0] and now - before[1] < self.every_s:
            return
        self._last[job] = (phase, now)
        if phase not in FIRST_LOOK:
            self._release()
        self._say(f"{self._titles.get(job, job)}: {describe(event)}")

    def ended(self, job: str, status: str, reason: str) -> None:
        if self._held is not None and status != "done":
            self._held.clear()  # the command ends with this reason
        else:
            self._say(f"{self._titles.get(job, job)}: {status}" + (f": {reason}" if reason else ""))

    def advance(self, runs: int) -> None:
        self.done += runs
        self.note(f"{self.done} of {self.total} runs have ended")

    def note(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def close(self) -> None: ...

    def _say(self, text: str) -> None:
        """A line of progress, now or when the first look is over."""
        if self._held is None:
            self.note(text)
        else:
            self._held.append(text)

    def _release(self) -> None:
        held, self._held = self._held or [], None
        for text in held:
            self.note(text)


class Brief(Plain):
    """For a notebook: how many runs have ended, what went wrong, and one line of the work now and then, however many jobs there are."""

    _said = 0.0

    def started(self, job: str, title: str, attempt: int) -> None:
        self._titles[job] = title

    def event(self, job: str, event: dict[str, Any]) -> None:
        if event.get("phase") not in FIRST_LOOK:
            self._release()
        if time.monotonic() - self._said >= self.every_s:
            self._said = time.monotonic()
            self._say(f"{self._titles.get(job, job)}: {describe(event)}")

    def ended(self, job: str, status: str, reason: str) -> None:
        if status != "done":
            super().ended(job, status, reason)


class Bars:
    """Rich bars: one for the study (runs), one for each worker (steps)."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._rich = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._study: Any = None
        self._tasks: dict[str, tuple[Any, str]] = {}
        self._phase: dict[str, str] = {}

    def open(self, total: int, done: int) -> None:
        self._rich.start()
        if self._study is not None:  # a further look's seeds
            self._rich.remove_task(self._study)
        self._study = self._rich.add_task("study", total=total, completed=done, detail="runs")

    def started(self, job: str, title: str, attempt: int) -> None:
        self._rich.start()
        label = title + (f" (attempt {attempt + 1})" if attempt else "")
        self._tasks[job] = (self._rich.add_task(label, total=None, detail="starting"), label)

    def event(self, job: str, event: dict[str, Any]) -> None:
        if job not in self._tasks:
            return
        task, label = self._tasks[job]
        phase = str(event.get("phase", ""))
        if self._phase.get(job) != phase:  # a new phase has a rate of its own
            self._phase[job] = phase
            self._rich.reset(task, total=event.get("steps"), completed=0)
        self._rich.update(
            task,
            description=label,
            total=event.get("steps"),
            completed=event.get("step") or 0,
            detail=describe(event, False),
        )

    def ended(self, job: str, status: str, reason: str) -> None:
        if job in self._tasks:
            self._rich.remove_task(self._tasks.pop(job)[0])
        if status != "done" and self._study is not None:  # before that the command ends with this reason
            self.note(f"{job}: {status}" + (f": {reason}" if reason else ""))

    def advance(self, runs: int) -> None:
        if self._study is not None:
            self._rich.advance(self._study, runs)

    def note(self, text: str) -> None:
        self._rich.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._rich.stop()


def describe(event: dict[str, Any], count: bool = True) -> str:
    """``train 12/60, loss 3.102, 5,210 tokens/s, peak 812 MB``."""
    step, steps = event.get("step"), event.get("steps")
    parts = [str(event.get("phase", "working")) + (f" {step}/{steps}" if count and step is not None and steps else "")]
    if isinstance(event.get("loss"), int | float):
        parts.append(f"loss {event['loss']:.3f}")
    if isinstance(event.get("tokens_per_s"), int | float):
        parts.append(f"{event['tokens_per_s']:,.0f} tokens/s")
    if isinstance(event.get("peak_bytes"), int | float):
        parts.append(f"peak {event['peak_bytes'] / 1e6:,.0f} MB")
    return ", ".join(parts)


def for_stream(stream: TextIO | None = None, brief: bool = False) -> Progress:
    """Bars on a terminal, plain lines elsewhere; ``brief``: few of them."""
    stream = stream or sys.stderr
    return Bars() if stream.isatty() else (Brief if brief else Plain)(stream)
