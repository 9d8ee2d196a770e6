"""The figure of memory by component."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from loracle.report.canvas import (
    WIDTH,
    NoData,
    Theme,
    heading,
    pale,
    short,
    write,
)
from loracle.report.columns import COMPONENTS, Table
from loracle.report.evidence import StudyData, number

MAX_BARS = 10


PARTS = (
    "#0072B2", "#56B4E9", "#66717c", "#D55E00", "#E69F00", "#DCCB00", "#009E73", "#CC79A7", "#8458b3", "#aab2ba",
)  # fmt: skip

MEMORY_CAPTION = (
    "Upper bar of each pair: predicted for an accelerator. Lower bar: measured by a probe on the device named. "
    "The storage of the weights is named. Hatched: the rest of the measured peak, which no counter tells apart. Where no "
    "peak was measured, or a component not predicted, it is left out of its bar: then compare component with component, "
    "not the ends of the bars."
)
UNTOLD = "rest of the measured peak"


def draw_memory(figure: Any, data: StudyData, entries: Any, tables: Mapping[str, Table], theme: Theme) -> str:
    from matplotlib.patches import Patch

    bars = _memory_bars(tables["memory"])
    if not bars:
        raise NoData("neither a prediction nor a measurement of memory by component is at hand")
    cut = len(bars) > MAX_BARS
    bars = _ends(bars) if cut else bars
    figure.set_size_inches(WIDTH, 1.6 + 0.24 * len(bars) + 0.25 * len({b[0] for b in bars}))
    axes = figure.subplots()
    largest = max(sum(parts.values()) for _, _, parts in bars)
    unit, name = (1e9, "GB") if largest >= 1e9 else (1e6, "MB")
    y, ticks, previous = 0.0, [], None
    for title, kind, parts in bars:
        if title != previous:
            y += 0.95 if previous else 0.0
            write(axes, short(title, 48), (0, y), (0, 10.5), theme, va="bottom")
        _bar(axes, y, {part: value / unit for part, value in parts.items()}, kind != "predicted", theme)
        ticks.append((y, kind))
        previous, y = title, y + 0.9
    axes.set_yticks([t for t, _ in ticks], [t for _, t in ticks])
    axes.invert_yaxis()
    axes.set_xlim(0, largest / unit * 1.12)
    axes.grid(False, axis="y")
    heading(figure, f"Memory by component ({name}); pale: predicted, full: measured", theme)
    seen = _ordered({part for _, _, parts in bars for part, value in parts.items() if value > 0})
    names = [part.replace("_", " ") for part in seen]
    figure.legend([Patch(**_look(part, theme)) for part in seen], names, loc="outside lower center", ncols=2)
    note = " Only the first and last cells are drawn; all are in tables/memory.csv." if cut else ""
    return (
        "Memory by component: "
        + "; ".join(f"{t} {k} {sum(p.values()) / unit:.3g} {name}" for t, k, p in bars)
        + "."
        + note
    )


def _bar(axes: Any, y: float, parts: Mapping[str, float], measured: bool, theme: Theme) -> None:
    """One stacked bar with its total."""
    left = 0.0
    for part in _ordered(parts):
        look = _look(part, theme) if measured else {"color": pale(_part_colour(part), theme.paper)}
        axes.barh(y, parts[part], 0.82, left, **{"edgecolor": theme.paper, "linewidth": 0.5} | look)
        left += parts[part]
    write(axes, f"{left:.3g}", (left, y), (3, 0), theme)


def _ordered(parts: Iterable[str]) -> list[str]:
    """Components in the ledger's order, unknown ones last."""
    found = set(parts)
    return [c for c in COMPONENTS if c in found] + sorted(found - set(COMPONENTS))


def _part_colour(part: str) -> str:
    return PARTS[COMPONENTS.index(part)] if part in COMPONENTS else PARTS[-1]


def _look(part: str, theme: Theme) -> dict[str, Any]:
    if part == UNTOLD:
        return {"facecolor": theme.paper, "edgecolor": theme.faint, "hatch": "/////"}
    return {"color": _part_colour(part)}


def _memory_bars(table: Table) -> list[tuple[str, str, dict[str, float]]]:
    """(cell and storage, predicted or measured, {component: bytes}) in the order of the table; a measured peak adds what no
    component of it accounts for."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in table.rows:
        if row["component"] == "sum_of_known":
            continue
        storage = "" if row["storage"] == "unquantized" else f" ({row['storage']})"
        device = f" ({short(row['device'], 12)})" if row["device"] else ""
        for kind in ("predicted", "measured"):
            value = number(row[f"{kind}_bytes"])
            if value is None:
                continue
            title = f"{row.get('label', row['cell'])}{storage}"
            parts = found.setdefault((title, kind + (device if kind == "measured" else "")), {})
            if row["component"] != "peak":
                parts[row["component"]] = value
            elif kind == "measured" and value > sum(parts.values()):
                parts[UNTOLD] = value - sum(parts.values())
    titles = list(dict.fromkeys(title for title, _ in found))
    return [(t, kind, parts) for t in titles for (title, kind), parts in found.items() if title == t]


def _ends(bars: Sequence[Any]) -> list[Any]:
    """The first and last cells, as many as fit."""
    titles = list(dict.fromkeys(bar[0] for bar in bars))
    half = max(1, MAX_BARS // 4)
    kept = {*titles[:half], *titles[-half:]}
    return [bar for bar in bars if bar[0] in kept]
