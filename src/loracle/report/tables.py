"""The CSV tables of a report, row by row; their columns are in ``columns.py``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from loracle.report.columns import CELL_METRICS, COLUMNS, COMPONENTS, LATENCY, RUN_METRICS, Table, named, summary
from loracle.report.evidence import ALL_STATES, CellData, RunData, StudyData, number
from loracle.report.tables_allocation import allocation, rank_patterns
from loracle.report.tables_checks import differing, failures
from loracle.report.tables_classes import classes, confusion
from loracle.report.tables_compared import memory_by_rank, quality_memory
from loracle.report.tables_groups import rows as groups
from loracle.report.tables_layers import layer_variants
from loracle.report.tables_methods import methods
from loracle.report.tables_sensitivity import mixed_precision, sensitivity
from loracle.report.wording import mean
from loracle.verdict.entries import Entry
from loracle.verdict.knowledge import lost_by
from loracle.verdict.likeness import null_of
from loracle.verdict.resources import SAME, probe_of, storage_of
from loracle.verdict.similarity import layer_profile

QUALITY = ("degradation", "gain_kept", "task_metric")
MATCH = 0.95


def all_tables(data: StudyData, entries: Sequence[Entry]) -> dict[str, Table]:
    """Every table, also those that have no rows."""
    memory = Table("memory", list(_memory(data)))
    rows: dict[str, Iterable[Mapping[str, Any]]] = {
        "runs": (_run(data, run) for run in data.runs),
        "cells": (_cell_row(data, cell) for cell in data.cells),
        "degradation": _degradation(data, entries),
        "similarity_by_layer": _similarity(data),
        "agreement": _agreement(data),
        "memory": memory.rows,
        "speed": _speed(data),
        "learning": (_learning(data, run) for run in data.runs if run.role == "run"),
        "methods": methods(data),
        "confusion": confusion(data),
        "classes": classes(data),
        "latency": _latency(data),
        "groups": groups(data),
        "layer_variants": layer_variants(data),
        "layer_sensitivity": sensitivity(data),
        "mixed_precision": mixed_precision(data),
        "rank_allocation": allocation(data, entries),
        "rank_patterns": rank_patterns(data),
        "failure_modes": failures(data, entries),
        "comparisons": differing(data),
        "memory_by_rank": memory_by_rank(data, memory),
        "quality_memory": quality_memory(data, memory),
        "data_audit": _audit(data),
    }
    return {name: Table(name, list(found)) for name, found in rows.items()}


def _run(data: StudyData, run: RunData) -> dict[str, Any]:
    record, reload = run.record, run.record.get("reload") or {}
    row = named(data.by_cell.get(run.cell), run.cell) | {"run": run.id, "role": run.role, "seed": run.seed}
    row |= {"status": run.status, "reason": run.reason or None}
    row |= {name: run.metric(name) for name in RUN_METRICS}
    keys = ("trainable_params", "total_params", "effective_bits", "steps", "stopped_at", "tokens_seen")
    also = ("wall_s", "cohort_wall_s", "peak_allocated_bytes", "adapter_sha256")
    row |= {key: record.get(key) for key in (*keys, *also)}
    return row | {"reload_passed": reload.get("passed"), "reload_difference": number(reload.get("difference"))}


def _cell_row(data: StudyData, cell: CellData) -> dict[str, Any]:
    runs = data.of_cell(cell.id)
    row = named(cell, cell.id) | {"reference": cell.reference, "planned": len(runs)}
    row |= {key: cell.raw.get(key) for key in ("trainable_params", "total_params", "effective_bits")}
    row |= {state.replace(" ", "_"): sum(r.status == state for r in runs) for state in ALL_STATES}
    for name in CELL_METRICS:
        row |= summary(name, data.values(cell.id, name))
    row["wall_s_mean"] = mean(data.values(cell.id, "wall_s"))
    return row | {"knowledge_lost": lost_by(data.evidence(), cell.raw)}


def _degradation(data: StudyData, entries: Sequence[Entry]) -> Iterator[dict[str, Any]]:
    for entry in entries:
        if entry["question"] not in QUALITY:
            continue
        cell = data.by_cell.get(str(entry["arm"]))
        low, high = entry["interval"] or (None, None)
        row = {
            key: entry[key] for key in ("question", "arm", "reference", "metric", "n", "estimate", "level", "margin")
        }
        row |= {"low": low, "high": high, "verdict": entry["verdict"], "difference": entry["difference"]}
        row |= {"precision": cell.precision if cell else None, "rank": cell.rank if cell else None}
        if entry["question"] == "degradation":
            parts = {"change_percent": entry["estimate"], "change_low_percent": low, "change_high_percent": high}
            row |= {key: None if v is None else 100 * math.expm1(v) for key, v in parts.items()}
        yield row | {"confounds": ", ".join(entry["confounds"])}


def similarity_groups(data: StudyData) -> Iterator[tuple[CellData | None, str, list[Any], list[Any], bool]]:
    """Pairs by the arm's cell: (cell, its id, pairs, null pairs, whether the null is of the same rank and targets)."""
    pairs = (data.similarity or {}).get("pairs") or []
    groups: dict[str, list[Any]] = {}
    for pair in pairs:
        if pair.get("kind") == "precision":
            run = data.by_run.get(str(pair.get("b")))
            groups.setdefault(run.cell if run else str(pair.get("b")), []).append(pair)
    order = {cell.id: i for i, cell in enumerate(data.cells)}
    for cell_id in sorted(groups, key=lambda c: (order.get(c, len(order)), c)):
        first = groups[cell_id][0]
        null, same, _ = null_of(data.evidence(), first.get("rank"), first.get("targets"))
        yield data.by_cell.get(cell_id), cell_id, groups[cell_id], list(null), same


def _similarity(data: StudyData) -> Iterator[dict[str, Any]]:
    for cell, cell_id, pairs, null, same in similarity_groups(data):
        profile = layer_profile(pairs, null)
        for i, band in enumerate(profile):
            low, high = band.interval or (None, None)
            null_low, null_high = band.null_range or (None, None)
            row = named(cell, cell_id) | {"layer": band.layer, "place": _place(i, len(profile))}
            row |= {"n": band.n, "cosine_mean": band.mean}
            row |= {"cosine_low": low, "cosine_high": high, "null_mean": band.null_mean}
            row |= {"null_min": null_low, "null_max": null_high, "null_n": band.null_n, "null_same_cell": same}
            for key in ("l2", "relative_difference", "principal_angle_cosine"):
                row[f"{key}_mean"] = mean(_of_layer(pairs, band.layer, key))
            yield row


def _place(index: int, count: int) -> str | None:
    """The layers that published tables show: of 24 these are 0, 12 and 23."""
    return {0: "first", count - 1: "last", count // 2: "middle"}.get(index)


def _of_layer(pairs: Sequence[Any], layer: Any, key: str) -> list[float]:
    found = (number(part.get(key)) for pair in pairs for part in pair["layers"] if part["layer"] == layer)
    return [value for value in found if value is not None]


def _agreement(data: StudyData) -> Iterator[dict[str, Any]]:
    groups: dict[str, list[Any]] = {}
    for pair in (data.agreement or {}).get("pairs") or []:
        run = data.by_run.get(str(pair.get("run")))
        if run is not None:
            groups.setdefault(run.cell, []).append(pair)
    for cell in data.cells:
        pairs = groups.get(cell.id, [])
        values = [v for p in pairs if (v := number(p.get("token_match"))) is not None]
        if not values:
            continue
        exact = [v for p in pairs if (v := number(p.get("exact"))) is not None]
        found = summary("token_match", values)
        row = named(cell, cell.id) | {"reference": cell.reference, "n": found.pop("token_match_n"), **found}
        items = [int(v) for p in pairs if (v := number(p.get("items"))) is not None]
        likeness = [v for p in pairs if (v := number(p.get("embedding_cosine"))) is not None]
        row |= {"items": max(items, default=None), "exact_mean": mean(exact)}
        cosine = mean(likeness)
        row |= {"embedding_cosine_mean": cosine, "at_least_0_95": found["token_match_mean"] >= MATCH}
        yield row | {"embedding_cosine_at_least_0_95": None if cosine is None else cosine >= MATCH}


def _memory(data: StudyData) -> Iterator[dict[str, Any]]:
    probed: dict[str, list[Any]] = {}
    for probe in data.probes:
        probed.setdefault(str(probe.get("cell")), []).append(probe)
    for cell in data.cells:
        for probe in probed.get(cell.id, [None]):
            yield from _ledger(cell, probe)


def _ledger(cell: CellData, probe: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    config = cell.raw.get("config") or {}
    measured: Mapping[str, Any] = probe or {}
    planned, ledger = cell.raw.get("ledger") or {}, measured.get("ledger") or {}
    storage = storage_of(cell.raw, probe)
    checkpointing = measured.get("gradient_checkpointing", (config.get("train") or {}).get("gradient_checkpointing"))
    row = named(cell, cell.id) | {
        "storage": storage,
        "gradient_checkpointing": checkpointing,
        "device": measured.get("device"),
    }
    missing = measured.get("peak_reason") or _why_missing(probe)
    names = [name for name in COMPONENTS if name in ledger or name in planned]
    for name in [*names, *sorted((set(planned) | set(ledger)) - set(COMPONENTS))]:
        part = ledger.get(name) or {}
        bytes_measured = part.get("measured_bytes")
        reason = (
            None if bytes_measured is not None else part.get("measured_bytes_reason") or part.get("reason") or missing
        )
        predicted = part.get("predicted_bytes", planned.get(name))
        yield row | {
            "component": name,
            "predicted_bytes": predicted,
            "measured_bytes": bytes_measured,
            "reason": reason,
        }
    predicted_parts = {
        name: part["predicted_bytes"] for name, part in ledger.items() if part.get("predicted_bytes") is not None
    }
    predicted_parts = predicted_parts or {name: size for name, size in planned.items() if size is not None}
    both = {name for name in predicted_parts if number((ledger.get(name) or {}).get("measured_bytes")) is not None}
    compared = both or set(predicted_parts)  # like with like: a CPU measures only what lasts
    found = [
        v for name in compared or ledger if (v := number((ledger.get(name) or {}).get("measured_bytes"))) is not None
    ]
    total = int(sum(found)) if found else None
    known = sum(predicted_parts[name] for name in compared) if compared else cell.raw.get("predicted_bytes")
    reason = None if found else missing
    yield row | {"component": "sum_of_known", "predicted_bytes": known, "measured_bytes": total, "reason": reason}
    peak = measured.get("peak_allocated_bytes")
    reason = None if peak is not None else missing
    whole = len(predicted_parts) == len(COMPONENTS)  # a part of a peak is none
    predicted = measured.get("predicted_bytes", cell.raw.get("predicted_bytes")) if whole else None
    yield row | {"component": "peak", "predicted_bytes": predicted, "measured_bytes": peak, "reason": reason}


def _why_missing(probe: Mapping[str, Any] | None) -> str:
    if probe is None:
        return "not probed"
    status, reason = probe.get("status"), probe.get("reason")
    if status != "done":
        return f"probe {status}: {reason}" if reason else f"probe {status}"
    return str(reason or "not measured")


def _speed(data: StudyData) -> Iterator[dict[str, Any]]:
    probed: dict[str, list[Any]] = {}
    for probe in data.probes:
        probed.setdefault(str(probe.get("cell")), []).append(probe)
    for cell in data.cells:
        for probe in probed.get(cell.id, [{}]):
            times = probe.get("ms_per_step") or {}
            row = named(cell, cell.id)
            keys = ("gradient_checkpointing", "device", "batch_size", "length", "tokens_per_s")
            row |= {key: probe.get(key) for key in keys} | {"storage": storage_of(cell.raw, probe)}
            row |= {f"ms_per_step_{key}": number(times.get(key)) for key in ("median", "p10", "p90")}
            row["steps_timed"] = times.get("n")
            known = row["ms_per_step_median"] is not None
            row |= _relative(data, cell, probe) if known else {}
            yield row | {"reason": None if known else probe.get("ms_per_step_reason") or _why_missing(probe or None)}


def _relative(data: StudyData, cell: CellData, probe: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds a step, and the 16-bit reference's over the cell's: above 1 the cell is faster. Of like probes only."""
    seconds = probe["ms_per_step"]["median"] / 1000
    reference = data.by_cell.get(str(cell.reference))
    beside = probe_of(data.evidence(), reference.raw) if reference else None
    theirs = number(((beside or {}).get("ms_per_step") or {}).get("median"))
    alike = beside is not None and all(probe.get(k) == beside.get(k) for k in (*SAME, "gradient_checkpointing"))
    if reference is None or theirs is None or not alike:
        return {"s_per_step": seconds}
    return {"s_per_step": seconds, "reference": reference.id, "relative_speed": theirs / 1000 / seconds}


def _learning(data: StudyData, run: RunData) -> dict[str, Any]:
    row = named(data.by_cell.get(run.cell), run.cell) | {"run": run.id, "seed": run.seed, "status": run.status}
    row |= {name: run.metric(name) for name in COLUMNS["learning"] if name in RUN_METRICS}
    before, after = row["base_eval_loss"], row["eval_loss"]
    change = after - before if before is not None and after is not None else None
    return row | {"eval_loss_change": change, "chance": data.chance()}


def _latency(data: StudyData) -> Iterator[dict[str, Any]]:
    """Cells whose runs answered one prompt at a time: means over seeds of each run's own figures."""
    for cell in data.cells:
        values = {name: data.values(cell.id, name) for name in LATENCY}
        if not any(values.values()):
            continue
        done = data.of_cell(cell.id, done=True)
        devices = dict.fromkeys(str(d) for r in done if (d := (r.record.get("provenance") or {}).get("device")))
        row = named(cell, cell.id) | {"device": ", ".join(devices) or None}
        row["runs"] = max(len(found) for found in values.values())
        yield row | {name: mean(found) for name, found in values.items()}


def audits(data: StudyData) -> dict[str, Mapping[str, Any]]:
    """The audit of each data set: the plan's, or a record's where the plan has none."""
    found = {str(k): v for k, v in (data.plan.get("data") or {}).items() if isinstance(v, Mapping)}
    if not found:
        own = next((run.record["audit"] for run in data.runs if run.record.get("audit")), None)
        found = {"data": own} if own else {}
    return {key: value.get("audit") or value for key, value in sorted(found.items())}


def _audit(data: StudyData) -> Iterator[dict[str, Any]]:
    for key, audit in audits(data).items():
        for field, value in _fields(audit):
            yield {"data": key, "field": field, "value": value}


def _fields(audit: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for field, value in audit.items():
        if isinstance(value, Mapping):
            yield from ((f"{field}.{inner}", v) for inner, v in value.items() if not isinstance(v, Mapping | list))
        elif isinstance(value, list):
            yield from ((f"{field}.{i}", v) for i, v in enumerate(value) if not isinstance(v, Mapping | list))
        else:
            yield field, value
