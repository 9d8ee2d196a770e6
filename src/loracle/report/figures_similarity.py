"""Figures of likeness: the cosine of the learned updates with their 16-bit twins', by cell and layer, beside the null."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from loracle.report.canvas import (
    MARKERS,
    MAX_PANELS,
    UNKNOWN,
    WIDTH,
    NoData,
    Theme,
    colour_of,
    heading,
    pale,
    short,
)
from loracle.report.evidence import CellData, StudyData
from loracle.report.shaded import Values, draw_shaded
from loracle.report.tables import similarity_groups
from loracle.verdict.similarity import THRESHOLD, LayerBand, layer_profile

MAX_ROWS, MAX_ACROSS, MAX_WRITTEN = 24, 10, 24

MATRIX_CAPTION = (
    "Mean cosine over seeds between what the quantized and the 16-bit run learned (ΔW = scale·B·A), layer by layer. Beside it "
    "the null: two 16-bit runs that differ in data order alone. Where it is as low, a low cosine says nothing against "
    "quantization."
)
PROFILE_CAPTION = (
    "The same with 95% intervals over seeds. Grey is the null: its range, or a line where it is one pair of runs."
)

Profile = tuple[CellData | None, str, list[LayerBand]]


def draw_matrix(figure: Any, data: StudyData, entries: Any, tables: Any, theme: Theme) -> str:
    """Cells down, layers across: the arms' cosines, and the null's on the same shades."""
    profiles = _profiles(data)[:MAX_ROWS]
    layers = list(dict.fromkeys(band.layer for _, _, profile in profiles for band in profile))
    names = [short(cell.label if cell else cell_id, 24) for cell, cell_id, _ in profiles]
    found = [{band.layer: (band.mean, band.null_mean) for band in profile} for _, _, profile in profiles]
    arms = [[row.get(layer, (None, None))[0] for layer in layers] for row in found]
    nulls = [[row.get(layer, (None, None))[1] for layer in layers] for row in found]
    across = len(layers) <= MAX_ACROSS
    height = 0.22 * len(names)
    figure.set_size_inches(WIDTH, 1.1 + height if across else 1.5 + 2 * height)
    grid = figure.subplots(*((1, 2) if across else (2, 1)), sharex=True, sharey=True)
    low = min(value for row in (*arms, *nulls) for value in row if value is not None)
    for axes, values, title in zip(
        grid, (arms, nulls), ("quantized against 16-bit", "null: data order alone"), strict=True
    ):
        _matrix(axes, values, min(0.9, math.floor(10 * low) / 10), theme)
        axes.set_title(title)
    for axes in grid if across else grid[1:]:
        axes.set_xlabel("layer")
    every = max(1, math.ceil(len(layers) / 16))
    grid[0].set_xticks(range(0, len(layers), every), [str(layer) for layer in layers[::every]])
    grid[0].set_yticks(range(len(names)), names)
    heading(figure, "Cosine of ΔW against the 16-bit twin", theme)
    return _said(profiles)


def _matrix(axes: Any, values: Values, low: float, theme: Theme) -> None:
    from matplotlib.colors import Normalize

    texts = [["" if value is None else f"{value:.2f}".replace("0.", ".") for value in row] for row in values]
    written = texts if len(values[0]) <= MAX_WRITTEN else ()
    darkest = pale(theme.precision["bf16"], theme.paper, 0.65)  # ink stays legible on it
    draw_shaded(axes, values, Normalize(low, 1.0), [darkest], theme, texts=written, size=6.5)


def _profiles(data: StudyData) -> list[Profile]:
    """(cell, its id, its layers beside the null's) of every arm that was compared."""
    groups = [(cell, cell_id, layer_profile(pairs, null)) for cell, cell_id, pairs, null, _ in similarity_groups(data)]
    found = [group for group in groups if group[2]]
    if not found:
        raise NoData("no pair of adapters was compared (diagnose/similarity.json is missing or has no pairs)")
    return found


def _said(profiles: Sequence[Profile]) -> str:
    said = [f"{cell.label if cell else i} {sum(b.mean for b in p) / len(p):.3f}" for cell, i, p in profiles]
    return "Mean cosine of the learned updates with their 16-bit twins: " + "; ".join(said)


def draw_profile(figure: Any, data: StudyData, entries: Any, tables: Any, theme: Theme) -> str:
    profiles = _profiles(data)[:MAX_PANELS]
    columns = 2 if len(profiles) > 1 else 1
    rows = math.ceil(len(profiles) / columns)
    figure.set_size_inches(WIDTH, 3.5 if rows == 1 else 0.9 + 1.65 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    known = list(dict.fromkeys(cell.precision for cell in data.cells))
    bands = [band for _, _, bands in profiles for band in bands]
    low = min(v for b in bands for v in (b.mean, *(b.interval or ()), *(b.null_range or ())))
    for i, (cell, cell_id, profile) in enumerate(profiles):
        axes = grid[i // columns][i % columns]
        _null_band(axes, profile, theme)
        axes.axhline(
            THRESHOLD, color=theme.ink, linewidth=1.0, linestyle=(0, (2, 2)), label=f"claim: above {THRESHOLD}"
        )
        x = range(len(profile))
        colour = colour_of(theme, cell.precision, known) if cell else theme.ink
        marker = MARKERS.get(cell.precision, UNKNOWN) if cell else UNKNOWN
        for at, band in zip(x, profile, strict=True):
            if band.interval:
                axes.plot([at, at], band.interval, color=colour, linewidth=1.6, solid_capstyle="butt")
        axes.plot(
            x,
            [b.mean for b in profile],
            color=colour,
            linewidth=1.2,
            marker=marker,
            markersize=4.5,
            label="quantized against 16-bit",
        )
        every = max(1, math.ceil(len(profile) / (6 if columns == 2 else 14)))
        axes.set_xticks(list(x)[::every], [str(b.layer) for b in profile][::every])
        axes.set_ylim(min(low - 0.02, 0.9), 1.005)
        axes.set_title(short(cell.label if cell else cell_id, 26))
        axes.grid(False, axis="x")
        if i + columns >= len(profiles):
            axes.set_xlabel("layer")
            axes.tick_params(labelbottom=True)
    for spare in range(len(profiles), rows * columns):
        grid[spare // columns][spare % columns].set_visible(False)
    heading(figure, "Cosine of ΔW against the 16-bit twin", theme)
    handles, names = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2)
    return _said(profiles)


def _null_band(axes: Any, profile: Sequence[Any], theme: Theme) -> None:
    """The null's range by layer; a line where it is one pair."""
    beside = [(i, b) for i, b in enumerate(profile) if b.null_range]
    if not beside:
        return
    x = [i for i, _ in beside]
    low, high = [b.null_range[0] for _, b in beside], [b.null_range[1] for _, b in beside]
    axes.fill_between(x, low, high, color=theme.null, alpha=0.4, linewidth=0)
    axes.plot(x, [b.null_mean for _, b in beside], color=theme.null, linewidth=1.4, label="null: data order alone")
