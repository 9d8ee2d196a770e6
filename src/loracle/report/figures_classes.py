"""The figure of classification studies: which label is taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loracle.report import wording
from loracle.report.canvas import WIDTH, NoData, Theme, short
from loracle.report.evidence import CellData, StudyData
from loracle.report.shaded import draw_shaded
from loracle.report.tables_classes import Pairs, by_cell, labels_of, summed

MAX_LABELS, MAX_WRITTEN = 40, 12

CONFUSION_CAPTION = (
    "Rows: the right label. Columns: what the runs said. Shade: share of the row's items, summed over seeds. "
    "Shown is the cell with the highest mean accuracy; the counts of every cell are in tables/confusion.csv."
)


def draw_confusion(figure: Any, data: StudyData, entries: Any, tables: Any, theme: Theme) -> str:
    from matplotlib.colors import Normalize

    cell, runs = _best(data)
    labels = labels_of(data, cell)
    if len(labels) > MAX_LABELS:
        raise NoData(f"{len(labels)} labels are too many to draw; the pairs most confused are listed")
    total = summed(runs)
    rows = [[total.get((r, p), 0) for p in labels] for r in labels]
    shares = [[n / max(1, sum(row)) for n in row] for row in rows]
    figure.set_size_inches(WIDTH, WIDTH * 0.95)
    axes = figure.subplots()
    counts = [[str(n) if n else "" for n in row] for row in rows] if len(labels) <= MAX_WRITTEN else ()
    draw_shaded(axes, shares, Normalize(0.0, 1.0), [theme.precision["bf16"]], theme, texts=counts, aspect="equal")
    size = 8.0 if len(labels) <= MAX_WRITTEN else 6.0 if len(labels) <= 25 else 4.5
    names = [short(label, 18) for label in labels]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set_xlabel("said")
    axes.set_ylabel("right")
    axes.set_title(short(f"{cell.label}, {wording.plural(len(runs), 'run')}", 48))
    right = sum(total.get((label, label), 0) for label in labels)
    return f"Confusion matrix of {cell.label}: {right} of {sum(total.values())} answers lie on the diagonal"


def _best(data: StudyData) -> tuple[CellData, Sequence[Pairs]]:
    """The classification cell with the highest mean accuracy, the first of equal ones."""
    cells = list(by_cell(data))
    if not cells:
        raise NoData("no finished run has a classification head")
    return max(cells, key=lambda found: wording.mean(data.values(found[0].id, "accuracy")) or 0.0)
