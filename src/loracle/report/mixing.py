"""What mixed precision kept, and what each step of it was worth, in a report. Whether it helped after training is a verdict's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loracle.report import wording
from loracle.report.columns import Table
from loracle.report.grids import Grid, Item
from loracle.report.inert import plain
from loracle.report.tables_sensitivity import ABOUT_MIX

Row = Mapping[str, Any]


def grids(table: Table) -> list[Grid]:
    """One for each choice."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in table.rows:
        found.setdefault(tuple(row[key] for key in ABOUT_MIX), []).append(row)
    return [_grid(rows) for rows in found.values()]


def _grid(rows: Sequence[Row]) -> Grid:
    first = rows[0]
    title = (
        f"What to keep finer, {plain(first['base'])}: {first['codec']}, {first['sensitive']} within {first['budget']}"
    )
    lines = [_line(row) for row in rows]
    heads = ["kept finer", "share of weights", "bits a weight", "loss added by the rest", "KL", "same greedy token"]
    return Grid(title, heads, lines, _note(rows))


def _line(row: Row) -> list[Item]:
    name = "nothing" if row["step"] == 0 else f"and {plain(row['added'])}"
    none = row["step"] == 0
    cells = (
        "0%" if none else wording.fraction(row["kept_share"]),
        wording.NONE if row["bits_per_weight"] is None else f"{row['bits_per_weight']:.3f}",
        *(wording.NONE if row[key] is None else f"{row[key]:+.4f}" for key in ("delta_loss", "kl")),
        wording.fraction(row["agreement"]),
    )
    return [Item(name + (" (chosen)" if row["chosen"] and not none else "")), *(Item(c, number=True) for c in cells)]


def _note(rows: Sequence[Row]) -> str:
    first = rows[0]
    measured = f"Everything else in {first['codec']}, before training, on {plain(first['text'])}."
    if not first["needed"]:
        return f"Nothing needs keeping: {plain(first['reason'] or '')}."
    kept = [row["added"] for row in rows if row["step"] and any(r["chosen"] and r["step"] >= row["step"] for r in rows)]
    if not kept:
        return f"{measured} Nothing was kept: {plain(first['reason'] or '')}."
    block = ", ".join([f"default: {first['codec']}", *(f"{name}: {first['sensitive']}" for name in kept)])
    return f"{measured} To paste into a study: precision: {{{plain(block)}}}"
