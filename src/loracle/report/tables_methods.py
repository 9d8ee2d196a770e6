"""methods.csv: what each method and precision costs and gives, and its paired difference from LoRA."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from loracle.report.columns import TENSORS, named, summary
from loracle.report.evidence import CellData, StudyData, number
from loracle.report.wording import mean
from loracle.verdict.methods import AgainstLora, against_lora, loss_change, score_change
from loracle.verdict.resources import probe_of

LEVEL = 0.95


def methods(data: StudyData) -> Iterator[dict[str, Any]]:
    """One row a cell."""
    for cell in data.cells:
        row = named(cell, cell.id) | _size(data, cell) | summary("eval_loss", data.values(cell.id, "eval_loss"))
        metric = data.task_metric()
        found = summary(metric, data.values(cell.id, metric)) if metric else {}
        row |= {"metric": metric} | {f"metric{k.removeprefix(str(metric))}": v for k, v in found.items()}
        yield row | _against(data, cell, metric) | _cost(data, cell)


def _size(data: StudyData, cell: CellData) -> dict[str, Any]:
    """Parameters as the runs recorded them, else as planned."""
    done = data.of_cell(cell.id, done=True)
    source: Mapping[str, Any] = done[0].record if done else cell.raw
    trained, total = number(source.get("trainable_params")), number(source.get("total_params"))
    share = 100 * trained / total if trained is not None and total else None
    bits = source.get("effective_bits") or cell.raw.get("effective_bits")
    return {
        "trainable_params": source.get("trainable_params"),
        "trainable_percent": share,
        "effective_bits": number(bits),
    }


def _against(data: StudyData, cell: CellData, metric: str | None) -> dict[str, Any]:
    compared = against_lora(data.evidence(), cell.raw)
    if compared is None:
        return {}
    row: dict[str, Any] = {
        "against": compared.reference["id"],
        "against_differs_in": ", ".join(compared.guard.confounds) or None,
        "difference_n": len(compared.pairing.seeds),
    }
    return row | _score(data, compared, metric) | _loss(data, compared)


def _score(data: StudyData, compared: AgainstLora, metric: str | None) -> dict[str, Any]:
    found = score_change(data.evidence(), compared, metric) if metric else None
    if found is None:
        return {}
    low, high = found.interval(LEVEL) or (None, None)
    return {"difference_vs_lora": found.estimate, "low": low, "high": high}


def _loss(data: StudyData, compared: AgainstLora) -> dict[str, Any]:
    found = loss_change(data.evidence(), compared)
    if found is None:
        return {}
    low, high = found.interval(LEVEL) or (None, None)
    parts = {"": found.estimate, "_low": low, "_high": high}
    return {f"eval_loss_change{part}_percent": None if v is None else 100 * math.expm1(v) for part, v in parts.items()}


def _cost(data: StudyData, cell: CellData) -> dict[str, Any]:
    """Time and bytes: means over finished runs; the step's time is the probe's."""
    done = data.of_cell(cell.id, done=True)
    tensors = {name: _mean_of([(r.record.get("tensor_bytes") or {}).get(name) for r in done]) for name in TENSORS}
    known = [v for v in tensors.values() if v is not None]
    peaks = [v for r in done if (v := number(r.record.get("peak_allocated_bytes"))) is not None]
    reasons = dict.fromkeys(str(x) for r in done if (x := r.record.get("peak_reason")))
    reloads = [bool(x["passed"]) for r in done if (x := r.record.get("reload") or {}).get("passed") is not None]
    steps = (probe_of(data.evidence(), cell.raw) or {}).get("ms_per_step") or {}
    return {
        **{f"{name}_bytes": v for name, v in tensors.items()},
        "tensor_bytes_sum": sum(known) if len(known) == len(tensors) else None,
        "peak_allocated_bytes": int(max(peaks)) if peaks else None,
        "peak_reason": None if peaks else ", ".join(reasons) or None,
        "wall_s_mean": mean(data.values(cell.id, "wall_s")),
        "ms_per_step": number(steps.get("median")),
        "reload_passed": all(reloads) if reloads else None,
    }


def _mean_of(values: list[Any]) -> int | None:
    known = [v for x in values if (v := number(x)) is not None]
    return round(sum(known) / len(known)) if known else None
