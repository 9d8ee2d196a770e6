"""A cohort against the same runs one by one, on this machine's CPU: one process, interleaved, median and spread.

    python benchmarks/cohort_cpu.py [--out benchmarks/FILE.json] [--rounds 7] [--threads 2]

Twelve runs of the built-in base (rank 8, all linear layers, bf16 weights computed in fp32) at 8 x 40 and 8 x 128 tokens.
The cohort size is chosen as the inspect job chooses it (loracle.diagnose.sizing), then both ways are timed in turn:
one step of twelve runs one by one (cohorts of one), and one step of twelve runs in cohorts of the chosen size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loracle.adapters.cohort import Member, attach, detach
from loracle.adapters.targets import resolve_targets
from loracle.diagnose import sizing
from loracle.models.load import LoadedBase, load_base
from loracle.models.source import find
from loracle.spec.study import Cell, Task, Train
from loracle.store.provenance import provenance
from loracle.tasks.rows import Row
from loracle.train.fit import Fit, FitSettings

RUNS = 12
BATCH = 8
SCORED = 6


def rows_of(length: int) -> list[Row]:
    """Random rows of one length, the last six tokens scored (as an intent's name would be)."""
    rng = np.random.default_rng(0)
    rows = []
    for item in range(256):
        ids = rng.integers(2, 8000, length).tolist()
        rows.append(Row(item, ids, [-100] * (length - SCORED) + ids[length - SCORED :]))
    return rows


def seconds_of_twelve(loaded: LoadedBase, members: list[Member], rows: list[Row], size: int) -> float:
    """Seconds of one optimizer step of all twelve runs, trained ``size`` at a time (best of three steps each)."""
    total = 0.0
    for start in range(0, RUNS, size):
        group = members[start : start + size]
        cohort = attach(loaded.model, group, torch.float32, loaded.device)
        fit = Fit(
            cohort,
            rows,
            [Train()] * len(group),
            list(range(len(group))),
            FitSettings(4, BATCH, 1, 1, "bench"),
        )
        times = []
        for step in range(4):
            batches = fit.batches(step)
            begin = time.perf_counter()
            fit.step(step, batches)
            times.append(time.perf_counter() - begin)
        total += min(times[1:])
        detach(loaded.model, cohort)
    return total


def compare(length: int, rounds: int) -> dict[str, Any]:
    """Chosen size and the ratio one by one / cohort at one shape."""
    loaded = load_base(find("gpt2-demo"), Cell(task=Task(data="-"), precision="bf16"), torch.device("cpu"))
    sites = tuple(resolve_targets(loaded.linears, "all-linear"))
    members = [Member(f"run{k}", sites, 8, 16.0, 0.0, k, k) for k in range(RUNS)]
    rows = rows_of(length)
    chosen = sizing.measure(loaded, members, [Train()], rows, 1, RUNS)
    pairs = [
        (seconds_of_twelve(loaded, members, rows, 1), seconds_of_twelve(loaded, members, rows, chosen["size"]))
        for _ in range(rounds)
    ]
    ratios = sorted(alone / together for alone, together in pairs)
    return {
        "shape": f"{BATCH} x {length}",
        "size": chosen["size"],
        "candidates": chosen["candidates"],
        "one_by_one_ms_per_run_step": round(statistics.median(p[0] for p in pairs) / RUNS * 1000, 2),
        "cohort_ms_per_run_step": round(statistics.median(p[1] for p in pairs) / RUNS * 1000, 2),
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_min": round(ratios[0], 3),
        "ratio_max": round(ratios[-1], 3),
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks") / f"{date.today()}-cohort-cpu.json")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shapes = [compare(length, args.rounds) for length in (40, 128)]
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "cpu",
    )
    result = {
        "benchmark": "cohort_cpu",
        "date": str(date.today()),
        "command": f"python benchmarks/cohort_cpu.py --rounds {args.rounds} --threads {args.threads}",
        "cpu": cpu,
        **provenance("cpu", args.threads),
        "shapes": shapes,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    for shape in shapes:
        print(
            f"{shape['shape']}: cohorts of {shape['size']}, {shape['cohort_ms_per_run_step']} ms a run and step against "
            f"{shape['one_by_one_ms_per_run_step']} one by one: {shape['ratio_median']}x ({shape['ratio_min']} to {shape['ratio_max']})"
        )
    print(args.out)


if __name__ == "__main__":
    main()
