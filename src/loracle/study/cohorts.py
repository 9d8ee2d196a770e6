"""Cohorts: which runs train side by side. Fixed in plan.json, because bits depend on who sits beside whom.

How large a cohort may be is measured by the inspect job; here runs are only sorted and divided.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from loracle.base.names import slug
from loracle.spec.factors import precision_label
from loracle.store.files import digest
from loracle.study.cells import PlannedCell, plain

# Members of a cohort have these in common; rank, targets, alpha, dropout, learning rate and schedule are their own.
SHARED = ("base", "task", "precision", "double_quant", "block_size", "compute_dtype", "storage")
SHARED_ADAPTER = ("method", "dtype", "options", "modules_to_save")
SHARED_TRAIN = (
    "batch_size", "gradient_accumulation", "gradient_checkpointing", "optimizer", "steps", "epochs", "eval_every",
    "best_checkpoint", "base_dropout", "early_stopping", "group_by_length",
)  # fmt: skip
STARTUP_S = 10.0  # what one more worker process costs: imports, loading, its own evaluation
DEFAULT_SIZE = {"cpu": 4, "cuda": 16}  # where nothing was measured (`loracle plan` without weights)


@dataclass(frozen=True)
class Load:
    """A group of runs that may share a base: how many, how many at most in one cohort, seconds of one run."""

    count: int
    size: int
    seconds: float
    fixed: bool = False


def group_key(planned: PlannedCell) -> str:
    """Equal for cells whose runs may sit in one cohort."""
    config = plain(planned.cell)
    shared = {key: config[key] for key in SHARED}
    shared["adapter"] = {key: config["adapter"].get(key) for key in SHARED_ADAPTER}
    shared["train"] = {key: config["train"].get(key) for key in SHARED_TRAIN}
    return digest(shared)[:12]


def even(count: int, pieces: int) -> list[int]:
    """``count`` in ``pieces`` as equal as can be, larger ones first: 14 in 3 is 5, 5, 4."""
    share, extra = divmod(count, pieces)
    return [share + 1] * extra + [share] * (pieces - extra)


def makespan(costs: Sequence[float], workers: int) -> float:
    """Seconds until all are done, longest first on the worker that is free first."""
    ends = [0.0] * max(1, workers)
    for cost in sorted(costs, reverse=True):
        heapq.heapreplace(ends, ends[0] + cost)
    return max(ends)


def divide(loads: Sequence[Load], workers: int) -> list[list[int]]:
    """Cohort sizes of each group: none above its size, evenly split, so that all workers end at about one time."""
    least = [math.ceil(load.count / load.size) for load in loads]
    choices = [
        [few] if load.fixed else list(range(few, min(load.count, few + workers - 1) + 1))
        for load, few in zip(loads, least, strict=True)
    ]

    def cost(pieces: tuple[int, ...]) -> tuple[float, int]:
        sizes = [(n, load) for p, load in zip(pieces, loads, strict=True) for n in even(load.count, p)]
        return makespan([STARTUP_S + n * load.seconds for n, load in sizes], workers), sum(pieces)

    if math.prod(len(options) for options in choices) > 4096:
        best = _better(least, [options[-1] for options in choices], loads, cost)
    else:
        best = min(itertools.product(*choices), key=cost)
    return [even(load.count, pieces) for load, pieces in zip(loads, best, strict=True)]


def _better(
    least: Sequence[int],
    most_: Sequence[int],
    loads: Sequence[Load],
    cost: Callable[[tuple[int, ...]], tuple[float, int]],
) -> tuple[int, ...]:
    """Too many choices to try them all: from the fewest pieces on, cut where the longest cohort is; the best met is taken."""
    pieces, best = list(least), tuple(least)
    while open_ := [i for i, n in enumerate(pieces) if n < most_[i]]:
        pieces[max(open_, key=lambda i: loads[i].seconds * math.ceil(loads[i].count / pieces[i]))] += 1
        best = min(best, tuple(pieces), key=cost)
    return best


def most(planned: PlannedCell, asked: int | str, sizing: dict[str, Any], device: str) -> int:
    """The largest cohort allowed. LLM.int8() picks its outlier columns over the whole batch, so int8 trains alone,
    but on a CPU, where bitsandbytes quantizes the weights only. So do PEFT's other methods and full fine-tuning, and a base
    with dropout of its own, whose stream neighbours would share."""
    cell = planned.cell
    if cell.alone or cell.train.base_dropout or ("int8" in cell.precision_names and device != "cpu"):
        return 1
    if isinstance(asked, int):
        return asked
    return int(sizing.get("size") or DEFAULT_SIZE.get(device, 4))


def chunks(runs: Sequence[dict[str, Any]], sizes: Sequence[int]) -> list[list[dict[str, Any]]]:
    """``runs`` in order, cut at ``sizes``."""
    ends = list(itertools.accumulate(sizes))
    return [list(runs[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def cohort_id(planned: PlannedCell, runs: Sequence[dict[str, Any]]) -> str:
    """Readable, and different for every composition."""
    readable = slug(precision_label(planned.cell.precision), 32)
    return f"{readable}-{len(runs)}runs-{digest([run['id'] for run in runs])[:8]}"


def leaves(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """The cohorts to train: as planned, those that ran out of memory replaced by their halves."""
    splits = plan.get("splits", {})

    def expand(cohort: dict[str, Any]) -> list[dict[str, Any]]:
        if cohort["id"] not in splits:
            return [cohort]
        return [leaf for half in splits[cohort["id"]] for leaf in expand(part_of(cohort, half))]

    return [leaf for cohort in plan["cohorts"] for leaf in expand(cohort)]


def part_of(cohort: dict[str, Any], half: dict[str, Any]) -> dict[str, Any]:
    """One of a cohort's halves as a cohort of its own; what was foretold of the whole is not true of it."""
    return {**cohort, "estimated_s": None, "needs_bytes": None, **half}


def halves(cohort: dict[str, Any]) -> list[dict[str, Any]]:
    """The two halves of a cohort that does not fit."""
    runs = cohort["runs"]
    middle = (len(runs) + 1) // 2
    return [{"id": f"{cohort['id']}-a", "runs": runs[:middle]}, {"id": f"{cohort['id']}-b", "runs": runs[middle:]}]
