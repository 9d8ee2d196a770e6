"""Layer sensitivity in a report: the heatmap of layers and kinds, the matrices that cost most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loracle.report import wording
from loracle.report.canvas import WIDTH, NoData, Theme, heading, short
from loracle.report.columns import Table
from loracle.report.evidence import StudyData
from loracle.report.grids import Grid, Item
from loracle.report.inert import plain
from loracle.report.shaded import draw_shaded

Row = Mapping[str, Any]

KINDS = ("qkv", "qkv_by_head", "q", "k", "v", "o", "gate_up", "gate", "up", "down")
MAX_SWEEPS, MAX_WRITTEN, MAX_LISTED = 4, 24, 5
FULL_SHADE = 0.1  # nats: a map without anything worse stays pale

CAPTION = (
    "Loss added (nats per token, on the text named) when one matrix, or one slice of a fused one, is quantized and everything "
    "else stays 16-bit. The darker the more; full shade is the largest of the map, 0.1 at least."
)


def sweeps(table: Table) -> list[tuple[str, list[Row]]]:
    """(what a sweep is of, its rows) in the table's order."""
    found: dict[str, list[Row]] = {}
    for row in table.rows:
        found.setdefault(_name(row), []).append(row)
    return list(found.items())


def _name(row: Row) -> str:
    return f"{_quantized(row)}; {_measured_on(row)}"


def _quantized(row: Row) -> str:
    block = f", block {row['block_size']}" if row["block_size"] else ""
    double = ", double quantization" if row["double_quant"] else ""
    codec = "int8 (weights only)" if row["codec"] == "int8" else row["codec"]
    return f"{row['base']}: {codec}{block}{double}"


def _measured_on(row: Row) -> str:
    return f"{'after training, ' if row['when'] == 'after' else ''}{plain(row['text'])}"


def grids(table: Table) -> list[Grid]:
    """The worst matrices of each sweep, and what all of them together cost."""
    return [_grid(name, found) for name, found in sweeps(table)]


def _grid(name: str, found: Sequence[Row]) -> Grid:
    shown = [row for row in found if row["unit"] == "matrix"][:MAX_LISTED]
    shown += [row for row in found if row["unit"] == "all"]
    lines = []
    for row in shown:
        cells = (_nats(row["delta_loss"]), _nats(row["kl"], ""), wording.fraction(row["agreement"]))
        title = plain(row["module"] or "all of them at once")
        lines.append([Item(title), *(Item(text, number=True) for text in (*cells, wording.count(row["params"])))])
    note = (
        f"One matrix quantized, everything else 16-bit, {_when(found[0])}; {wording.count(found[0]['tokens'])} scored tokens of "
        f"{plain(found[0]['text'])}. KL: of the base's distributions from the quantized one's, nats a token. Every matrix, slice, "
        "kind and layer is in tables/layer_sensitivity.csv."
    )
    heads = ["matrix", "loss added", "KL", "same greedy token", "parameters"]
    return Grid(f"Sensitivity to quantization, {plain(name)}", heads, lines, note)


def _when(row: Row) -> str:
    return f"with the adapter of {plain(row['run'])}" if row["when"] == "after" else "before training"


def _nats(value: float | None, sign: str = "+") -> str:
    return wording.NONE if value is None else f"{value:{sign}.4f}"


def draw(figure: Any, data: StudyData, entries: Any, tables: Mapping[str, Table], theme: Theme) -> str:
    found = [(name, group[0], cells) for name, group in sweeps(tables["layer_sensitivity"]) if (cells := _cells(group))]
    if not found:
        raise NoData("no matrix was quantized by itself (the study does not ask for sensitivity)")
    found = found[:MAX_SWEEPS]
    heights = [0.75 + min(0.2 * _layers(cells), 4.0) for *_, cells in found]
    figure.set_size_inches(WIDTH, 0.4 + sum(heights))
    grid = figure.subplots(len(found), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
    for i, (_, row, cells) in enumerate(found):
        _heatmap(grid[i][0], cells, theme)
        grid[i][0].set_title(short(_measured_on(row), 36))
        grid[i][0].set_title(short(_quantized(row), 50), loc="right", fontsize=7.0, color=theme.faint)
    heading(figure, "Loss added by quantizing one matrix (nats/token)", theme)
    said = [f"{name}: {_worst(cells)}" for name, _, cells in found]
    return "Loss added by quantizing one matrix, worst: " + "; ".join(said)


Cells = dict[tuple[int, str], float | None]


def _cells(group: Sequence[Row]) -> Cells:
    """(layer, kind) → loss added, of matrices and slices that are in a layer; of several of one kind the worst."""
    found: Cells = {}
    for row in group:
        if row["unit"] in ("matrix", "slice") and row["layer"] is not None:
            found.setdefault((int(row["layer"]), str(row["kind"])), row["delta_loss"])
    return found


def _layers(cells: Cells) -> int:
    return max(layer for layer, _ in cells) + 1


def _worst(cells: Cells) -> str:
    ordered = sorted(cells.items(), key=lambda item: -(item[1] if item[1] is not None else float("inf")))
    return ", ".join(f"layer {layer} {kind} {_nats(value)}" for (layer, kind), value in ordered[:3])


def _heatmap(axes: Any, cells: Cells, theme: Theme) -> None:
    """Layers down, kinds across."""
    from matplotlib.colors import PowerNorm

    there = {kind for _, kind in cells}
    kinds = [kind for kind in KINDS if kind in there] + sorted(there - set(KINDS))
    layers = sorted({layer for layer, _ in cells})
    values = [[None if (v := cells.get((layer, k))) is None else max(v, 0.0) for k in kinds] for layer in layers]
    texts = (
        [[_written(cells, (layer, kind)) for kind in kinds] for layer in layers] if len(layers) <= MAX_WRITTEN else ()
    )
    norm = PowerNorm(0.5, vmin=0.0, vmax=max([FULL_SHADE, *(v for v in cells.values() if v is not None)]))
    draw_shaded(axes, values, norm, [theme.precision["nf4"], theme.ink], theme, texts=texts)
    axes.set_xticks(range(len(kinds)), [short(kind, 10) for kind in kinds])
    every = max(1, len(layers) // 16)
    axes.set_yticks(range(0, len(layers), every), [str(layer) for layer in layers[::every]])
    axes.set_ylabel("layer")


def _written(cells: Cells, at: tuple[int, str]) -> str:
    """The figure of a cell; what is not finite says so."""
    if at not in cells:
        return ""
    value = cells[at]
    return "not finite" if value is None else f"{value:.3f}".replace("-0.000", "0.000")
