"""What fits on a GPU, by predicted peaks (inspect's ledger). On a CPU nothing is held back: no GPU is in question.

A cohort of n runs needs ``fixed_bytes + n · bytes_per_member`` of its group's sizing, each process's CUDA context included. Of the
memory ``SHARE`` is planned with where there is a smaller way: batches differ, and what is freed is not always of use again.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from loracle.base.gpu import CONTEXT
from loracle.spec.factors import setting_words
from loracle.spec.study import Run, parse_bytes

SHARE = 0.92  # inspect takes the same share when it finds the largest cohort
FRACTION_VARIABLE = "LORACLE_MEMORY_FRACTION"  # forces shortage of memory, for tests


def amount(size: float | None) -> str:
    """``3.4 GB``, ``870 MB`` (powers of ten), or ``?``."""
    if size is None:
        return "?"
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def gpu_memory(run: Run, machine: Mapping[str, Any]) -> int | None:
    """Bytes of one GPU to plan with: ``run.gpu_memory``, or the card's own where that is less or nothing is asked."""
    known = [parse_bytes(run.gpu_memory)] if run.gpu_memory else []
    known += [int(machine["gpu_memory_bytes"])] if machine.get("gpu_memory_bytes") else []
    return min(known, default=None)


def limit(run: Run, machine: Mapping[str, Any]) -> int | None:
    """Bytes of one GPU that a job may need; None on a CPU, or where no memory is known."""
    on_gpu = str(machine.get("device", "")).split(":")[0] == "cuda"
    return gpu_memory(run, machine) if on_gpu else None


def budget(memory: int | None) -> int | None:
    """Bytes that several runs, or jobs, on one GPU may need together."""
    return None if memory is None else math.floor(memory * SHARE)


def fits(plan: Mapping[str, Any], cohort: Mapping[str, Any], memory: int | None) -> bool:
    """Whether a cohort is worth starting. A run alone may need the whole memory: there is no smaller way. What is not known
    is tried."""
    need = cohort_needs(plan, cohort)
    if memory is None or need is None:
        return True
    if len(cohort["runs"]) == 1:
        return need <= memory
    sizing = plan["sizing"].get(cohort["group"]) or {}
    found_to_fit = len(cohort["runs"]) <= sizing.get("size", 0) and (sizing.get("budget_bytes") or memory + 1) <= memory
    return found_to_fit or need <= math.floor(memory * SHARE)


def worker_memory(run: Run, machine: Mapping[str, Any]) -> int | None:
    """Bytes of a GPU that one worker may allocate; None on a CPU, or where the card's memory is not known."""
    card = machine.get("gpu_memory_bytes")
    return int(card * (memory_fraction(run, machine) or 1.0)) if card else None


def group_needs(sizing: Mapping[str, Any], members: int) -> int | None:
    """Predicted peak of ``members`` runs of a group side by side; None where its sizing does not say."""
    fixed, each = sizing.get("fixed_bytes"), sizing.get("bytes_per_member")
    return None if fixed is None or each is None else int(fixed + members * each)


def cohort_needs(plan: Mapping[str, Any], cohort: Mapping[str, Any]) -> int | None:
    """Predicted peak of one cohort of the plan, or of a part of one. A group's sizing is for its cell that needs most; of a run
    alone its own cell's is known, in quantized storage."""
    found = group_needs(plan["sizing"].get(cohort["group"]) or {}, len(cohort["runs"]))
    if len(cohort["runs"]) > 1:
        return found
    [run] = cohort["runs"]
    name = next(entry["cell"] for entry in plan["runs"] if entry["id"] == run)
    cell = next(entry for entry in plan["cells"] if entry["id"] == name)
    own = cell_needs(cell)
    return own if own is not None and (found is None or cell["config"]["storage"] != "dequantized") else found


def cell_needs(cell: Mapping[str, Any]) -> int | None:
    """Predicted peak of one run of a cell alone; None where it was not predicted for a GPU."""
    needs = (cell.get("fit") or {}).get("needs_bytes")
    return None if needs is None else int(needs)


def verdict(cell: Mapping[str, Any]) -> str:
    """``fits``, or ``needs ≥ 3.4 GB; would fit with …`` (empty where no GPU is in question)."""
    fit = cell.get("fit")
    if not fit:
        return ""
    if fit.get("fits") is None:
        return "not predicted"
    return "fits" if fit["fits"] else f"needs ≥ {amount(fit.get('needs_bytes'))}" + remedy(cell)


def remedy(cell: Mapping[str, Any]) -> str:
    """``; would fit with gradient checkpointing``; empty where nothing that is known would help."""
    change = (cell.get("fit") or {}).get("change") or {}
    words = [setting_words(path, value) for path, value in change.items()]
    return f"; would fit with {' and '.join(words)}" if words else ""


def memory_fraction(run: Run, machine: Mapping[str, Any]) -> float | None:
    """The share of the machine's memory that a worker may allocate, or None: what ``LORACLE_MEMORY_FRACTION`` says, else
    ``run.gpu_memory`` of a larger card, less what a CUDA context takes of it."""
    given = os.environ.get(FRACTION_VARIABLE)
    if given:
        return float(given)
    card = machine.get("gpu_memory_bytes")
    asked = parse_bytes(run.gpu_memory) if run.gpu_memory and card else None
    if asked is None or not card or asked >= card:
        return None
    return max(asked / 2, asked - CONTEXT) / card  # the fraction is of what torch may take


def stored_to_fit(record: Mapping[str, Any], groups: Mapping[str, Sequence[str]], memory: int | None) -> dict[str, Any]:
    """An inspect record in which no group trains in dequantized storage that does not fit even one run, where quantized storage
    does: same numbers, other bytes. ``groups``: the keys of each group's cells whose storage may be chosen."""
    cells, sizing = dict(record["cells"]), dict(record.get("sizing") or {})
    for key, members in groups.items():
        found = sizing.get(key) or {}
        one, needs = group_needs(found, 1), [cell_needs(cells[member]) for member in members]
        if memory is None or one is None or one <= memory or None in needs or found.get("storage") != "dequantized":
            continue
        most = max(need for need in needs if need is not None)
        if most > memory:
            continue
        packed = found.get("quantized") or {**found, "size": 1, "fixed_bytes": most, "bytes_per_member": 0}
        reason = ", ".join(["dequantized weights do not fit: quantized storage", *filter(None, [packed.get("reason")])])
        sizing[key] = {**packed, "storage": "quantized", "reason": reason}
        cells |= {member: {**cells[member], "storage": "quantized"} for member in members}
    return {**record, "cells": cells, "sizing": sizing}
