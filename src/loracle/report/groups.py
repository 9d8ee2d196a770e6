"""What quantization does to single groups of rows, to read: grids, and a sentence for each cell and metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from loracle.report import wording
from loracle.report.columns import Table
from loracle.report.grids import Grid, Item
from loracle.report.tables_groups import SHOWN
from loracle.verdict import entries
from loracle.verdict.groups import LOSS, MIN_ITEMS
from loracle.verdict.paired import Interval


def grids(table: Table, cells: Sequence[str] | None = None) -> list[Grid]:
    """A grid for each cell and metric of ``groups.csv``; of ``cells`` alone where they are given."""
    parts: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in table.rows:
        if cells is None or row["cell"] in cells:
            parts.setdefault((str(row["cell"]), str(row["metric"])), []).append(dict(row))
    return [_grid(metric, found) for (_, metric), found in parts.items()]


def _grid(metric: str, found: Sequence[dict[str, Any]]) -> Grid:
    heads = ["group", "rows", "16-bit", str(found[0]["label"]), "change (95% interval)", "gap to the other groups", ""]
    lines = []
    for row in found:
        change = _with(metric, row["change"], _pair(row, "change"))
        gap = wording.NONE if row["gap"] is None else _with(metric, row["gap"], _pair(row, "gap"))
        levels = [wording.by_metric(metric, row[f"{arm}_mean"]) for arm in ("reference", "arm")]
        texts = [str(row["group"]), str(row["items"]), *levels, change, gap, row["gap_shown"]]
        lines.append([Item(texts[0]), *(Item(text, number=True) for text in texts[1:-1]), Item(texts[-1])])
    title = f"{wording.headed(metric)} by group: {found[0]['label']} against 16-bit"
    return Grid(title, heads, lines, _note(found))


def _note(found: Sequence[dict[str, Any]]) -> str:
    level = min((row["gap_level"] for row in found if row["gap_level"] is not None), default=None)
    said = [f"n = {wording.plural(found[0]['n'], 'seed')}, paired by seed and item; each cell by itself."]
    if level is not None and len(found) > 2:
        said.append(f"Gaps are Holm-adjusted over the groups, down to {entries.level_text(level)} intervals.")
    if any(row["items"] < MIN_ITEMS for row in found):
        said.append(f"A group of fewer than {MIN_ITEMS} rows has no interval.")
    if found[0]["ungrouped"]:
        said.append(f"{wording.plural(found[0]['ungrouped'], 'row')} named no group and are in none.")
    if found[0]["confounds"]:
        said.append(f"The two also differ in {found[0]['confounds']}: this is not the effect of precision alone.")
    return " ".join([*said, "“Not shown” means that no gap was shown, not that there is none."])


def _pair(row: dict[str, Any], name: str) -> Interval | None:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return None if low is None else (low, high)


def _with(metric: str, value: float, interval: Interval | None) -> str:
    """A change in percent of the loss, or in points of a score, with its interval."""

    def show(x: float) -> str:
        return entries.percent(x) if metric == LOSS else f"{entries.points(x)} pt"

    if not math.isfinite(value):
        return wording.NONE
    return show(value) + ("" if interval is None else f" ({entries.bounds(interval, show)})")


def sentences(table: Table, cells: Sequence[str] | None = None) -> list[str]:
    """What is shown of groups, in a sentence for each cell and metric."""
    parts: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in table.rows:
        if cells is None or row["cell"] in cells:
            parts.setdefault((str(row["label"]), str(row["metric"])), []).append(dict(row))
    return [_sentence(label, metric, found) for (label, metric), found in parts.items()]


def _sentence(label: str, metric: str, found: Sequence[dict[str, Any]]) -> str:
    about = f"{wording.headed(metric)} of {label} against 16-bit"
    if found[0]["confounds"]:
        return f"{about}: confounded, the two also differ in {found[0]['confounds']}."
    if all(row["gap_low"] is None for row in found):
        return f"{about}: no gap between groups could be measured (too few seeds, rows or groups)."
    harder = [row for row in found if row["gap_shown"] == SHOWN["worse"]]
    if not harder:
        return f"{about}: no group is shown to be hit harder than the others; {_not_excluded(metric, found)}."
    named_ = [f"“{row['group']}” ({_with(metric, row['gap'], _pair(row, 'gap'))})" for row in harder]
    return f"{about}: shown to be hit harder than the other groups: {wording.listed(named_)}."


def _not_excluded(metric: str, found: Sequence[dict[str, Any]]) -> str:
    """The worst end of all gaps' intervals: higher losses, lower scores."""
    ends = [row["gap_high"] if metric == LOSS else row["gap_low"] for row in found if row["gap_low"] is not None]
    worst = max(ends) if metric == LOSS else min(ends)
    return f"a gap of {_with(metric, worst, None)} is not excluded"
