"""The figure of quality against memory: every cell with its interval, the frontier of the means, and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loracle.report import wording
from loracle.report.canvas import WIDTH, Line, NoData, Theme, handles_of, heading, legend, lines_of, short
from loracle.report.columns import Table
from loracle.report.evidence import StudyData

MAX_SUBJECTS = 4

CAPTION = (
    "Each mark is a cell: memory across, the mean over seeds with its 95% interval upward. The line joins the cells that no other "
    "beats in both. Beside a mark, where there is room: its rank, and the probability that it is on that frontier. The "
    "axis says whether memory was measured or predicted."
)

Row = Mapping[str, Any]


def draw(figure: Any, data: StudyData, entries: Any, tables: Mapping[str, Table], theme: Theme) -> str:
    panels = _panels(tables["quality_memory"])
    if not panels:
        raise NoData("no cell has both a finished run and a measured or predicted memory")
    cells = {row["cell"] for _, rows in panels for row in rows}
    lines = lines_of(data, theme, [cell for cell in data.cells if cell.id in cells])
    figure.set_size_inches(WIDTH, 0.7 + 2.3 * len(panels))
    grid = figure.subplots(len(panels), 1, squeeze=False)
    largest = max(row["memory_bytes"] for _, rows in panels for row in rows)
    unit, name = (1e9, "GB") if largest >= 1e9 else (1e6, "MB")
    for (title, rows), (axes,) in zip(panels, grid, strict=True):
        _panel(axes, rows, lines, unit, theme)
        axes.set_title(short(title, 64))
    grounds = [_ground(rows[0]) for _, rows in panels]
    for i, ((axes,), ground) in enumerate(zip(grid, grounds, strict=True)):
        if i == len(panels) - 1 or len(set(grounds)) > 1:
            axes.set_xlabel(f"memory ({name}), {ground}")
    measured = any(row["memory_basis"] == "measured peak" for _, rows in panels for row in rows)
    heading(figure, f"Quality against memory{'' if measured else ' (predicted, not measured)'}", theme)
    legend(figure, handles_of(*(axes for (axes,) in grid)))
    said = [_said(row, unit, name) for _, rows in panels[:1] for row in rows]
    return f"{panels[0][0]} against memory ({grounds[0]}): " + "; ".join(said)


def _panels(table: Table) -> list[tuple[str, list[Row]]]:
    """(title, rows): of one base and task both metrics, of several the task metric of each, or the loss where there is none."""
    found: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in table.rows:
        if row["memory_bytes"] is not None and row["mean"] is not None:
            found.setdefault((row["base"], row["task"]), {}).setdefault(row["metric"], []).append(row)
    if len(found) == 1:
        metrics = next(iter(found.values()))
        return [(_heading(metric), metrics[metric]) for metric in reversed(metrics)]
    chosen = []
    for (base, task), metrics in list(found.items())[:MAX_SUBJECTS]:
        metric = list(metrics)[-1]
        chosen.append((f"{_heading(metric)}: {base} on {task}", metrics[metric]))
    return chosen


def _heading(metric: str) -> str:
    return f"{wording.headed(metric)} ({'%' if metric in wording.FRACTIONS else 'nats per token'})"


def _ground(row: Row) -> str:
    return f"{row['memory_basis']} on {short(row['device'], 24)}" if row["device"] else str(row["memory_basis"])


def _panel(axes: Any, rows: Sequence[Row], lines: Sequence[Line], unit: float, theme: Theme) -> None:
    by_cell = {row["cell"]: row for row in rows}
    scale = 100.0 if rows[0]["metric"] in wording.FRACTIONS else 1.0
    stairs = [(row["memory_bytes"] / unit, scale * row["mean"]) for row in _frontier(rows)]
    axes.plot(*zip(*stairs, strict=True), drawstyle="steps-post", color=theme.null, linewidth=1.2, zorder=1)
    for line in lines:
        mine = [by_cell[cell.id] for cell in line.cells if cell.id in by_cell]
        for i, row in enumerate(mine):
            _point(axes, row, line, (unit, scale), theme, line.name if i == 0 else None)
    axes.margins(x=0.14, y=0.14)
    axes.autoscale_view()
    _labels(axes, {(row["memory_bytes"] / unit, scale * row["mean"]): _label(row) for row in rows}, theme)


def _label(row: Row) -> str:
    chance = row["frontier_probability"]
    parts = [f"r{row['rank']}"] if row.get("rank") is not None else []
    return " · ".join([*parts, *([f"{chance:.2f}"] if chance is not None else [])])


def _labels(axes: Any, labels: Mapping[tuple[float, float], str], theme: Theme) -> None:
    """Each label at the first of four corners of its mark where it hits no other label or mark; else it is left out."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    marks = [((x - left) / (right - left), (y - bottom) / (top - bottom)) for x, y in labels]
    taken = [(x - 0.015, x + 0.015, y - 0.03, y + 0.03) for x, y in marks]
    for (x, y), text, at in zip(marks, labels.values(), labels, strict=True):
        wide, high = 0.0155 * len(text), 0.075
        for across, up in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            x0, y0 = x + 0.017 if across > 0 else x - 0.017 - wide, y + 0.02 if up > 0 else y - 0.02 - high
            box = (x0, x0 + wide, y0, y0 + high)
            if all(box[1] < t[0] or t[1] < box[0] or box[3] < t[2] or t[3] < box[2] for t in taken):
                taken.append(box)
                axes.annotate(text, at, xytext=(5 * across, 4 * up), textcoords="offset points", fontsize=7.5,
                              ha="left" if across > 0 else "right", va="bottom" if up > 0 else "top",
                              color=theme.ink)  # fmt: skip
                break


def _point(axes: Any, row: Row, line: Line, units: tuple[float, float], theme: Theme, label: str | None) -> None:
    x, y = row["memory_bytes"] / units[0], units[1] * row["mean"]
    if row["low"] is not None:
        axes.plot([x, x], [units[1] * row["low"], units[1] * row["high"]], color=line.colour, linewidth=1.6, zorder=2)
    face = theme.paper if line.hollow else line.colour
    axes.plot([x], [y], linestyle="none", marker=line.marker, markersize=6.5, markerfacecolor=face,
              markeredgecolor=line.colour, markeredgewidth=1.6, label=label, zorder=3)  # fmt: skip


def _frontier(rows: Sequence[Row]) -> list[Row]:
    """Rows that none with no more memory equals or beats, by memory."""
    sign = 1.0 if rows[0]["metric"] == "eval_loss" else -1.0
    kept: list[Row] = []
    for row in sorted(rows, key=lambda r: (r["memory_bytes"], sign * r["mean"])):
        if not kept or sign * row["mean"] < sign * kept[-1]["mean"]:
            kept.append(row)
    return kept


def _said(row: Row, unit: float, name: str) -> str:
    chance = row["frontier_probability"]
    sure = "" if chance is None else f", on the frontier with probability {chance:.2f}"
    shown = wording.by_metric(row["metric"], row["mean"])
    return f"{row['label']} {shown} at {row['memory_bytes'] / unit:.3g} {name}{sure}"
