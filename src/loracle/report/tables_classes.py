"""Classification by label: what is taken for what, and precision, recall and F1 of each label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loracle.report.columns import named
from loracle.report.evidence import CellData, RunData, StudyData
from loracle.report.wording import mean
from loracle.tasks.metrics import label_words

Pairs = Mapping[tuple[str, str], int]


@dataclass(frozen=True)
class Scores:
    """One label in one run, as fractions; 0 where nothing was predicted, or nothing right."""

    precision: float
    recall: float
    f1: float
    support: int


def answered(run: RunData) -> Pairs:
    """``{(reference, prediction): items}`` of a finished classification run."""
    found = run.predictions
    if found is None or "prediction" not in found.text or "reference" not in found.text:
        return {}
    rows = zip(found.text["reference"], found.text["prediction"], strict=True)
    return Counter((r, p) for r, p in rows if r is not None and p is not None)


def labels_of(data: StudyData, cell: CellData) -> list[str]:
    """The cell's labels in the order of its data audit; labels that stand only in predictions last."""
    runs = data.of_cell(cell.id, done=True)
    planned = [label for run in runs for label in (run.record.get("audit") or {}).get("labels") or []]
    seen = [label for run in runs for pair in answered(run) for label in pair]
    return list(dict.fromkeys([*(label_words(str(label)) for label in planned), *sorted(seen)]))


def by_cell(data: StudyData) -> Iterator[tuple[CellData, list[Pairs]]]:
    """Classification cells with the answers of each finished run."""
    for cell in data.cells:
        runs = [pairs for run in data.of_cell(cell.id, done=True) if (pairs := answered(run))]
        if data.classifies(cell) and runs:
            yield cell, runs


def summed(runs: Sequence[Pairs]) -> Counter[tuple[str, str]]:
    """Counts summed over runs."""
    total: Counter[tuple[str, str]] = Counter()
    for pairs in runs:
        total.update(pairs)
    return total


def score(pairs: Pairs, label: str) -> Scores:
    """A label's precision, recall and F1 in one run."""
    right = pairs.get((label, label), 0)
    support = sum(n for (reference, _), n in pairs.items() if reference == label)
    said = sum(n for (_, prediction), n in pairs.items() if prediction == label)
    f1 = 2 * right / (support + said) if support + said else 0.0
    return Scores(right / said if said else 0.0, right / support if support else 0.0, f1, support)


def confusion(data: StudyData) -> Iterator[dict[str, Any]]:
    """Counts over all finished runs of a cell; pairs that never occur are left out."""
    for cell, runs in by_cell(data):
        place = {label: i for i, label in enumerate(labels_of(data, cell))}
        for (reference, prediction), n in sorted(summed(runs).items(), key=lambda x: (place[x[0][0]], place[x[0][1]])):
            row = named(cell, cell.id) | {"reference": reference, "prediction": prediction}
            yield row | {"count": n, "runs": len(runs)}


def classes(data: StudyData) -> Iterator[dict[str, Any]]:
    """Each label's scores, means over runs; ``support`` is its evaluation items in one run."""
    for cell, runs in by_cell(data):
        for label in labels_of(data, cell):
            found = [score(pairs, label) for pairs in runs]
            row = named(cell, cell.id) | {"class": label, "support": max(s.support for s in found), "runs": len(runs)}
            row |= {f"{name}_mean": mean([getattr(s, name) for s in found]) for name in ("precision", "recall", "f1")}
            yield row
