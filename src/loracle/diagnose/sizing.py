"""How many runs to train side by side on a CPU: what a short measurement finds fastest per run.

A large cohort's activations fall out of a CPU's cache. So it is measured, on the study's own rows, with the true training step.
On a GPU as many as fit are fastest: the ledger says how many that are (``fitting.members``).
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from loracle.adapters.batch import Row
from loracle.adapters.cohort import Member, attach, detach
from loracle.models.load import LoadedBase
from loracle.spec.study import Train
from loracle.train.fit import Fit, FitSettings

CANDIDATES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
ROUNDS = 2
# Each cohort more costs a start and an evaluation of the base, so the largest size wins that is nearly as fast as the fastest
# and as one run alone.
NEAR_FASTEST = 1.10
NEAR_ALONE = 1.03
BUDGET_S = 10.0


def measure(
    loaded: LoadedBase, members: Sequence[Member], trains: Sequence[Train], rows: Sequence[Row], pad_id: int, most: int
) -> dict[str, Any]:
    """The fastest cohort size up to ``most``: ``{size, ms_per_step, candidates: [{members, ms_per_member_step}], reason}``.

    ``members`` and ``trains`` are examples that are repeated to make larger cohorts. Sizes are timed in turn, several rounds,
    and the best time of each counts: other load on the machine only ever adds.
    """
    sizes = [size for size in CANDIDATES if size <= most]
    if most not in sizes and most < 2 * sizes[-1]:
        sizes.append(most)
    times: dict[int, list[float]] = {}
    reason = "measured"
    started = time.monotonic()
    for round_number in range(ROUNDS):
        for size in list(sizes):
            try:
                taken = _time_step(loaded, members, trains, rows, pad_id, size, warm_up=round_number == 0)
            except (torch.OutOfMemoryError, MemoryError):
                sizes = [s for s in sizes if s < size]
                reason = f"measured; {size} runs together do not fit"
                break
            times.setdefault(size, []).append(taken / size)
            if round_number == 0 and (_hopeless(times, size) or time.monotonic() - started > BUDGET_S):
                sizes = [s for s in sizes if s <= size]
                break
        if time.monotonic() - started > BUDGET_S:
            break
    best = {size: min(times[size]) for size in sizes if size in times}
    fastest = min(best.values())
    limit = max(fastest, min(fastest * NEAR_FASTEST, best[1] * NEAR_ALONE))
    size = max(s for s, t in best.items() if t <= limit)
    return {
        "size": size,
        "ms_per_step": best[size] * size * 1000,
        "candidates": [{"members": s, "ms_per_member_step": statistics.median(times[s]) * 1000} for s in sorted(best)],
        "reason": reason,
    }


def _hopeless(times: dict[int, list[float]], size: int) -> bool:
    """Already 30% slower per run than the best so far: larger ones will not be better."""
    return times[size][0] > 1.3 * min(t[0] for t in times.values())


def _time_step(
    loaded: LoadedBase,
    members: Sequence[Member],
    trains: Sequence[Train],
    rows: Sequence[Row],
    pad_id: int,
    size: int,
    *,
    warm_up: bool,
) -> float:
    """Seconds of one optimizer step of ``size`` members."""
    chosen = [members[i % len(members)] for i in range(size)]
    settings = [trains[i % len(trains)] for i in range(size)]
    steps = 3 if warm_up else 2
    cohort = attach(loaded.model, chosen, torch.float32, loaded.device)
    try:
        fit = Fit(
            cohort,
            rows,
            settings,
            list(range(size)),
            FitSettings(
                steps,
                settings[0].batch_size,
                settings[0].gradient_accumulation,
                pad_id,
                identity="sizing",
                group_by_length=settings[0].group_by_length,
            ),
        )
        taken = []
        for step in range(steps):
            batches = fit.batches(step)
            _synchronize(loaded.device)
            begin = time.perf_counter()
            fit.step(step, batches)
            _synchronize(loaded.device)
            taken.append(time.perf_counter() - begin)
        return min(taken[1:])
    finally:
        detach(loaded.model, cohort)
        gc.collect()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
