"""Time and peak memory of arms, in one run: peaks of each arm alone on the device, then times in turn, round by round.

Steps are timed with CUDA events between them (nothing waits for the device inside a visit), on a CPU with a clock. An arm that
does not fit is a row too: ``oom``.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch


class Running(Protocol):
    """An arm that is set up: ``step(i)`` takes optimizer step ``i``."""

    def step(self, i: int) -> None: ...
    def close(self) -> None: ...


@dataclass
class Arm:
    """One side of a comparison. ``build`` sets it up; ``keep``: it stays set up between rounds (else it is set up anew at each visit);
    ``warmup``: steps that do not count after a set-up."""

    name: str
    build: Callable[[], Running]
    storage: str
    members: int = 1
    checkpointing: bool = False
    keep: bool = False
    warmup: int = 5
    facts: dict[str, Any] = field(default_factory=dict)
    status: str = "not run"
    peak: dict[str, int | None] = field(default_factory=dict)
    repeats: list[list[float]] = field(default_factory=list)
    running: Running | None = None
    taken: int = 0

    def row(self) -> dict[str, Any]:
        """The arm's row of the table."""
        every = sorted(ms for repeat in self.repeats for ms in repeat)
        medians = [statistics.median(repeat) for repeat in self.repeats]
        return {
            "arm": self.name,
            "storage": self.storage,
            "members": self.members,
            "checkpointing": self.checkpointing,
            "status": self.status,
            "ms_per_step": round(statistics.median(every), 3) if every else None,
            "ms_per_member_step": round(statistics.median(every) / self.members, 3) if every else None,
            "p10": round(quantile(every, 0.1), 3) if every else None,
            "p90": round(quantile(every, 0.9), 3) if every else None,
            "repeats": [round(median, 3) for median in medians],
            "steps_timed": len(every),
            **{key: self.peak.get(key) for key in PEAKS},
            **self.facts,
        }


PEAKS = ("peak_allocated_bytes", "peak_reserved_bytes", "others_bytes")
"""``others_bytes``: what lay on the device before the arm was set up (libraries' workspaces)."""


def quantile(ordered: Sequence[float], q: float) -> float:
    """The ``q`` quantile of ordered values, by the nearest rank."""
    return ordered[min(len(ordered) - 1, round(q * (len(ordered) - 1)))]


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def clear(device: torch.device) -> None:
    """Give back what nothing refers to."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def peaks(device: torch.device) -> dict[str, int | None]:
    """Both peaks since they were last reset; a CPU's allocator keeps none."""
    cuda = device.type == "cuda"
    return {
        "peak_allocated_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "peak_reserved_bytes": torch.cuda.max_memory_reserved() if cuda else None,
    }


def step_times(step: Callable[[int], None], first: int, count: int, device: torch.device) -> list[float]:
    """Milliseconds of each of ``count`` steps, one behind another."""
    if device.type != "cuda":
        marks = [time.perf_counter()]
        for i in range(count):
            step(first + i)
            marks.append(time.perf_counter())
        return [(b - a) * 1000 for a, b in itertools.pairwise(marks)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for i in range(count):
        step(first + i)
        events[i + 1].record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) for a, b in itertools.pairwise(events)]


class Bench:
    """Measures arms on one device. ``seconds`` of steps are timed at each visit, at least ``least`` steps and at most ``most``."""

    def __init__(
        self, device: torch.device, seconds: float = 0.5, least: int = 3, most: int = 20, debug: bool = False
    ) -> None:
        self.device, self.seconds, self.least, self.most, self.debug = device, seconds, least, most, debug
        self.begun = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since the bench was made."""
        return time.perf_counter() - self.begun

    def _guarded(self, arm: Arm, action: Callable[[], None]) -> None:
        """Run ``action``; a failure becomes the arm's status."""
        try:
            action()
        except torch.OutOfMemoryError as error:
            arm.status = "oom"
            arm.facts["reason"] = str(error).split(". GPU")[0]
        except Exception as error:
            if self.debug:
                raise
            arm.status = "failed"
            arm.facts["reason"] = f"{type(error).__name__}: {error}"[:300]
            traceback.print_exc(limit=-3)
        if arm.status in ("oom", "failed"):
            self.close(arm)

    def close(self, arm: Arm) -> None:
        running, arm.running = arm.running, None
        if running is not None:
            running.close()
            del running
        clear(self.device)

    def memory(
        self, arms: Sequence[Arm], steps: int = 3, between: Callable[[], None] | None = None, stay: bool = False
    ) -> None:
        """Peaks of each arm, alone on the device; ``between`` frees what arms share. A ``keep`` arm stays set up if it is the last.

        With ``stay`` all of them do: then a peak is less what the others take, which lies still.
        """
        for arm in arms:
            self._guarded(arm, lambda arm=arm: self._peak(arm, steps))  # type: ignore[misc]
            if stay:
                self._take_off(arm)
            elif not (arm.keep and arm is arms[-1]):
                self.close(arm)
            if between is not None:
                between()
            clear(self.device)
            peak = arm.peak.get("peak_allocated_bytes")
            shown = f"{peak / 2**20:.0f} MiB" if peak else arm.facts.get("reason", "no peak on a CPU")
            print(f"  [{self.elapsed:5.0f} s] {arm.name}: {arm.status}, {shown}", flush=True)

    def _take_off(self, arm: Arm) -> None:
        """A peak of an arm beside others becomes its own."""
        for key, others in (("peak_allocated_bytes", "others_bytes"), ("peak_reserved_bytes", "others_reserved_bytes")):
            both, less = arm.peak.get(key), arm.peak.get(others)
            if both is not None and less is not None:
                arm.peak[key] = both - less

    def _peak(self, arm: Arm, steps: int) -> None:
        clear(self.device)
        cuda = self.device.type == "cuda"
        others = torch.cuda.memory_allocated() if cuda else None
        reserved = torch.cuda.memory_reserved() if cuda else None
        arm.running = arm.build()
        arm.facts |= getattr(arm.running, "facts", {})
        if hasattr(arm.running, "peaks"):  # in a process of its own
            arm.peak = arm.running.peaks(steps)
            arm.status = "done"
            return
        if cuda:
            clear(self.device)
            torch.cuda.reset_peak_memory_stats()
        for _ in range(arm.warmup if arm.keep else 0, arm.warmup + steps):
            self._step(arm)
        synchronize(self.device)
        if cuda:
            arm.peak = peaks(self.device) | {"others_bytes": others, "others_reserved_bytes": reserved}
        arm.facts |= getattr(arm.running, "facts", {})
        arm.status = "done"

    def _step(self, arm: Arm) -> None:
        assert arm.running is not None
        arm.running.step(arm.taken)
        arm.taken += 1

    def rounds(self, arms: Sequence[Arm], rounds: int, deadline_s: float | None = None, minimum: int = 3) -> None:
        """Visit every arm once a round. After ``deadline_s`` no new round begins, once there are ``minimum``."""
        live = [arm for arm in arms if arm.status not in ("oom", "failed")]
        for number in range(rounds):
            if deadline_s is not None and number >= minimum and self.elapsed > deadline_s:
                print(f"  [{self.elapsed:5.0f} s] {number} rounds in place of {rounds}: the time is spent", flush=True)
                break
            for arm in live:
                if arm.status not in ("oom", "failed"):
                    self._guarded(arm, lambda arm=arm: self._visit(arm))  # type: ignore[misc]
                if not arm.keep:
                    self.close(arm)
            print(f"  [{self.elapsed:5.0f} s] round {number + 1} of {rounds}", flush=True)
        for arm in live:
            self.close(arm)

    def _visit(self, arm: Arm) -> None:
        fresh = arm.running is None
        if fresh:
            arm.running = arm.build()
            arm.taken = 0
        assert arm.running is not None
        warm = arm.warmup if fresh else 1
        if hasattr(arm.running, "times"):  # in a process of its own
            arm.repeats.append(arm.running.times(warm, self))
            arm.status = "done"
            return
        for _ in range(warm - 1):
            self._step(arm)
        [guess] = step_times(arm.running.step, arm.taken, 1, self.device)
        count = max(self.least, min(self.most, int(self.seconds * 1000 / max(guess, 1e-3))))
        arm.repeats.append(step_times(arm.running.step, arm.taken + 1, count, self.device))
        arm.taken += count + 1
        arm.status = "done"


def ratio(slow: Arm, fast: Arm) -> dict[str, Any] | None:
    """How many times the milliseconds a member and step of ``fast`` those of ``slow`` are: median over rounds, least and greatest."""
    pairs = list(zip(slow.repeats, fast.repeats, strict=False))
    if not pairs:
        return None
    values = sorted((statistics.median(a) / slow.members) / (statistics.median(b) / fast.members) for a, b in pairs)
    return {
        "of": slow.name,
        "over": fast.name,
        "median": round(statistics.median(values), 3),
        "least": round(values[0], 3),
        "greatest": round(values[-1], 3),
        "rounds": len(values),
    }
