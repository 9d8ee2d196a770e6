"""The machine as the study side sees it, without torch: cores, visible GPUs, how many workers of how many threads."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from loracle.spec.study import Run

PER_GPU = 2  # workers: one cohort's start and evaluation overlap the other's training
GPU_ID = re.compile(r"\d+|(GPU|MIG)-\S+")


@dataclass(frozen=True)
class Machine:
    """``device`` is ``cpu`` or ``cuda``; ``gpus`` are the ids that ``CUDA_VISIBLE_DEVICES`` takes."""

    device: str
    cores: int
    gpus: tuple[str, ...] = ()


def this_machine(device: str = "auto") -> Machine:
    """What can be known before a worker has looked; the inspect job's own answer replaces ``device`` later."""
    gpus = visible_gpus()
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    return Machine(device, usable_cores(), gpus if device == "cuda" else ())


def as_seen(machine: Machine, facts: Mapping[str, Any]) -> Machine:
    """``machine`` with what a worker found (the ``machine`` of an inspect record): the device, and the number of its GPUs
    where nothing else names them."""
    device = str(facts.get("device") or machine.device).split(":")[0]
    if device != "cuda":
        return Machine(device, machine.cores)
    return Machine(device, machine.cores, machine.gpus or tuple(str(i) for i in range(int(facts.get("gpus") or 1))))


def visible_gpus(driver: Path = Path("/proc/driver/nvidia/gpus")) -> tuple[str, ...]:
    """Ids of the NVIDIA GPUs that a worker would see: what ``CUDA_VISIBLE_DEVICES`` names (indices or UUIDs, up to the first
    that is neither, as CUDA reads it), else all."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return tuple(takewhile(GPU_ID.fullmatch, (part.strip() for part in chosen.split(","))))
    try:
        return tuple(str(i) for i in range(len(list(driver.iterdir()))))
    except OSError:
        return ()


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may use: its affinity, or less where a container's CPU quota says so."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        limit, period = quota.read_text().split()[:2]
        cores = min(cores, max(1, int(limit) // int(period)))
    except (OSError, ValueError):
        pass
    return cores


def concurrency(run: Run, machine: Machine, independent: int) -> tuple[int, int]:
    """(workers, threads of each) for ``independent`` pieces of work.

    Up to two workers a GPU (whether both fit is for ``Places`` to say), each with its share of the cores, however many there
    are in the end: so any job may be a spare worker's. On a CPU single-thread workers side by side beat one worker with many
    threads (small matrices), so threads are 1 as soon as there are two pieces; a lone piece gets every core.
    """
    independent = max(1, independent)
    if machine.device != "cpu":
        auto = PER_GPU * max(1, len(machine.gpus))
        workers = run.workers if isinstance(run.workers, int) else auto
        threads = run.threads if isinstance(run.threads, int) else max(1, machine.cores // workers)
        return (workers if isinstance(run.workers, int) else min(auto, independent)), threads
    if isinstance(run.threads, int):
        threads = run.threads
    elif isinstance(run.workers, int):
        threads = max(1, machine.cores // run.workers)
    else:
        threads = 1 if independent >= 2 else machine.cores
    workers = run.workers if isinstance(run.workers, int) else min(max(1, machine.cores // threads), independent)
    return workers, threads


def lanes(workers: int, machine: Machine) -> int:
    """How many pieces of work advance at full speed at a time: two workers on one GPU share its speed."""
    return workers if machine.device == "cpu" else min(workers, max(1, len(machine.gpus)))


def memory_kills(
    vmstat: Path = Path("/proc/vmstat"), cgroup: Path = Path("/sys/fs/cgroup/memory.events")
) -> int | None:
    """How many processes the kernel has killed for want of memory so far; None where the kernel does not tell."""
    found: int | None = None
    for path in (vmstat, cgroup):
        try:
            words = [line.split() for line in path.read_text().splitlines()]
        except OSError:
            continue
        counts = [int(word[1]) for word in words if len(word) == 2 and word[0] == "oom_kill"]
        if counts:
            found = (found or 0) + sum(counts)
    return found
