"""Choosing within a memory budget: which cells are good enough, which of them fit, which comes first.

Good enough is one claim for every cell: it costs less than the margin in eval loss against one cell of its ground, the
16-bit cell with the lowest mean loss (any cell's, where no 16-bit cell finished three seeds). The two are held together
as recipes, whatever differs, paired by seed; all claims of a ground are one Holm family, so that a cell is not taken
because many were tried. Taking the best cell as the reference makes the claim harder, not easier: its mean is low by
luck too. A cell that does not fit is a candidate again with the forecast's smallest change, if that leaves what is
learned as it is. Words: ``choice_words``, figures: ``choice_figures``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loracle.verdict import claims
from loracle.verdict.budget import (
    Memory,
    Time,
    Wish,
    changed_memory,
    keeps_numbers,
    memory_of,
    rows_per_step,
    time_of,
)
from loracle.verdict.comparisons import Judged, judge_family
from loracle.verdict.evidence import Record, StudyEvidence
from loracle.verdict.grounds import Ground
from loracle.verdict.knowledge import broken, broken_words
from loracle.verdict.paired import MIN_SEEDS
from loracle.verdict.scope import compare, quantized

RECIPES = {"as": "recipe"}


@dataclass(frozen=True)
class Option:
    """A cell that is good enough, as it was run or with ``change`` (settings by dotted path). ``judged`` is None for the
    reference itself."""

    cell: Record
    memory: Memory
    time: Time
    judged: Judged | None
    change: Mapping[str, Any]


@dataclass(frozen=True)
class Unfit:
    """A cell that is good enough and does not fit; ``change`` and ``changed`` are the smallest change known that would."""

    option: Option
    change: Mapping[str, Any] | None
    changed: Memory | None


@dataclass(frozen=True)
class Excluded:
    """A cell that is out: ``kind`` is ``broken``, ``diverged``, ``rejected`` (``judged`` says by what) or ``memory``."""

    cell: Record
    kind: str
    why: str
    judged: Judged | None = None


@dataclass(frozen=True)
class Choice:
    """``options`` fit, best first by what is preferred. ``undecided`` cells come with what they take. ``timed``: whether
    times could be compared; ``reference`` None: nothing is decided."""

    ground: Ground
    reference: Record | None
    options: Sequence[Option]
    unfit: Sequence[Unfit]
    undecided: Sequence[tuple[Record, Judged | None, Memory]]
    excluded: Sequence[Excluded]
    timed: bool


def choose(found: StudyEvidence, ground: Ground, wish: Wish) -> Choice:
    """The choice among the cells of one ground."""
    excluded = _unsafe(found, ground)
    out = {str(one.cell["id"]) for one in excluded}
    left = [cell for cell in ground.cells if cell["id"] not in out]
    reference = _reference(found, left)
    judged = {} if reference is None else judgements(found, [c for c in left if c is not reference], reference, wish)
    undecided: list[tuple[Record, Judged | None, Memory]] = []
    fitting: list[Option] = []
    unfit: list[Unfit] = []
    for cell in left:
        answer, memory = judged.get(str(cell["id"])), memory_of(found, cell, wish)
        if answer is None and cell is not reference:
            undecided.append((cell, None, memory))
        elif answer is not None and answer.verdict == "rejected":
            excluded.append(Excluded(cell, "rejected", "", answer))
        elif answer is not None and answer.verdict != "supported":
            undecided.append((cell, answer, memory))
        elif memory.needs_bytes is None:
            excluded.append(Excluded(cell, "memory", f"what it takes is not known: {memory.reason}", answer))
        else:
            option = Option(cell, memory, time_of(found, cell), answer, {})
            _place(option, wish, fitting, unfit)
    timed = _timed(fitting)
    fitting.sort(key=lambda option: _order(option, wish, timed))
    return Choice(ground, reference, fitting, unfit, undecided, excluded, timed)


def judgements(found: StudyEvidence, cells: Sequence[Record], reference: Record, wish: Wish) -> dict[str, Judged]:
    """``{cell id: its claim against the reference}``, one Holm family."""
    claim = claims.degradation(wish.margin)
    family = [compare(found, claim, cell, reference, "precision", RECIPES) for cell in cells]
    judged = judge_family(found, family, found.plan.get("looks"), adjust=True)
    return {str(cell["id"]): answer for cell, answer in zip(cells, judged, strict=True)}


def losses_of(found: StudyEvidence, cell: Record) -> dict[str, float]:
    """``{run id: eval loss}`` of the cell's finished runs."""
    runs = found.runs.get(str(cell["id"]), {}).values()
    done = [r for r in runs if r.get("status") == "done" and r.get("eval_loss") is not None]
    return {str(r["id"]): float(r["eval_loss"]) for r in done}


def estimate_of(option: Option) -> float:
    """Log ratio of the loss against the reference; 0 of the reference itself."""
    measured = option.judged.measured if option.judged else None
    return measured.estimate if measured is not None else 0.0


def milliseconds_per_row(option: Option) -> float | None:
    """Time of a step over its rows: cells of other batch sizes compare by that. None where it was not measured."""
    steps = option.time.ms_per_step
    train = (option.cell.get("config") or {}).get("train") or {}
    return None if steps is None else float(steps["median"]) / rows_per_step(train)


def _reference(found: StudyEvidence, cells: Sequence[Record]) -> Record | None:
    known = {str(c["id"]): list(losses_of(found, c).values()) for c in cells}
    enough = [c for c in cells if len(known[str(c["id"])]) >= MIN_SEEDS]
    among = [c for c in enough if not quantized(c)] or enough
    return min(among, key=lambda c: float(np.mean(known[str(c["id"])])), default=None)


def _unsafe(found: StudyEvidence, ground: Ground) -> list[Excluded]:
    """Cells whose precision breaks the base, and cells with a run that diverged: not to be relied on, whatever their mean."""
    lost, out = broken(found), []
    for cell in ground.cells:
        states = [r.get("status") for r in found.runs.get(str(cell["id"]), {}).values()]
        if str(cell["id"]) in lost:
            out.append(Excluded(cell, "broken", broken_words(cell, lost[str(cell["id"])]).rstrip(".")))
        elif "diverged" in states:
            out.append(Excluded(cell, "diverged", f"{states.count('diverged')} of {len(states)} runs diverged"))
    return out


def _place(option: Option, wish: Wish, fitting: list[Option], unfit: list[Unfit]) -> None:
    """Among those that fit, or those that do not and, with a change that leaves what is learned, those that would."""
    if option.memory.needs_bytes is not None and option.memory.needs_bytes <= wish.bytes and not option.memory.at_least:
        fitting.append(option)
        return
    change, then = changed_memory(option.cell, wish)
    unfit.append(Unfit(option, change, then))
    if change and then is not None and keeps_numbers(option.cell, change):
        untimed = Time(None, reason="not run with this change, so its time was not measured")
        fitting.append(Option(option.cell, then, untimed, option.judged, change))


def _timed(options: Sequence[Option]) -> bool:
    """Whether times compare: some were measured, and all of these on one device."""
    return len({option.time.device for option in options if option.time.ms_per_step is not None}) == 1


def _order(option: Option, wish: Wish, timed: bool) -> tuple[float, ...]:
    time = milliseconds_per_row(option) if timed else None
    slow = float("inf") if time is None else time
    needs = float(option.memory.needs_bytes or 0)
    if wish.prefer == "quality":
        return (estimate_of(option), slow, needs)
    return (needs, slow) if wish.prefer == "memory" else (slow, needs)
