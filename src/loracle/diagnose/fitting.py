"""What fits on a GPU, from forecasts: whether, how much it needs, how far a cell could grow, the smallest change that would help.

Pure functions over ``needs``: a variation of a cell → bytes of a GPU that can train it, or None where nothing is known. Bytes grow
close to linearly in batch, rank and members, so two forecasts say how far one can go, and a third checks it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MARGIN = 0.92
"""Share of the budget that a cohort may be predicted to take: batches differ, and what is freed is not always of use again."""
LARGEST_COHORT = 64
MOST_BATCH = 4096
"""Rows of the largest batch that is looked for: a forecast of many more takes gigabytes itself, and no one trains so."""
TRIES = 12
"""Forecasts for one such search at most."""
SMALLER_OPTIMIZER = "paged_adamw_8bit"
SMALLER_PRECISION = "nf4"

Change = dict[str, Any]
"""Settings by dotted path, as ``--set`` takes them."""
Needs = Callable[[Change], int | None]


@dataclass(frozen=True)
class Budget:
    """Bytes of one GPU, and where the figure comes from."""

    bytes: int
    source: str


@dataclass(frozen=True)
class Settings:
    """What of a cell may change. ``most_rank``: the narrowest layer's width; None for a method without a rank."""

    batch_size: int
    accumulation: int
    rank: int
    most_rank: int | None
    checkpointing: bool
    may_checkpoint: bool
    optimizer: str
    precision: str
    may_quantize: bool


def batch_of(settings: Settings, size: int) -> Change:
    """Another batch size; the optimizer's step keeps its rows where that divides evenly."""
    change: Change = {"train.batch_size": size}
    rows = settings.batch_size * settings.accumulation
    if size < settings.batch_size and rows % size == 0:
        change["train.gradient_accumulation"] = rows // size
    return change


def judge(settings: Settings, budget: Budget, needs: Needs, *, grow: bool = True) -> dict[str, Any]:
    """``{budget_bytes, budget_source, fits, needs_bytes, largest_batch, largest_rank, change, change_needs_bytes}``.

    ``largest_batch`` (up to ``MOST_BATCH``) and ``largest_rank``: with everything else as it is, null where even the smallest does
    not fit. ``change``: the smallest single change that would make a cell fit which does not; null where none would, or none is
    needed. Without ``grow`` the largest are not looked for, which takes several forecasts each, and null.
    """
    here = needs({})
    record: dict[str, Any] = {"budget_bytes": budget.bytes, "budget_source": budget.source}
    if here is None:
        return record | dict.fromkeys(
            ("fits", "needs_bytes", "largest_batch", "largest_rank", "change", "change_needs_bytes")
        )
    fits = here <= budget.bytes
    change, then = (None, None) if fits else smallest_change(settings, budget, needs)
    most = settings.most_rank
    return record | {
        "fits": fits,
        "needs_bytes": here,
        "largest_batch": None
        if not grow
        else largest(settings.batch_size, budget.bytes, lambda n: needs(batch_of(settings, n)), MOST_BATCH),
        "largest_rank": None
        if most is None or not grow
        else largest(settings.rank, budget.bytes, lambda n: needs({"adapter.rank": n}), most),
        "change": change,
        "change_needs_bytes": then,
    }


def largest(now: int, budget: int, needs: Callable[[int], int | None], most: int) -> int | None:
    """The largest number up to ``most`` that was found to fit, to within 2% above 50; null where none was, or nothing is known.

    It lies between one that fits and one that does not. The next to try is where the line through both meets the budget, or
    through two that fit; bytes move in blocks of up to 20 MiB, so where the line is flat it is four times as many, or the middle.
    """
    fit, over = list[tuple[int, int]](), list[tuple[int, int]]()  # (number, bytes), best last
    number, last = min(now, most), None
    for _ in range(TRIES):
        need = needs(number)
        if need is None:
            break
        side = fit if need <= budget else over
        side.append((number, need))
        low, high = fit[-1][0] if fit else 0, over[-1][0] if over else most + 1
        if high - low <= max(1, low // 50):
            break
        stalls = side is last and fit and over  # the line keeps to one side: it is none
        number = (low + high) // 2 if stalls else min(max(_next(fit, over, budget), low + 1), high - 1)
        last = side
    return fit[-1][0] if fit else None


def _next(fit: list[tuple[int, int]], over: list[tuple[int, int]], budget: int) -> int:
    """The number to try next; it may lie beyond the bracket."""
    if not fit:
        return over[-1][0] // 2
    (low, at_low), ahead = fit[-1], over[-1] if over else None
    known = ahead or (fit[-2] if len(fit) > 1 else None)
    slope = (known[1] - at_low) / (known[0] - low) if known else 0.0
    if slope > 0:
        return int(low + (budget - at_low) / slope)
    return (low + ahead[0]) // 2 if ahead else 4 * low


def smallest_change(settings: Settings, budget: Budget, needs: Needs) -> tuple[Change | None, int | None]:
    """(the first single change, from mild to drastic, with which the cell fits, bytes that it needs then)."""
    for change in _candidates(settings):
        need = needs(change)
        if need is not None and need <= budget.bytes:
            return change, need
    return None, None


def _candidates(settings: Settings) -> list[Change]:
    """Checkpointing costs time alone; a smaller batch with accumulation, too; then the optimizer's bits, the base's, the rank."""
    found: list[Change] = []
    if settings.may_checkpoint and not settings.checkpointing:
        found.append({"train.gradient_checkpointing": True})
    size = settings.batch_size // 2
    while size >= 1:
        found.append(batch_of(settings, size))
        size //= 2
    if settings.optimizer != SMALLER_OPTIMIZER:
        found.append({"train.optimizer": SMALLER_OPTIMIZER})
    if settings.may_quantize:
        found.append({"precision": SMALLER_PRECISION})
    rank = settings.rank // 2
    while settings.most_rank is not None and rank >= 1:
        found.append({"adapter.rank": rank})
        rank //= 2
    return found


def members(budget: Budget, needs: Callable[[int], int | None], most: int) -> dict[str, Any]:
    """How many runs fit side by side: ``{size, fixed_bytes, bytes_per_member, budget_bytes, margin, reason}``.

    ``needs``: members → bytes. ``fixed_bytes`` are there however many they are: the line is exact at two and at ``size`` runs, and
    a few percent low between them.
    """
    most = min(most, LARGEST_COHORT)
    record: dict[str, Any] = {"budget_bytes": budget.bytes, "budget_source": budget.source, "margin": MARGIN}
    room = int(budget.bytes * MARGIN)
    every = needs(most)  # all of them, which is the common case, or as many as are found to fit
    size = most if every is not None and every <= room else largest(1, room, needs, most) or 1
    need, two = needs(size), needs(2) if most > 1 else 0
    if need is None or two is None:
        return record | {"size": 1, "fixed_bytes": None, "bytes_per_member": None, "reason": "memory is not predicted"}
    if size > 2:
        each = (need - two) // (size - 2)
    else:
        each = two - (needs(1) or two) if most > 1 else 0
    record |= {"fixed_bytes": need - size * each, "bytes_per_member": each}
    if need > room:
        reason = f"one run alone needs {need / 1e9:.1f} GB, with a margin of {1 - MARGIN:.0%} more than there is"
        return record | {"size": 1, "reason": reason}
    reason = "all fit" if size == most else "predicted: as many as fit"
    return record | {"size": size, "reason": f"{reason}, {need:,} of {budget.bytes:,} bytes"}


def changed(config: Mapping[str, Any], change: Change) -> dict[str, Any]:
    """A cell's config (a nested mapping) with ``change`` made. With another precision come 4-bit settings as they are when nothing
    is said of them: a 16-bit cell has none."""
    new = {k: dict(v) if isinstance(v, Mapping) else v for k, v in config.items()}
    if "precision" in change:
        new |= {"double_quant": True, "block_size": 64}
    for path, value in change.items():
        *parents, last = path.split(".")
        place = new
        for parent in parents:
            place = place[parent]
        place[last] = value
    return new
