"""The machine as the study side sees it, without torch: cores, visible GPUs, how many workers of how many threads."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from loracle.spec.study import Run


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


def visible_gpus(driver: Path = Path("/proc/driver/nvidia/gpus")) -> tuple[str, ...]:
    """Ids of the NVIDIA GPUs that a worker would see."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return tuple(part.strip() for part in chosen.split(",") if part.strip() not in ("", "-1"))
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

    One worker a GPU. On a CPU single-thread workers side by side beat one worker with many threads (small matrices),
    so threads are 1 as soon as there are two pieces; a lone piece gets every core.
    """
    independent = max(1, independent)
    if machine.device != "cpu":
        auto = max(1, len(machine.gpus))
        workers = run.workers if isinstance(run.workers, int) else min(auto, independent)
        threads = run.threads if isinstance(run.threads, int) else max(1, machine.cores // workers)
        return workers, threads
    if isinstance(run.threads, int):
        threads = run.threads
    elif isinstance(run.workers, int):
        threads = max(1, machine.cores // run.workers)
    else:
        threads = 1 if independent >= 2 else machine.cores
    workers = run.workers if isinstance(run.workers, int) else min(max(1, machine.cores // threads), independent)
    return workers, threads


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
