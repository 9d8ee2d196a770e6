"""A choice within a budget as plain JSON values and plain sentences: every figure with where it comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from loracle.verdict import entries
from loracle.verdict.budget import Memory, Wish, keeps_numbers, memory_of
from loracle.verdict.choice import Choice, Option, Unfit, judgements, losses_of, milliseconds_per_row
from loracle.verdict.choice_figures import (
    amount,
    change_words,
    claimed_quality,
    costs,
    memory_figures,
    name_of,
    own_quality,
    remedy,
    time_figures,
)
from loracle.verdict.comparisons import Judged
from loracle.verdict.evidence import Record, StudyEvidence
from loracle.verdict.paired import MIN_SEEDS
from loracle.verdict.resources import time_ratio
from loracle.verdict.scope import method_of, quantized, rank_of
from loracle.verdict.statements import lost_text


def described(found: StudyEvidence, choice: Choice, wish: Wish) -> dict[str, Any]:
    """One ground's part of recommendation.json (docs/files.md)."""
    first, second = ([*choice.options, None, None])[:2]
    return {
        "ground": choice.ground.name,
        "base": choice.ground.base,
        "task": choice.ground.task,
        "text": sentence(found, choice, wish),
        "reference": _reference(found, choice),
        "recommended": None if first is None else _option(found, first, wish),
        "runner_up": None
        if first is None or second is None
        else _option(found, second, wish) | {"separated_by": separation(found, first, second, wish)},
        "also_fit": [_option(found, option, wish) for option in choice.options[2:]],
        "does_not_fit": [_unfit(found, one, wish) for one in choice.unfit],
        "undecided": [_undecided(found, cell, judged, memory, wish) for cell, judged, memory in choice.undecided],
        "excluded": [
            {
                **_cell(found, one.cell, {}),
                "memory": memory_figures(memory_of(found, one.cell, wish)),
                "kind": one.kind,
                "reason": one.why or costs(one.judged, "shown to lose more than the margin: "),
                "quality": None if one.judged is None else claimed_quality(found, one.judged),
            }
            for one in choice.excluded
        ],
        "notes": _notes(choice, wish),
    }


def sentence(found: StudyEvidence, choice: Choice, wish: Wish) -> str:
    """What to use, or the one line that says why there is nothing."""
    if choice.reference is None:
        most = max((len(losses_of(found, cell)) for cell in choice.ground.cells), default=0)
        return f"Nothing is decided: no cell has {MIN_SEEDS} finished seeds (the most is {most})."
    if not choice.options:
        return _nothing_fits(found, choice, wish)
    best = choice.options[0]
    text = f"Within {wish.text}: use {name_of(found, best.cell)}"
    text += f" with {change_words(best.change)} (not run so in this study)" if best.change else ""
    text += f", {entries.size(best.memory.needs_bytes or 0)} {best.memory.basis}"
    text += f", {best.time.ms_per_step['median']:.3g} ms a step" if best.time.ms_per_step else ""
    if best.judged is None:
        text += ": the cell with the lowest mean eval loss, against which the others are held."
    else:
        text += f": its loss is shown to stay within {_percent(wish.margin)} of {name_of(found, choice.reference)}."
    if len(choice.options) > 1:
        second = choice.options[1]
        text += f" Runner-up: {name_of(found, second.cell)}"
        text += f" with {change_words(second.change)}." if second.change else "."
    return text


def reasons(place: Mapping[str, Any]) -> list[str]:
    """The evidence of a described choice in sentences, the recommended option's first."""
    best, second, reference = place["recommended"], place["runner_up"], place["reference"]
    found = [] if best is None else [f"Memory: {best['memory']['text']}. Time: {best['time']['text']}."]
    if best is not None and best["quality"]["verdict"] != "reference":
        found.append(f"Quality: {best['quality']['text']}.")
    if reference is not None:
        found.append(reference["text"])
    if second is not None:
        found.append(f"The runner-up, {second['name']}, {'; '.join(second['separated_by'])}.")
    return [*found, *place["notes"]]


def separation(found: StudyEvidence, best: Option, other: Option, wish: Wish) -> list[str]:
    """What separates the runner-up from the recommended: what is preferred first."""
    parts = {
        "speed": _slower(best, other),
        "memory": _needs_more(best, other),
        "quality": costs(_against(found, best, other, wish), ""),
    }
    return [parts[wish.prefer], *(text for name, text in parts.items() if name != wish.prefer)]


def _nothing_fits(found: StudyEvidence, choice: Choice, wish: Wish) -> str:
    text = f"Nothing that is shown to stay within {_percent(wish.margin)} fits {wish.text}"
    if not choice.unfit:
        return f"{text}: what the cells that are good enough take is not known."
    least = min(choice.unfit, key=lambda one: one.option.memory.needs_bytes or 0)
    text += f": the smallest, {name_of(found, least.option.cell)}, needs ≥ {amount(least.option.memory)}"
    text += remedy(least.option.cell, least.change, least.changed, wish)
    small = [m for _, _, m in choice.undecided if m.needs_bytes is not None and m.needs_bytes <= wish.bytes]
    return f"{text}. Undecided, and would fit: {len(small)}." if small else f"{text}."


def _option(found: StudyEvidence, option: Option, wish: Wish) -> dict[str, Any]:
    fit = wish.forecasts.fits.get(str(option.cell["id"])) or {}
    return {
        **_cell(found, option.cell, option.change),
        "change": dict(option.change) or None,
        "largest_batch": None if option.change else fit.get("largest_batch"),
        "memory": memory_figures(option.memory),
        "time": time_figures(option.time),
        "quality": own_quality(found, option.cell) if option.judged is None else claimed_quality(found, option.judged),
    }


def _unfit(found: StudyEvidence, one: Unfit, wish: Wish) -> dict[str, Any]:
    option, change = one.option, one.change
    return {
        **_cell(found, option.cell, {}),
        "memory": memory_figures(option.memory),
        "quality": own_quality(found, option.cell) if option.judged is None else claimed_quality(found, option.judged),
        "change": dict(change) if change else None,
        "change_needs_bytes": one.changed.needs_bytes if one.changed else None,
        "change_keeps_numbers": keeps_numbers(option.cell, change) if change else None,
        "text": f"needs ≥ {amount(option.memory)}{remedy(option.cell, change, one.changed, wish)}",
    }


def _undecided(found: StudyEvidence, cell: Record, judged: Judged | None, memory: Memory, wish: Wish) -> dict[str, Any]:
    needs = None if judged is None or judged.needs is None else judged.needs.as_dict()
    if judged is None:
        have = len(losses_of(found, cell))
        missing = max(MIN_SEEDS - have, 1)
        why = f"{entries.seeds_text(have)}; an interval needs at least {missing} more"
    elif needs is not None:
        why = needs["text"]
    else:
        why = judged.problem or "that was the last planned look"
    lost = f". {lost_text(judged.comparison.pairing).rstrip('.')}" if judged and judged.comparison.pairing.lost else ""
    fits = None if memory.needs_bytes is None else memory.needs_bytes <= wish.bytes and not memory.at_least
    beside = "" if fits is None or fits else f"; it needs ≥ {amount(memory)} too"
    return {
        **_cell(found, cell, {}),
        "needs": needs,
        "fits": fits,
        "memory": memory_figures(memory),
        "quality": None if judged is None else claimed_quality(found, judged),
        "text": f"undecided: {why}{beside}{lost}",
    }


def _cell(found: StudyEvidence, cell: Record, change: Mapping[str, Any]) -> dict[str, Any]:
    """What the cell is, ``change`` made."""
    train = dict((cell.get("config") or {}).get("train") or {})
    new = train | {path.removeprefix("train."): value for path, value in change.items()}
    name = name_of(found, cell) + (f" with {change_words(change)}" if change else "")
    return {
        "cell": cell["id"],
        "name": name,
        "precision": cell.get("precision"),
        "method": method_of(cell),
        "rank": rank_of(cell),
        "targets": cell.get("targets"),
        "gradient_checkpointing": bool(new.get("gradient_checkpointing")),
        "batch_size": new.get("batch_size"),
        "gradient_accumulation": int(new.get("gradient_accumulation") or 1),
    }


def _against(found: StudyEvidence, best: Option, other: Option, wish: Wish) -> Judged:
    return judgements(found, [other.cell], best.cell, wish)[str(other.cell["id"])]


def _slower(best: Option, other: Option) -> str:
    mine, its = (milliseconds_per_row(option) for option in (best, other))
    if its is None or mine is None:
        return "its time was not measured" if its is None else "the recommended one's time was not measured"
    if best.time.device != other.time.device:
        return f"its time was measured on {other.time.device}, which does not compare"
    ratio, interval = time_ratio(other.time.ms_per_step or {}, best.time.ms_per_step or {})
    rows = math.log(its / mine) - ratio  # other batch sizes: time over the rows of a step
    text = f"changes the time for as many rows by {entries.percent(ratio + rows)}"
    if interval is None:
        return f"{text} (one probe each, spread unknown)"
    low, high = interval[0] + rows, interval[1] + rows
    apart = "" if low > 0 or high < 0 else ": the two are not told apart"
    return f"{text} (one probe each, 95% interval {entries.bounds((low, high), entries.percent)} from the spread of steps{apart})"


def _needs_more(best: Option, other: Option) -> str:
    mine, its = (option.memory.needs_bytes or 0 for option in (best, other))
    more = "more" if its >= mine else "less"
    return f"needs {entries.size(abs(its - mine))} {more} ({amount(other.memory)} against {amount(best.memory)})"


def _reference(found: StudyEvidence, choice: Choice) -> dict[str, Any] | None:
    cell = choice.reference
    if cell is None:
        return None
    own = own_quality(found, cell)
    kind = "cell" if quantized(cell) else "16-bit cell"
    text = f"Quality is held against {name_of(found, cell)}, the {kind} with the lowest mean eval loss"
    return {"cell": cell["id"], "name": name_of(found, cell), "quality": own, "text": f"{text}: {own['text']}."}


def _notes(choice: Choice, wish: Wish) -> list[str]:
    notes = []
    if wish.prefer == "speed" and len(choice.options) > 1 and not choice.timed:
        measured = any(option.time.ms_per_step is not None for option in choice.options)
        why = "was measured on several devices, which do not compare" if measured else "was not measured"
        notes.append(f"Speed {why} (question speed probes it): the least memory comes first.")
    if wish.prefer == "quality" and len(choice.options) > 1:
        notes.append("The lowest of several means is low by luck too: see what separates it from the runner-up.")
    if wish.forecasts.reason:
        why = wish.forecasts.reason.rstrip(".")
        notes.append(f"No forecast for {wish.text} ({why}): no change is proposed for what does not fit.")
    return notes


def _percent(margin: float) -> str:
    return f"{100 * margin:.3g}%"
