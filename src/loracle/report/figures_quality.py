"""Figures of quality: degradation by rank, the task metric by rank, evaluation loss while training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from loracle.report import wording
from loracle.report.canvas import (
    MAX_PANELS,
    WIDTH,
    Line,
    NoData,
    Theme,
    handles_of,
    heading,
    legend,
    lines_of,
    places,
    rank_axis,
)
from loracle.report.evidence import CellData, StudyData, number
from loracle.verdict.entries import Entry

FEW = 2
"""Lines of a figure in which single points are labelled."""
DEGRADATION_CAPTION = (
    "Change in evaluation loss against the 16-bit run of the same seed and settings; bars are the intervals of the "
    "verdicts. Filled: shown to stay within the margin. Crossed: shown not to. Hollow: undecided."
)


def draw_degradation(figure: Any, data: StudyData, entries: Sequence[Entry], tables: Any, theme: Theme) -> str:
    asked = [e for e in entries if e["question"] == "degradation" and e["estimate"] is not None]
    found = {str(e["arm"]): e for e in asked if e["verdict"] != "confounded"}
    if asked and not found:
        raise NoData("every comparison with 16-bit is confounded")
    cells = [cell for cell in data.cells if cell.id in found]
    if not cells:
        raise NoData("no quantized run has a finished 16-bit run of the same seed to be held against")
    lines = lines_of(data, theme, cells)
    where, names, label = places(data, lines)
    axes = figure.subplots()
    axes.axhline(0.0, color=theme.faint, linewidth=1.0)
    margins = sorted({100 * math.expm1(e["margin"]) for e in found.values() if e["margin"] is not None})
    for margin in margins:
        axes.axhline(margin, color=theme.ink, linewidth=1.1, linestyle=(0, (2, 2)))
    for line in lines:
        for i, cell in enumerate(line.cells):
            _point(axes, where[cell.id], found[cell.id], line, theme, line.name if i == 0 else None, len(lines) <= FEW)
    rank_axis(axes, names, label)
    axes.margins(y=0.1)
    dotted = f"; dotted: margin {wording.listed([f'{m:.3g}%' for m in margins])}" if margins else ""
    axes.set_title(f"Change in evaluation loss against 16-bit (%){dotted}")
    if len(lines) > 1:
        legend(figure, handles_of(axes))
    said = [f"{cell.label} {wording.estimate(found[cell.id])} ({found[cell.id]['verdict']})" for cell in cells]
    return "Change in evaluation loss against 16-bit: " + "; ".join(said)


def _point(axes: Any, x: float, entry: Entry, line: Line, theme: Theme, label: str | None, few: bool) -> None:
    """One estimate with its interval; the marker's face says the verdict. Its figure stands beside it where there are ``few``
    lines.
    """
    y = 100 * math.expm1(entry["estimate"])
    if entry["interval"]:
        low, high = (100 * math.expm1(v) for v in entry["interval"])
        axes.plot([x, x], [low, high], color=line.colour, linewidth=2.0, solid_capstyle="butt", zorder=2)
    face = line.colour if entry["verdict"] == "supported" else theme.paper
    axes.plot([x], [y], linestyle="none", marker=line.marker, markersize=8 if few else 6, markerfacecolor=face,
              markeredgecolor=line.colour, markeredgewidth=1.8, label=label, zorder=3)  # fmt: skip
    if entry["verdict"] == "rejected":
        axes.plot(
            [x], [y], linestyle="none", marker="x", markersize=5, color=line.colour, markeredgewidth=1.8, zorder=4
        )
    if not few:
        return
    axes.annotate(
        f"{y:+.1f}", (x, y), xytext=(8, 0), textcoords="offset points", va="center", fontsize=8.5, color=theme.ink
    )


METRIC_CAPTION = (
    "Each small dot is a run, each large mark the mean over seeds with its 95% interval. "
    "Dashed: the base before tuning. Dotted: guessing among the labels, or always saying the commonest."
)


def draw_metric(figure: Any, data: StudyData, entries: Any, tables: Any, theme: Theme) -> str:
    name = data.task_metric()
    if name is None:
        raise NoData("no finished run has a task metric: only losses were measured")
    lines = lines_of(data, theme, [c for c in data.cells if data.values(c.id, name)])
    where, names, label = places(data, lines)
    axes = figure.subplots()
    for line in lines:
        centres = []
        for cell in line.cells:
            values = [100 * v for v in data.values(cell.id, name)]
            x, centre = where[cell.id], sum(values) / len(values)
            centres.append((x, centre))
            axes.plot(
                [x] * len(values), values, linestyle="none", marker=".", markersize=5, color=line.colour, alpha=0.55
            )
            interval = wording.t_interval([v / 100 for v in values], fraction=True)
            if interval:
                axes.plot([x, x], [100 * v for v in interval], color=line.colour, linewidth=2.0, solid_capstyle="butt")
        if label:
            axes.plot(*zip(*centres, strict=True), color=line.colour, linestyle=line.style, linewidth=1.2, alpha=0.8)
        axes.plot(*zip(*centres, strict=True), linestyle="none", marker=line.marker, markersize=7, color=line.colour,
                  markerfacecolor=_face(axes, line), label=line.name)  # fmt: skip
    _floor(axes, data, lines, f"base_{name}", theme)
    rank_axis(axes, names, label)
    axes.set_ylim(-4, 104)
    axes.set_yticks(range(0, 101, 20))
    axes.set_title(f"{wording.headed(name)} (%)")
    legend(figure, handles_of(axes))
    said = [
        f"{c.label} {wording.fraction(wording.mean(data.values(c.id, name)))}" for line in lines for c in line.cells
    ]
    return f"{wording.headed(name)}, mean over seeds: " + "; ".join(said)


def _floor(axes: Any, data: StudyData, lines: Sequence[Line], base: str, theme: Theme) -> None:
    """The untrained base (one line, or one for each precision where they differ) and chance."""
    found = {line.name: wording.mean([v for c in line.cells for v in data.values(c.id, base)]) for line in lines}
    known = {name: 100 * v for name, v in found.items() if v is not None}
    if known and max(known.values()) - min(known.values()) < 0.5:
        axes.axhline(
            next(iter(known.values())), color=theme.ink, linewidth=1.2, linestyle=(0, (5, 2)), label="base, untrained"
        )
    else:
        for line in lines:
            if line.name in known:
                axes.axhline(
                    known[line.name], color=line.colour, linewidth=1.2, linestyle=(0, (5, 2)), label=f"{line.name} base"
                )
    name, floor = data.floor()
    if floor is not None:
        axes.axhline(
            100 * floor, color=theme.faint, linewidth=1.2, linestyle=(0, (1, 2)), label=f"{name} {100 * floor:.3g}%"
        )


MAX_TRAINING = 6  # cells a panel whose training loss is drawn beside their evaluations

CURVES_CAPTION = (
    "Thick lines: evaluation loss, mean over seeds; thin lines are runs. Where methods are compared, points are the "
    "evaluations and, of six cells at most, pale lines the training loss (running mean, over seeds), in place of single runs. "
    "Step 0 is the base before tuning, in the run's own precision."
)


def draw_curves(figure: Any, data: StudyData, entries: Any, tables: Any, theme: Theme) -> str:
    curves = {run.id: _curve(data, run.id) for run in data.runs if run.role == "run"}
    cells = [c for c in data.cells if any(len(curves[r.id]) > 1 for r in data.of_cell(c.id))]
    if not cells:
        raise NoData("no run has evaluation points at two steps or more")
    panels = _panels(cells)
    by_rank, methods = len(panels) > 1, len(data.methods) > 1
    chosen = sorted(panels)[:MAX_PANELS]
    columns = 2 if len(chosen) > 1 else 1
    rows = math.ceil(len(chosen) / columns)
    lines = lines_of(data, theme, cells)
    legend_room = 0.1 * max(0, len(lines) - 6)
    figure.set_size_inches(WIDTH, (3.5 if rows == 1 else 0.7 + 1.75 * rows) + legend_room)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    few = len(cells) <= MAX_TRAINING * len(panels)  # more training losses would hide everything else
    training = {c.id: _training(data, c) if few else [] for c in cells} if methods else {}
    for i, panel in enumerate(chosen):
        axes = grid[i // columns][i % columns]
        axes.grid(False, axis="x")
        if by_rank:
            axes.set_title(f"rank {panel}")
        for cell in panels[panel]:
            line = next(x for x in lines if cell in x.cells)
            _draw_runs(axes, [curves[r.id] for r in data.of_cell(cell.id)], line, training.get(cell.id))
        if i + columns >= len(chosen):
            axes.set_xlabel("step")
            axes.tick_params(labelbottom=True)
    trained = [v for curve in training.values() for _, v in curve]
    _loss_axis(grid[0][0], trained + [v for curve in curves.values() for _, v in curve])
    for spare in range(len(chosen), rows * columns):
        grid[spare // columns][spare % columns].set_visible(False)
    heading(figure, f"{'Loss' if methods else 'Evaluation loss'} (nats per token)", theme)
    legend(figure, handles_of(*grid.flat))
    left = f" {len(panels) - len(chosen)} further ranks are in tables/runs.csv." if len(panels) > len(chosen) else ""
    drawn = sum(len(curve) > 1 for curve in curves.values())
    return f"Evaluation loss against training step for {drawn} runs, by rank, method and precision.{left}"


def _panels(cells: Sequence[CellData]) -> dict[int, list[CellData]]:
    """Cells by rank; those of methods without a rank stand in every panel, to be held against."""
    ranks = sorted({c.rank for c in cells if c.rank is not None}) or [0]
    if len(ranks) == 1:
        return {ranks[0]: list(cells)}
    return {rank: [c for c in cells if c.rank in (rank, None)] for rank in ranks}


def _training(data: StudyData, cell: CellData) -> list[tuple[int, float]]:
    """(step, training loss) of a cell: mean over its runs, then over a window of a twentieth of the steps."""
    losses: dict[int, list[float]] = {}
    for run in data.of_cell(cell.id):
        for point in run.points:
            value = number(point.get("loss"))
            if value is not None:
                losses.setdefault(point["step"], []).append(value)
    steps = sorted(losses)
    means = [math.fsum(losses[s]) / len(losses[s]) for s in steps]
    half = len(steps) // 40
    windows = [means[max(0, i - half) : i + half + 1] for i in range(len(steps))]
    return [(step, math.fsum(window) / len(window)) for step, window in zip(steps, windows, strict=True)]


def _loss_axis(axes: Any, values: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers where losses span more than a factor of 2.5."""
    low, high = min(values), max(values)
    if low <= 0 or high / low < 2.5:
        return
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_yscale("log")
    steps: tuple[float, ...] = (1, 2, 4) if high / low < 20 else (1,)
    if high / low < 5:
        steps = (1, 1.5, 2, 3, 4, 6)
    every = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    axes.yaxis.set_major_locator(FixedLocator([s * 10.0**e for e in every for s in steps]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(low * 0.9, high * 1.08)


def _curve(data: StudyData, run_id: str) -> list[tuple[int, float]]:
    """(step, eval loss) of a run: its evaluation points, and the record's own where the file has none for it."""
    run = data.by_run[run_id]
    points = {p["step"]: v for p in run.points if (v := number(p.get("eval_loss"))) is not None}
    base, final, steps = run.metric("base_eval_loss"), run.metric("eval_loss"), run.record.get("steps")
    if base is not None:
        points.setdefault(0, base)
    if run.status == "done" and final is not None and isinstance(steps, int):
        points.setdefault(steps, final)
    return sorted(points.items())


def _draw_runs(
    axes: Any, curves: Sequence[Sequence[tuple[int, float]]], line: Line, training: Sequence[tuple[int, float]] | None
) -> None:
    """A cell's evaluation curves and their mean; beside ``training`` the points in place of the single curves."""
    drawn = [curve for curve in curves if curve]
    for curve in drawn if training is None else [training] if training else []:
        axes.plot(*zip(*curve, strict=True), color=line.colour, linewidth=0.7 if training is None else 1.0, alpha=0.5)
    full = max((len(c) for c in drawn), default=0)
    whole = [dict(c) for c in drawn if len(c) == full]
    steps = sorted(set.intersection(*(set(c) for c in whole))) if whole else []
    means = [sum(c[s] for c in whole) / len(whole) for s in steps]
    if steps:
        marked = [len(steps) - 1] if training is None else list(range(len(steps)))
        axes.plot(steps, means, color=line.colour, linewidth=2.0 if training is None else 1.5, linestyle=line.style,
                  label=line.name, marker=line.marker, markersize=5, markerfacecolor=_face(axes, line),
                  markevery=marked)  # fmt: skip


def _face(axes: Any, line: Line) -> Any:
    return axes.get_facecolor() if line.hollow else line.colour
