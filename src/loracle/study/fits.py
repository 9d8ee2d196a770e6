"""What fits on a GPU, by predicted peaks (inspect's ledger). On a CPU nothing is held back: no GPU is in question.

A cohort of n runs needs ``fixed_bytes + n · bytes_per_member`` of its group's sizing. ``MARGIN`` of the memory is never planned
with: the CUDA context, fragmentation, and what the prediction does not know.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from loracle.spec.study import Run, parse_bytes

MARGIN = 0.1
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


def budget(run: Run, machine: Mapping[str, Any]) -> int | None:
    """Bytes of one GPU that the jobs on it may need together; None on a CPU, or where no memory is known."""
    memory = gpu_memory(run, machine)
    if memory is None or str(machine.get("device", "")).split(":")[0] != "cuda":
        return None
    return math.floor(memory * (1 - MARGIN))


def worker_memory(run: Run, machine: Mapping[str, Any]) -> int | None:
    """Bytes of a GPU that one worker may allocate; None on a CPU, or where the card's memory is not known."""
    card = machine.get("gpu_memory_bytes")
    return int(card * (memory_fraction(run, machine) or 1.0)) if card else None


def group_needs(sizing: Mapping[str, Any], members: int) -> int | None:
    """Predicted peak of ``members`` runs of a group side by side; None where its sizing does not say."""
    fixed, each = sizing.get("fixed_bytes"), sizing.get("bytes_per_member")
    return None if fixed is None or each is None else int(fixed + members * each)


def cohort_needs(plan: Mapping[str, Any], cohort: Mapping[str, Any]) -> int | None:
    """Predicted peak of one cohort of the plan, or of a part of one."""
    found = group_needs(plan["sizing"].get(cohort["group"]) or {}, len(cohort["runs"]))
    if found is None and len(cohort["runs"]) == 1:
        [run] = cohort["runs"]
        cell = next(run_["cell"] for run_ in plan["runs"] if run_["id"] == run)
        return cell_needs(next(entry for entry in plan["cells"] if entry["id"] == cell))
    return found


def cell_needs(cell: Mapping[str, Any]) -> int | None:
    """Predicted peak of one run of a cell alone; None where it was not predicted for a GPU."""
    needs = (cell.get("fit") or {}).get("needs_bytes")
    return None if needs is None else int(needs)


def verdict(cell: Mapping[str, Any]) -> str:
    """``fits``, or ``needs ≥ 3.4 GB; would fit with …`` (empty where no GPU is in question)."""
    fit = cell.get("fit")
    if not fit:
        return ""
    if fit.get("fits"):
        return "fits"
    return f"needs ≥ {amount(fit.get('needs_bytes'))}" + remedy(cell)


def remedy(cell: Mapping[str, Any]) -> str:
    """``; would fit with gradient checkpointing``; empty where nothing that is known would help."""
    change = (cell.get("fit") or {}).get("change")
    return f"; would fit with {change}" if change else ""


def memory_fraction(run: Run, machine: Mapping[str, Any]) -> float | None:
    """The share of the machine's memory that a worker may use, or None: what ``LORACLE_MEMORY_FRACTION`` says, else
    ``run.gpu_memory`` of a larger card."""
    given = os.environ.get(FRACTION_VARIABLE)
    if given:
        return float(given)
    card = machine.get("gpu_memory_bytes")
    asked = parse_bytes(run.gpu_memory) if run.gpu_memory and card else None
    return asked / card if asked is not None and card and asked < card else None
