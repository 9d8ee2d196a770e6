"""Tables that hold cells against each other: memory by rank, quality against memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from loracle.report.columns import Table, named, summary
from loracle.report.evidence import CellData, StudyData, number
from loracle.report.footprint import Footprint, best_basis, footprints, shared_basis
from loracle.verdict.noninferiority import Direction
from loracle.verdict.pareto import frontier_probability
from loracle.verdict.scope import check


def memory_by_rank(data: StudyData, memory: Table) -> Iterator[dict[str, Any]]:
    """Each quantized cell beside its 16-bit reference, on the best ground that both share."""
    found = footprints(memory)
    why = {str(r["cell"]): r["reason"] for r in memory.rows if r["component"] == "peak"}
    for cell in _arms(data):
        reference = data.by_cell[str(cell.reference)]
        guard = check(data.evidence(), cell.raw, reference.raw, "precision")
        row = named(cell, cell.id) | {"reference": reference.id, "also_differs_in": ", ".join(guard.confounds) or None}
        row["reason"] = why.get(cell.id) or why.get(reference.id)
        basis = shared_basis(found, [reference.id, cell.id])
        if basis is None:
            yield row
            continue
        ours, theirs = found[cell.id][basis], found[reference.id][basis]
        row |= {"basis": basis, "device": ours.device, "storage": ours.storage}
        row |= {"reference_bytes": theirs.bytes, "bytes": ours.bytes}
        yield row | {"reduction_percent": 100 * (1 - ours.bytes / theirs.bytes)}


def quality_memory(data: StudyData, memory: Table) -> Iterator[dict[str, Any]]:
    """Each cell's quality and memory, and how probable it is that no other cell of its base and task beats it in both."""
    found = footprints(memory)
    groups: dict[tuple[str, str], list[CellData]] = {}
    for cell in data.cells:
        groups.setdefault(_subject(cell), []).append(cell)
    task = data.task_metric()
    for (base, name), cells in groups.items():
        basis = best_basis(found, [cell.id for cell in cells])
        figures = {cell.id: figure for cell in cells if (figure := found.get(cell.id, {}).get(str(basis)))}
        for metric in dict.fromkeys(("eval_loss", task) if task else ("eval_loss",)):
            chance = _on_frontier(data, [c.id for c in cells if c.id in figures], figures, metric)
            for cell in cells:
                values = data.values(cell.id, metric)
                row = named(cell, cell.id) | {"base": base, "task": name, "metric": metric}
                row |= {key.removeprefix(f"{metric}_"): value for key, value in summary(metric, values).items()}
                yield row | _bytes(figures.get(cell.id)) | {"frontier_probability": chance.get(cell.id)}


def _arms(data: StudyData) -> list[CellData]:
    return [cell for cell in data.cells if cell.reference in data.by_cell]


def _bytes(figure: Footprint | None) -> dict[str, Any]:
    if figure is None:
        return {"memory_bytes": None, "memory_basis": None, "device": None}
    return {"memory_bytes": figure.bytes, "memory_basis": figure.basis, "device": figure.device}


def _subject(cell: CellData) -> tuple[str, str]:
    """Base and task: losses of two bases, or scores of two tasks, are not held against each other."""
    config = cell.raw.get("config") or {}
    base, task = config.get("base") or {}, config.get("task") or {}
    return str(base.get("name") or base.get("model") or ""), str(task.get("name") or task.get("format") or "")


def _on_frontier(
    data: StudyData, cells: Sequence[str], figures: dict[str, Footprint], metric: str
) -> dict[str, float | None]:
    """The probability of each cell that has three seeds or more; memory is taken as a fixed figure."""
    values = {cell: found for cell in cells if (found := data.values(cell, metric))}
    if not values:
        return {}
    means = [[float(np.mean(found)), float(figures[cell].bytes)] for cell, found in values.items()]
    errors = [[_standard_error(found), 0.0] for found in values.values()]
    counts = [[len(found), 0] for found in values.values()]
    better: Direction = "lower" if metric == "eval_loss" else "higher"
    chance = frontier_probability(means, errors, counts, (better, "lower"))
    return {cell: number(float(p)) for cell, p in zip(values, chance, strict=True)}


def _standard_error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
