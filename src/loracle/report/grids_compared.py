"""Tables to read of cells held against each other: memory by rank, three layers, speed, quality and memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loracle.report import wording
from loracle.report.columns import Table
from loracle.report.grids import Grid, Item
from loracle.report.inert import plain

Row = Mapping[str, Any]


def memory_by_rank(table: Table) -> Grid | None:
    if not table.rows:
        return None
    beside = any(row.get("also_differs_in") for row in table.rows)
    rows = []
    for row in table.rows:
        known = row.get("basis") is not None
        saved = wording.NONE if not known else f"{row['reduction_percent']:.1f}%"
        sizes = [wording.size(row.get(name)) for name in ("reference_bytes", "bytes")]
        ground = _ground(row["basis"], row["device"]) if known else f"not comparable: {plain(row['reason'])}"
        cells = [Item(_rank(row)), *(Item(text, number=True) for text in (*sizes, saved)), Item(ground)]
        rows.append([Item(str(row["label"])), *cells])
        if beside:
            rows[-1].append(Item(plain(row.get("also_differs_in") or wording.NONE)))
    note = "Against the 16-bit cell with the same settings, on the best ground that both have."
    note += " What differs beside precision makes it a comparison of recipes." if beside else ""
    heads = ["cell", "rank", "16-bit", "quantized", "reduction", "ground", *(["also differs in"] if beside else [])]
    return Grid("Memory by rank", heads, rows, note)


def layer_places(table: Table) -> Grid | None:
    """The first, the middle and the last layer of each cell."""
    shown = [row for row in table.rows if row["place"]]
    if not shown:
        return None
    rows = []
    for row in shown:
        figures = [row[name] for name in ("cosine_mean", "null_mean", "l2_mean", "relative_difference_mean")]
        texts = [str(row["layer"]), *(wording.NONE if v is None else f"{v:.3f}" for v in figures)]
        name = f"{row.get('label', row['cell'])}, {row['place']}"
        rows.append([Item(name), *(Item(text, number=True) for text in texts)])
    heads = ["cell and layer", "layer", "cosine", "null's cosine", "L2 distance", "relative difference"]
    note = "ΔW of the quantized run against its 16-bit twin's, means over seeds. Every layer is in tables/similarity_by_layer.csv."
    return Grid("Weight similarity: first, middle and last layer", heads, rows, note)


def tradeoff(table: Table) -> Grid | None:
    """Quality, memory and the probability of the frontier, one row a cell and metric."""
    shown = [row for row in table.rows if row["memory_bytes"] is not None and row["mean"] is not None]
    if not shown:
        return None
    rows = []
    for row in shown:
        chance = row["frontier_probability"]
        show = wording.fraction if row["metric"] in wording.FRACTIONS else wording.loss
        low = "" if row["low"] is None else f" ({show(row['low'])} to {show(row['high'])})"
        texts = [wording.size(row["memory_bytes"]), show(row["mean"]) + low]
        texts.append(wording.NONE if chance is None else f"{chance:.2f}")
        name = Item(wording.metric(row["metric"]))
        rows.append([Item(str(row["label"])), name, *(Item(text, number=True) for text in texts)])
    grounds = dict.fromkeys(_ground(row["memory_basis"], row["device"]) for row in shown)
    note = f"Memory: {wording.listed(list(grounds))}. On the frontier: the probability that no other cell needs no more memory and is "
    note += "at least as good, from draws of the means' t distributions (three seeds or more)."
    return Grid("Cells by quality and memory", ["cell", "metric", "memory", "quality", "on the frontier"], rows, note)


def speed(table: Table) -> Grid:
    """A step's time, and the speed relative to the 16-bit reference's where both were probed alike."""
    reasons = dict.fromkeys(str(row["reason"]) for row in table.rows)
    if len(table.rows) > 1 and len(reasons) == 1 and all(row["ms_per_step_median"] is None for row in table.rows):
        every = [Item(f"all {len(table.rows)} cells"), Item(f"not measured: {plain(next(iter(reasons)))}")]
        return Grid("Speed", ["", "step"], [every])
    rows = []
    for row in table.rows:
        first = [Item(str(row.get("label", row["cell"]))), Item(plain(row["storage"] or wording.NONE))]
        if row["ms_per_step_median"] is None:
            rows.append([*first, Item(f"not measured: {plain(row['reason'])}"), *[Item(wording.NONE)] * 3])
            continue
        step = f"{row['s_per_step']:.4g} s"
        step += (
            f" ({row['ms_per_step_p10'] / 1000:.4g} to {row['ms_per_step_p90'] / 1000:.4g})"
            if row["ms_per_step_p10"]
            else ""
        )
        relative, tokens = row.get("relative_speed"), row["tokens_per_s"]
        texts = [step, wording.NONE if relative is None else f"{relative:.2f}×"]
        texts.append(wording.NONE if tokens is None else f"{tokens:,.0f}")
        rows.append([*first, *(Item(text, number=True) for text in texts), Item(plain(row["device"] or wording.NONE))])
    note = "Median of synchronized steps after warm-up, with the 10th and 90th percentile. Padding is not counted. "
    note += "Relative speed: the 16-bit cell's step over this one's; above 1 is faster."
    return Grid("Speed", ["cell", "storage", "step", "relative speed", "tokens per second", "device"], rows, note)


def _rank(row: Row) -> str:
    return wording.NONE if row.get("rank") is None else str(row["rank"])


def _ground(basis: str, device: Any) -> str:
    return f"{basis} on {plain(device)}" if device else basis
