"""What all figures share: colours of light and dark, matplotlib's settings, the lines and the axis of a rank sweep.

Colour says precision, everywhere the same (Okabe and Ito's palette, safe for colour-blind readers); markers and line
styles say it again. Where a study compares methods, colour and marker say the method, line styles the precision, and
hollow markers that it is quantized.
matplotlib's object interface only: no pyplot, no state left behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from loracle.report.columns import Table
from loracle.report.evidence import CellData, StudyData
from loracle.verdict.entries import Entry

WIDTH, DPI = 4.7, 200

MAX_PANELS = 8


class NoData(Exception):
    """There is nothing to draw; the message says why."""


@dataclass(frozen=True)
class Theme:
    """Colours of one appearance."""

    paper: str
    ink: str
    faint: str
    grid: str
    precision: Mapping[str, str]
    other: Sequence[str]
    methods: Sequence[str]
    null: str


LIGHT = Theme(
    paper="#ffffff", ink="#1c2024", faint="#646b73", grid="#e4e7ea", null="#9aa3ac",
    precision={"bf16": "#0072B2", "fp16": "#0072B2", "fp32": "#0072B2",
               "nf4": "#D55E00", "fp4": "#A0508A", "int8": "#008F6B",
               "int4": "#8A6D00", "int3": "#5B5BD6", "int2": "#B0003A"},
    other=("#00798C", "#6B4E2E", "#3F6B00"),
    methods=("#0072B2", "#D55E00", "#008F6B", "#A0508A", "#8A6D00", "#5B5BD6", "#B0003A", "#00798C",
             "#6B4E2E", "#3F6B00", "#E08A00", "#646B73", "#1B2A80", "#D6409F"),
)  # fmt: skip

DARK = Theme(
    paper="#181b20", ink="#e8eaed", faint="#9aa3ad", grid="#2d323a", null="#7d8792",
    precision={"bf16": "#56B4E9", "fp16": "#56B4E9", "fp32": "#56B4E9",
               "nf4": "#FF8A3D", "fp4": "#DE94C4", "int8": "#3CCFA4",
               "int4": "#F0E442", "int3": "#A5A5FF", "int2": "#FF7A9C"},
    other=("#4DD0E1", "#D2A679", "#B5D96B"),
    methods=("#56B4E9", "#FF8A3D", "#3CCFA4", "#DE94C4", "#F0E442", "#A5A5FF", "#FF7A9C", "#4DD0E1",
             "#D2A679", "#B5D96B", "#FFC857", "#AEB6BF", "#7FA8FF", "#FF9ECF"),
)  # fmt: skip

MARKERS = {
    "bf16": "o", "fp16": "o", "fp32": "o", "nf4": "s", "fp4": "D", "int8": "^", "int4": "v", "int3": "P", "int2": "X",
}  # fmt: skip

LINES: dict[str, Any] = {
    "bf16": "-", "fp16": "-", "fp32": "-", "nf4": (0, (5, 1.5)), "fp4": (0, (1, 1)), "int8": (0, (4, 1, 1, 1)),
    "int4": (0, (2.5, 1)), "int3": (0, (6, 1, 1, 1, 1, 1)), "int2": (0, (1, 2.2)),
}  # fmt: skip

SPARE = ("o", "s", "^", "D", "v", "P", "X", "<")
UNKNOWN = "*"

Draw = Callable[[Any, StudyData, Sequence[Entry], Mapping[str, Table], Theme], str]


@contextmanager
def styled(theme: Theme) -> Iterator[None]:
    import matplotlib
    from matplotlib import style

    settings = {
        "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9.0, "axes.titlesize": 9.0,
        "axes.labelsize": 9.0, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "legend.fontsize": 8.5,
        "text.parse_math": False,
        "figure.facecolor": theme.paper, "axes.facecolor": theme.paper, "savefig.facecolor": theme.paper,
        "text.color": theme.ink, "axes.labelcolor": theme.faint, "axes.titlecolor": theme.ink,
        "axes.edgecolor": theme.faint,
        "xtick.color": theme.faint, "ytick.color": theme.faint, "grid.color": theme.grid, "grid.linewidth": 0.8,
        "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
        "axes.spines.left": False, "axes.linewidth": 0.8, "xtick.major.size": 0, "ytick.major.size": 0,
        "legend.frameon": False, "legend.handlelength": 1.8, "axes.titlelocation": "left", "axes.titlepad": 6.0,
    }  # fmt: skip
    with matplotlib.rc_context(), style.context(["default", settings]):
        yield


def colour_of(theme: Theme, precision: str, known: Sequence[str]) -> str:
    """A precision's own colour; mixed and unknown ones take the spare colours in the order of the plan."""
    if precision in theme.precision:
        return theme.precision[precision]
    others = [p for p in known if p not in theme.precision]
    return theme.other[others.index(precision) % len(theme.other)] if precision in others else theme.ink


@dataclass(frozen=True)
class Line:
    """What one line of a rank figure is about: cells alike in all but the rank."""

    name: str
    precision: str
    colour: str
    marker: str
    style: Any
    cells: Sequence[CellData]
    hollow: bool = False


def lines_of(data: StudyData, theme: Theme, cells: Sequence[CellData]) -> list[Line]:
    """One line for each group of cells alike in all but the rank."""
    groups: dict[str, list[CellData]] = {}
    for cell in cells:
        groups.setdefault(cell.series, []).append(cell)
    names = [f"{group[0].method} {group[0].precision}" for group in groups.values()]
    if len(set(names)) < len(names):
        return _by_kind(theme, groups.values(), {series: _setting(group[0]) for series, group in groups.items()})
    if len(data.methods) > 1:
        order = sorted(data.methods, key=lambda name: (name != "lora", name != "full"))
        kinds = {name: group[0].method for name, group in zip(names, groups.values(), strict=True)}
        return _by_kind(theme, groups.values(), kinds, order)
    return _by_precision(data, theme, groups.values())


def _by_precision(data: StudyData, theme: Theme, groups: Iterable[list[CellData]]) -> list[Line]:
    known = list(dict.fromkeys(cell.precision for cell in data.cells))
    found = []
    for group in groups:
        precision = group[0].precision
        marker, line = MARKERS.get(precision, UNKNOWN), LINES.get(precision, "-")
        found.append(Line(short(precision), precision, colour_of(theme, precision, known), marker, line, group))
    return found


def _by_kind(
    theme: Theme, groups: Iterable[list[CellData]], kinds: Mapping[str, str], order: Sequence[str] = ()
) -> list[Line]:
    """Colour and marker by what ``kinds`` says of each group, ``{its name: kind}``, in ``order`` or as they come; line style by
    precision."""
    order = order or list(dict.fromkeys(kinds.values()))
    found = []
    for group, (name, kind) in zip(groups, kinds.items(), strict=True):
        place, precision = order.index(kind), group[0].precision
        colour, marker = theme.methods[place % len(theme.methods)], SPARE[place % len(SPARE)]
        line = LINES.get(precision, "-")
        found.append(Line(short(name), precision, colour, marker, line, group, group[0].quantized))
    return found


def _setting(cell: CellData) -> str:
    """A cell's series without its precision."""
    return cell.series.replace(cell.precision, "", 1)


def places(data: StudyData, lines: Sequence[Line]) -> tuple[dict[str, float], list[str], str]:
    """Where each cell stands on the x axis: by rank, or by label where no rank is varied."""
    ranks = sorted({c.rank for line in lines for c in line.cells if c.rank is not None})
    step = min(0.12, 0.6 / max(len(lines), 1))
    if len(ranks) > 1 and all(c.rank is not None for line in lines for c in line.cells):
        offsets = [(i - (len(lines) - 1) / 2) * step for i in range(len(lines))]
        where = {
            c.id: ranks.index(c.rank or 0) + offset
            for line, offset in zip(lines, offsets, strict=True)
            for c in line.cells
        }
        return where, [str(r) for r in ranks], "rank"
    cells = [c for line in lines for c in line.cells]
    return {c.id: float(i) for i, c in enumerate(cells)}, [short(c.label, 18) for c in cells], ""


def rank_axis(axes: Any, names: Sequence[str], label: str) -> None:
    tilted = label == "" and len(names) > 3
    axes.set_xticks(range(len(names)), names, **({"rotation": 30, "ha": "right"} if tilted else {}))
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_xlabel(label)
    axes.grid(False, axis="x")


def heading(figure: Any, text: str, theme: Theme) -> None:
    figure.suptitle(text, x=0.01, ha="left", fontsize=9.0, color=theme.ink)


def write(
    axes: Any, text: str, at: tuple[float, float], offset: tuple[float, float], theme: Theme, va: str = "center"
) -> None:
    """A small label beside a point, ``offset`` in points."""
    axes.annotate(text, at, xytext=offset, textcoords="offset points", va=va, fontsize=8.5, color=theme.ink)


def legend(figure: Any, handles: Mapping[str, Any]) -> None:
    """``{name: handle}`` below the figure, in as many columns as fit."""
    names = list(handles)
    columns = next((n for n in range(min(len(names), 4), 1, -1) if _width(names, n) <= WIDTH), 1)
    figure.legend(list(handles.values()), names, loc="outside lower center", ncols=columns)


def handles_of(*panels: Any) -> dict[str, Any]:
    """Each name in the panels' legends once, with its handle."""
    return {n: h for axes in panels for h, n in zip(*axes.get_legend_handles_labels(), strict=True)}


def _width(names: Sequence[str], columns: int) -> float:
    """About how wide a legend is, in inches; it is filled column by column, the first ones with one name more."""
    rows, more = divmod(len(names), columns)
    widest, at = 0.0, 0
    for column in range(columns):
        until = at + rows + (column < more)
        widest += 0.55 + 0.07 * max(map(len, names[at:until]))
        at = until
    return widest


def short(text: str, limit: int = 28) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def pale(colour: str, paper: str, share: float = 0.42) -> str:
    """A colour mixed with the paper's."""
    pairs = [(int(colour[i : i + 2], 16), int(paper[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs)
