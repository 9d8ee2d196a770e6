"""The figures of a choice, each with its evidence: plain JSON values and the same in words.

Keys are those of recommendation.json (docs/files.md); ``text`` says where a figure comes from, or why there is none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from loracle.spec.factors import setting_words
from loracle.verdict import entries, paired
from loracle.verdict.budget import Memory, Time, Wish, keeps_numbers
from loracle.verdict.choice import losses_of
from loracle.verdict.comparisons import Judged
from loracle.verdict.evidence import Record, StudyEvidence
from loracle.verdict.scope import label, scope_of

BESIDE = ("precision", "base", "task")  # named before the setting, not in it


def name_of(found: StudyEvidence, cell: Record) -> str:
    """``nf4 at rank 8``: what tells the cell from the others of its ground."""
    return f"{label(cell)}{entries.where(scope_of(found, cell), BESIDE)}"


def change_words(change: Mapping[str, Any]) -> str:
    """``batch size 2 and gradient accumulation 4``."""
    return " and ".join(setting_words(path, value) for path, value in change.items())


def memory_figures(memory: Memory) -> dict[str, Any]:
    """``memory`` of a cell."""
    return {**asdict(memory), "text": _memory_text(memory)}


def _memory_text(memory: Memory) -> str:
    if memory.needs_bytes is None:
        return f"not known: {memory.reason}"
    parts = [f"in {memory.storage} storage" if memory.storage else "", f"on {memory.device}" if memory.device else ""]
    text = f"{amount(memory)} {' '.join(part for part in parts if part)}".rstrip()
    if memory.at_least:
        return f"more than {text} ({memory.reason})"
    beside = [
        f"{entries.size(size)} {words}"
        for size, words in (
            (memory.longest_bytes, "for the longest batch"),
            (memory.beside_bytes, "beside the peak"),
        )
        if size
    ]
    if beside and memory.basis == "measured":
        text += f", {entries.size(memory.peak_bytes or 0)} of it the measured peak, {' and '.join(beside)} predicted"
    return f"{text} ({'; '.join(part for part in (memory.reason, memory.source) if part)})"


def amount(memory: Memory) -> str:
    """``3.41 GB (predicted)``."""
    return f"{entries.size(memory.needs_bytes or 0)} ({memory.basis})"


def remedy(cell: Record, change: Mapping[str, Any] | None, changed: Memory | None, wish: Wish) -> str:
    """What would make a cell fit, as the end of a sentence; empty where no forecast of it was made."""
    if str(cell["id"]) not in wish.forecasts.fits:
        return ""
    if not change or changed is None:
        return "; no single change is known that would fit"
    text = f"; would fit with {change_words(change)} ({entries.size(changed.needs_bytes or 0)} predicted)"
    return text if keeps_numbers(cell, change) else f"{text}, which changes what is learned: not shown here"


def time_figures(time: Time) -> dict[str, Any]:
    """``time`` of an option."""
    return {**asdict(time), "text": _time_text(time)}


def _time_text(time: Time) -> str:
    if time.ms_per_step is None:
        return f"not known: {time.reason}"
    steps = time.ms_per_step
    spread = f", p10 to p90 {steps['p10']:.3g} to {steps['p90']:.3g}" if steps.get("p10") and steps.get("p90") else ""
    count = f", n = {steps['n']} steps" if steps.get("n") else ""
    return (
        f"{steps['median']:.3g} ms a step in {time.storage or 'unnamed'} storage on {time.device or 'an unnamed device'}"
        f" (median of one probe{spread}{count}; {time.source})"
    )


def own_quality(found: StudyEvidence, cell: Record) -> dict[str, Any]:
    """The reference's own figure: there is nothing to hold it against."""
    losses = losses_of(found, cell)
    try:
        interval = paired.seeds_only(np.asarray(list(losses.values()))).interval()
    except ValueError:  # all seeds alike
        interval = None
    mean = float(np.mean(list(losses.values())))
    shown = f" (95% interval {interval[0]:.4f} to {interval[1]:.4f} over seeds," if interval else " ("
    return {
        "verdict": "reference",
        "metric": "eval_loss",
        "estimate": mean,
        "interval": interval,
        "level": 0.95,
        "margin": None,
        "n": len(losses),
        "difference": None,
        "against": None,
        "records": list(losses),
        "text": f"mean eval loss {mean:.4f}{shown} {entries.seeds_text(len(losses))})".replace("( ", "("),
    }


def claimed_quality(found: StudyEvidence, judged: Judged) -> dict[str, Any]:
    """A cell's claim with its evidence, in the keys of verdicts.json."""
    pairing = judged.comparison.pairing
    return {
        "verdict": judged.verdict,
        "metric": judged.comparison.claim.metric,
        "estimate": judged.measured.estimate if judged.measured else None,
        "interval": judged.interval,
        "level": 1.0 - judged.alpha,
        "margin": judged.comparison.claim.margin,
        "n": len(judged.seeds),
        "difference": judged.difference,
        "against": pairing.reference["id"],
        "records": pairing.run_ids(found, judged.seeds),
        "text": costs(judged, ""),
    }


def costs(judged: Judged | None, before: str) -> str:
    """``+1.2% eval loss against it (95% interval …, n = 5 seeds, paired): difference not shown``."""
    if judged is None or judged.measured is None or not math.isfinite(judged.measured.estimate):
        return f"{before}eval loss could not be compared ({judged.problem if judged else 'no pairs'})"
    text = f"{before}{entries.percent(judged.measured.estimate)} eval loss"
    level = entries.level_text(1.0 - judged.alpha) + (" (Holm)" if judged.adjusted else "")
    bounds = f"{level} interval {entries.bounds(judged.interval, entries.percent)}, " if judged.interval else ""
    shown = f", {judged.difference}" if judged.difference in ("better", "worse") else ", difference not shown"
    return f"{text} ({bounds}paired, {entries.seeds_text(len(judged.seeds))}{shown if judged.difference else ''})"
