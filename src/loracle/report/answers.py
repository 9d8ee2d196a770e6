"""A few evaluation items answered by a 16-bit run and by its quantized twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loracle.report import wording
from loracle.report.evidence import Predictions, RunData, StudyData
from loracle.report.inert import shown

MAX_EXAMPLES, MAX_TEXT = 4, 500


@dataclass(frozen=True)
class Example:
    """One evaluation item: ``answers`` are (who, text, right or wrong or "")."""

    item: int
    prompt: str
    reference: str
    answers: Sequence[tuple[str, str, str]]


def examples(data: StudyData, advice: Mapping[str, Any]) -> tuple[list[Example], str]:
    """A few items answered by a 16-bit run and its quantized twin: where they agree and where they do not."""
    found = _twins(data, advice)
    if found is None:
        return [], "No finished quantized run and its 16-bit twin have generations of the same items."
    reference, arm = found
    left, right = reference.predictions, arm.predictions
    assert left is not None
    assert right is not None
    other = {int(item): i for i, item in enumerate(right.items)}
    said, twin = left.text["prediction"], right.text["prediction"]
    pairs = [
        (i, other[int(item)])
        for i, item in enumerate(left.items)
        if said[i] is not None and int(item) in other and twin[other[int(item)]] is not None
    ]
    differ = [p for p in pairs if said[p[0]] != twin[p[1]]]
    agree = [p for p in pairs if said[p[0]] == twin[p[1]]]
    half = MAX_EXAMPLES // 2
    chosen = differ[: max(half, MAX_EXAMPLES - len(agree))] + agree[: max(half, MAX_EXAMPLES - len(differ))]
    names = [(data.by_cell[run.cell].label, run) for run in (reference, arm)]
    examples = [_example(names, pair) for pair in chosen]
    note = (
        f"Seed {arm.seed}. The two answer {len(agree)} of {wording.plural(len(pairs), 'generated item')} alike; "
        "shown are the first on which they differ, then the first on which they agree."
    )
    return examples, note


def _twins(data: StudyData, advice: Mapping[str, Any]) -> tuple[RunData, RunData] | None:
    """(16-bit run, quantized run) of one seed: the recommended cell's if it is quantized, else the largest rank's."""
    arms = [c for c in data.cells if c.reference in data.by_cell]
    arms.sort(key=lambda c: (c.id != advice.get("cell"), -(c.rank or 0)))
    for cell in arms:
        others = {r.seed: r for r in data.of_cell(str(cell.reference), done=True) if _generated(r)}
        for run in data.of_cell(cell.id, done=True):
            if run.seed in others and _generated(run):
                return others[run.seed], run
    return None


def _generated(run: RunData) -> bool:
    return run.predictions is not None and any(v is not None for v in run.predictions.text.get("prediction", ()))


def _example(names: Sequence[tuple[str, RunData]], rows: tuple[int, int]) -> Example:
    first = names[0][1].predictions
    assert first is not None
    answers = []
    for (label, run), i in zip(names, rows, strict=True):
        predictions = run.predictions
        assert predictions is not None
        marks = [predictions.scores[m][i] for m in ("label_accuracy", "exact_match") if m in predictions.scores]
        mark = "" if not marks or marks[0] != marks[0] else "right" if marks[0] >= 1 else "wrong"
        answers.append((label, cut(str(predictions.text["prediction"][i])), mark))
    return Example(
        int(first.items[rows[0]]), _text(first, "prompt", rows[0]), _text(first, "reference", rows[0]), answers
    )


def _text(predictions: Predictions, name: str, row: int) -> str:
    """A text column's value, cut; "" where there is none."""
    column = predictions.text.get(name)
    return cut(column[row] or "") if column else ""


def cut(text: str) -> str:
    """At most ``MAX_TEXT`` characters of what a model or a data row says, line breaks kept."""
    text = shown(text)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
