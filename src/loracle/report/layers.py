"""Layer variants to read: what quantization costs each, what it takes, and which is shown to be best."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from loracle.report import wording
from loracle.report.columns import Table
from loracle.report.grids import Grid, Item
from loracle.report.inert import plain
from loracle.verdict.layers import EQUAL_RANK


def grid(table: Table) -> Grid | None:
    """The variants to read; None for a study of one."""
    if not table.rows:
        return None
    heads = ["variants", "cell", "parameters", "drop against 16-bit", "evaluation loss", "peak memory", "best?"]
    rows = []
    for row in table.rows:
        names = [Item(_basis(row)), Item(str(row.get("label", row["cell"])))]
        figures = [wording.count(row["trainable_params"]), _percent(row), _loss(row), _memory(row)]
        rows.append([*names, *(Item(text, number=True) for text in figures), Item(row["best"] or "not judged")])
    return Grid("Layer variants", heads, rows, " ".join(_notes(table)))


def _basis(row: Mapping[str, Any]) -> str:
    apart = row["parameters_apart_percent"]
    return str(row["basis"]) if row["basis"] == EQUAL_RANK else f"{row['basis']} (± {apart:.1f}%)"


def _percent(row: Mapping[str, Any]) -> str:
    """``+1.2% (+0.8% to +1.6%)``."""
    value, low, high = (row.get(f"drop{part}_percent") for part in ("", "_low", "_high"))
    if value is None:
        return wording.NONE
    return f"{value:+.2f}%" + ("" if low is None or high is None else f" ({low:+.2f}% to {high:+.2f}%)")


def _loss(row: Mapping[str, Any]) -> str:
    value, low, high = (row[f"eval_loss_{part}"] for part in ("mean", "low", "high"))
    return wording.loss(value) + ("" if low is None else f" ({wording.loss(low)} to {wording.loss(high)})")


def _memory(row: Mapping[str, Any]) -> str:
    if row["peak_allocated_bytes"] is not None:
        return wording.size(row["peak_allocated_bytes"])
    predicted = row["predicted_bytes"]
    return wording.NONE if predicted is None else f"{wording.size(predicted)} predicted"


def _notes(table: Table) -> Iterator[str]:
    yield "Drop: the change of evaluation loss against 16-bit on the same layers at the same rank."
    yield "Best, in a group: shown better than every other in evaluation loss (all pairs at once, 5% in all); not best: some other is."
    for basis in dict.fromkeys(str(row["basis"]) for row in table.rows):
        words = {name: None for row in table.rows if row["basis"] == basis for name in row["differs_in"].split(", ")}
        yield plain(f"At {basis} variants differ in: {wording.listed(list(words))}.")
