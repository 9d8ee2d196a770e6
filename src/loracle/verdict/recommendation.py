"""What to use, in plain sentences: the cheapest cell that is shown to be good enough, and what is undecided.

A 16-bit reference is always a candidate. A quantized cell is one when its degradation was supported and its precision does
not break the base before training (what training mends on one task is lost on all others). Both
must have a rank that is shown to be enough, where that was asked. Cheap means peak bytes: measured where every
candidate of the setting was probed, else predicted. Among settings
that no question compares (learning rates, targets), the group with the lowest mean 16-bit eval loss is taken,
and the text says so. Full fine-tuning is what adapters are set beside: it is recommended where there is no
adapter. Nothing is chosen across bases, tasks or tokenizers: each has a recommendation of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from loracle.verdict import entries
from loracle.verdict.budget import Wish, peaks_of
from loracle.verdict.choice import choose
from loracle.verdict.choice_figures import BESIDE
from loracle.verdict.choice_words import described, reasons
from loracle.verdict.entries import Entry
from loracle.verdict.evidence import Record, StudyEvidence
from loracle.verdict.grounds import Ground, grounds
from loracle.verdict.knowledge import broken
from loracle.verdict.scope import label, method_of, other_factors, quantized, rank_of, references, scope_of


def recommendation(given: Sequence[Entry], study: StudyEvidence, wish: Wish | None = None) -> dict[str, Any]:
    """``{text, cell, memory, why, runner_up, undecided}``; ``cell`` and ``runner_up`` are cell ids or None, ``memory`` says
    what the bytes of the text are: measured, predicted, or None where it has none. With a wish no ``memory`` but ``places``:
    the choice within its memory budget, for each base and task (``choice``).

    Of a study of several bases or tasks ``text`` and ``why`` hold one recommendation for each, named; ``cell`` and
    ``runner_up`` are the first one's.
    """
    undecided = [e["statement"] for e in given if e["verdict"] == "undecided"]
    places = grounds(study)
    if wish is not None:
        return _within_budget(given, study, places, wish) | {"undecided": undecided}
    if len(places) <= 1:
        one = _within(given, study, study.cells.values())
        notes = one.pop("notes")
        return one | {"why": [*one["why"], *notes], "undecided": undecided}
    found = [recommended_on(given, study, place) for place in places]
    first = next((one for one in found if one["cell"]), found[0])
    return {
        "text": " ".join(f"{place.name}: {one['text']}" for place, one in zip(places, found, strict=True)),
        "cell": first["cell"],
        "memory": "predicted" if any(one["memory"] == "predicted" for one in found) else first["memory"],
        "why": [reason for one in found for reason in one["why"]]
        + [f"{place.name}: {note}" for place, one in zip(places, found, strict=True) for note in one["notes"]],
        "runner_up": first["runner_up"],
        "undecided": undecided,
    }


def recommended_on(given: Sequence[Entry], study: StudyEvidence, place: Ground) -> dict[str, Any]:
    """The recommendation among one ground's cells: ``{text, cell, memory, why, notes, runner_up}``."""
    return _within([e for e in given if e["arm"] in place.ids], study, place.cells)


def _within(given: Sequence[Entry], study: StudyEvidence, cells: Collection[Record]) -> dict[str, Any]:
    """The recommendation among cells of one base and task."""
    candidates = _candidates(given, study, cells)
    if not candidates:
        text = "Nothing can be recommended yet: no 16-bit reference has a finished run."
        return {"text": text, "cell": None, "memory": None, "why": [], "notes": [], "runner_up": None}
    adapted = [cell for cell in candidates if method_of(cell) != "full"]
    best, notes = _best_group(adapted or candidates, study)
    sizes, basis = peaks_of(study, best)
    best.sort(key=lambda c: (sizes.get(str(c["id"]), float("inf")), -(rank_of(c) or 0)))
    chosen, others = best[0], best[1:]
    known = basis if chosen["id"] in sizes else None
    words = {"measured": "measured by its probe", "predicted": "predicted"}
    taken = f", {entries.size(sizes[chosen['id']])} {words[known]}" if known else ""
    if adapted:
        notes += _beside(chosen, [cell for cell in candidates if method_of(cell) == "full"], study)
    runner = others[0] if others else None
    return {
        "text": _text(given, study, chosen, taken, runner),
        "cell": chosen["id"],
        "memory": known,
        "why": _reasons(given, study, chosen),
        "notes": notes,
        "runner_up": runner["id"] if runner else None,
    }


def _within_budget(
    given: Sequence[Entry], study: StudyEvidence, places: Sequence[Ground], wish: Wish
) -> dict[str, Any]:
    found = [described(study, choose(study, place, wish), wish) for place in places]
    for one in found:
        best = one["recommended"]
        if best is not None and _contradicted(given, study.cells[str(best["cell"])]):
            one["notes"].append(f"Not everything speaks for {best['name']}: see the rejected claims below.")
        one["reasons"] = reasons(one)
    several = len(found) > 1
    first = next((one for one in found if one["recommended"]), None)
    return {
        "text": " ".join(f"{one['ground']}: {one['text']}" if several else one["text"] for one in found),
        "cell": first["recommended"]["cell"] if first else None,
        "why": [] if several else [reason for one in found for reason in one["reasons"]],
        "runner_up": first["runner_up"]["cell"] if first and first["runner_up"] else None,
        "places": found,
    }


def _candidates(given: Sequence[Entry], study: StudyEvidence, among: Collection[Record]) -> list[Record]:
    ids = {c["id"] for c in among} - set(broken(study))
    good = {e["arm"] for e in given if e["question"] == "degradation" and e["verdict"] == "supported"}
    cells = [c for c in references(study) if _mean_loss(study, c) is not None]
    cells += [c for c in study.cells.values() if c["id"] in good]
    return [c for c in cells if c["id"] in ids and _rank_shown(given, study, c)]


def _rank_shown(given: Sequence[Entry], study: StudyEvidence, cell: Record) -> bool:
    """Whether the cell's rank is at or above the r* of its own precision; True where that was not asked."""
    scope = {k: v for k, v in scope_of(study, cell).items() if k != "rank"}
    entry = next((e for e in given if e["question"] == "rank_enough" and e["scope"] == scope), None)
    rank = rank_of(cell)
    if entry is None or rank is None:
        return True
    enough = entry["estimate"] if entry["estimate"] is not None else _largest_rank(study, scope)
    return enough is None or rank >= enough


def _largest_rank(study: StudyEvidence, scope: dict[str, Any]) -> int | None:
    alike = [c for c in study.cells.values() if {k: v for k, v in scope_of(study, c).items() if k != "rank"} == scope]
    return max((rank_of(c) or 0 for c in alike), default=None)


def _best_group(candidates: Sequence[Record], study: StudyEvidence) -> tuple[list[Record], list[str]]:
    """Candidates of the setting whose 16-bit runs have the lowest mean eval loss."""
    groups: dict[str, list[Record]] = {}
    for cell in candidates:
        groups.setdefault(repr(other_factors(study, cell)), []).append(cell)
    if len(groups) == 1:
        return list(candidates), []

    def loss(cells: Sequence[Record]) -> float:
        known = [_mean_loss(study, study.cells.get(str(c.get("reference")), c)) for c in cells]
        return min((x for x in known if x is not None), default=float("inf"))

    best = min(groups.values(), key=loss)
    setting = _setting(other_factors(study, best[0]))
    note = f"Of {len(groups)} settings, {setting} has the lowest mean 16-bit eval loss ({loss(best):.4f});"
    note += " no verdict compares them."
    return best, [note]


def _beside(chosen: Record, full: Sequence[Record], study: StudyEvidence) -> list[str]:
    """What full fine-tuning reached, where it is not a candidate."""
    losses = {str(c["id"]): loss for c in full if (loss := _mean_loss(study, c)) is not None}
    if not losses:
        return []
    cell = min(losses, key=lambda name: losses[name])
    size = study.cells[cell].get("trainable_params")
    trained = f" with {size:,} trained parameters" if isinstance(size, int) else ""
    return [
        f"Full fine-tuning, no candidate beside adapters, ends at an eval loss of {losses[cell]:.4f}{trained}, the recommended cell"
        f" at {_mean_loss(study, chosen):.4f}; no verdict compares them."
    ]


def _setting(factors: Mapping[str, Any]) -> str:
    """``method full, learning_rate 0.0002``: unlike in a sentence that names the cell, the method always."""
    method = factors.get("method")
    named = [f"method {method}"] if method not in (None, "lora") else []
    words = entries.where(factors, BESIDE).removeprefix(" at ")
    return ", ".join([*named, *([words] if words else [])])


def _reasons(given: Sequence[Entry], study: StudyEvidence, cell: Record) -> list[str]:
    scope = {k: v for k, v in scope_of(study, cell).items() if k != "rank"}
    asked = ("degradation", "gain_kept", "task_metric", "memory", "speed", "similarity")
    about = [e for e in given if e["arm"] == cell["id"] and e["question"] in asked]
    about += [e for e in given if e["question"] in ("rank_threshold", "rank_enough") and e["scope"] == scope]
    return [e["statement"] for e in about if e["verdict"] != "undecided"]


def _text(given: Sequence[Entry], study: StudyEvidence, cell: Record, taken: str, runner: Record | None) -> str:
    scope = scope_of(study, cell)
    text = f"Use {label(cell)}{entries.where(scope, BESIDE)}{taken}"
    if quantized(cell):
        text += ": the cheapest cell whose loss is shown to stay within the margin of 16-bit."
    else:
        text += f": {_why_reference(given, study, cell)}."
    if _contradicted(given, cell):
        text += " But not everything speaks for it: see the rejected claims below."
    if runner is not None:
        text += f" Runner-up: {label(runner)}{entries.where(scope_of(study, runner), BESIDE)}."
    return text


def _contradicted(given: Sequence[Entry], cell: Record) -> bool:
    quality = ("gain_kept", "task_metric")
    return any(e["arm"] == cell["id"] and e["question"] in quality and e["verdict"] == "rejected" for e in given)


def _why_reference(given: Sequence[Entry], study: StudyEvidence, cell: Record) -> str:
    asked = [e for e in given if e["question"] == "degradation"]
    if not asked:
        return "nothing was asked about what quantization costs"
    setting = other_factors(study, cell)
    states = [e["verdict"] for e in asked if other_factors(study, study.cells[str(e["arm"])]) == setting]
    if not states:
        return "no quantized cell shares its setting"
    if "supported" in states:
        return "the quantized cells within the margin are not cheaper, or their rank is not shown to be enough"
    if set(states) == {"rejected"}:
        return "every quantized cell is shown to lose more than the margin"
    return "no quantized cell is shown to stay within the margin (undecided is not good enough to rely on)"


def _mean_loss(study: StudyEvidence, cell: Record) -> float | None:
    runs = study.runs.get(str(cell["id"]), {}).values()
    known = [float(r["eval_loss"]) for r in runs if r.get("status") == "done" and r.get("eval_loss") is not None]
    return float(np.mean(known)) if known else None
