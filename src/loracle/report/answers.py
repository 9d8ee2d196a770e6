"""A few evaluation items answered by two runs: 16-bit and quantized, else LoRA and another method, else one run alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loracle.report import wording
from loracle.report.evidence import RunData, StudyData
from loracle.report.inert import shown
from loracle.report.predictions import Predictions
from loracle.verdict.methods import against_lora

MAX_EXAMPLES, MAX_TEXT = 4, 500
SCORES = ("accuracy", "label_accuracy", "exact_match")


@dataclass(frozen=True)
class Example:
    """One evaluation item: ``answers`` are (who, text, right or wrong or "partly right …" or "").

    ``reference`` is the right answer, or all of them; ``said`` is what to call it.
    """

    item: int
    prompt: str
    reference: str
    answers: Sequence[tuple[str, str, str]]
    said: str = "reference"


def examples(data: StudyData, advice: Mapping[str, Any]) -> tuple[list[Example], str]:
    """A few items as two runs answer them: where they agree and where they do not."""
    runs = _pair(data, advice) or _alone(data)
    if not runs:
        return [], "No finished run has answers: nothing was generated or classified."
    where = [_answered(run) for run in runs]
    items = sorted(set.intersection(*(set(found) for found in where)))
    rows = [tuple(found[item] for found in where) for item in items]
    said = [[_said(run, i) for run, i in zip(runs, row, strict=True)] for row in rows]
    differ = [row for row, texts in zip(rows, said, strict=True) if len(set(texts)) > 1]
    agree = [row for row, texts in zip(rows, said, strict=True) if len(set(texts)) == 1]
    half = MAX_EXAMPLES // 2
    chosen = differ[: max(half, MAX_EXAMPLES - len(agree))] + agree[: max(half, MAX_EXAMPLES - len(differ))]
    if len(runs) == 1:
        return [
            _example(data, runs, row) for row in chosen
        ], f"Seed {runs[0].seed}: the first items that were answered."
    note = (
        f"Seed {runs[0].seed}. The two answer {len(agree)} of {wording.plural(len(rows), 'item')} alike; "
        "shown are the first on which they differ, then the first on which they agree."
    )
    return [_example(data, runs, row) for row in chosen], note


def _pair(data: StudyData, advice: Mapping[str, Any]) -> list[RunData]:
    """Two runs of one seed: the recommended cell's pair if it is an arm, else the largest rank's; LoRA's where none is."""
    arms = [(c, str(c.reference)) for c in data.cells if c.reference in data.by_cell]
    arms.sort(key=lambda arm: (arm[0].id != advice.get("cell"), -(arm[0].rank or 0)))
    beside = [(c, against_lora(data.evidence(), c.raw)) for c in data.cells]
    arms += [(c, str(found.reference["id"])) for c, found in beside if found is not None]
    for cell, reference in arms:
        others = {r.seed: r for r in data.of_cell(reference, done=True) if _answered(r)}
        for run in data.of_cell(cell.id, done=True):
            if run.seed in others and set(_answered(run)) & set(_answered(others[run.seed])):
                return [others[run.seed], run]
    return []


def _alone(data: StudyData) -> list[RunData]:
    """The first finished run that has answers."""
    return [r for r in data.runs if r.role == "run" and r.status == "done" and _answered(r)][:1]


def _answered(run: RunData) -> dict[int, int]:
    """``{item: row}`` of what the run generated or classified."""
    found = run.predictions
    said = found.text.get("prediction", ()) if found is not None else ()
    return {int(found.items[i]): i for i, text in enumerate(said) if text is not None} if found is not None else {}


def _said(run: RunData, row: int) -> str:
    return str(run.predictions.text["prediction"][row]) if run.predictions is not None else ""


def _example(data: StudyData, runs: Sequence[RunData], rows: Sequence[int]) -> Example:
    first = runs[0].predictions
    assert first is not None
    scored = data.task_metric() is not None  # free text is not wrong for being in other words
    answers = [
        (data.by_cell[r.cell].label, cut(_said(r, i)), _mark(r, i) if scored else "")
        for r, i in zip(runs, rows, strict=True)
    ]
    several = _text(first, "references", rows[0])
    right = several or _text(first, "reference", rows[0])
    prompt = _text(first, "prompt", rows[0])
    ends = ((data.by_cell[runs[0].cell].raw.get("config") or {}).get("task") or {}).get("format") == "squad"
    said = "references" if " | " in several else "reference"
    return Example(int(first.items[rows[0]]), cut_left(prompt) if ends else cut(prompt), cut(right), answers, said)


def _mark(run: RunData, row: int) -> str:
    """Whether an answer is right; with words in common (F1) partly."""
    found = run.predictions
    scores = [found.scores[m][row] for m in SCORES if m in found.scores] if found is not None else []
    if found is None or not scores or scores[0] != scores[0]:
        return ""
    shared = float(found.scores["f1"][row]) if "f1" in found.scores else 0.0
    if scores[0] < 1 and shared > 0:
        return f"partly right, F1 {shared:.2f}"
    return "right" if scores[0] >= 1 else "wrong"


def _text(predictions: Predictions, name: str, row: int) -> str:
    """A text column's value; "" where there is none."""
    column = predictions.text.get(name)
    return (column[row] or "") if column else ""


def cut(text: str) -> str:
    """At most ``MAX_TEXT`` characters of what a model or a data row says, line breaks kept."""
    text = shown(text)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def cut_left(text: str) -> str:
    """The same from the end: a passage comes before its question."""
    text = shown(text)
    return text if len(text) <= MAX_TEXT else "…" + text[1 - MAX_TEXT :]
