"""The allocation job: whose spectra and gradients a study needs, and whether they have been taken.

Gradients are of a base, its data and its targets: cells that share them share one measurement, taken on the first of them that is
unquantized (else on the first).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loracle.base.errors import StoreError
from loracle.spec.factors import cell_from_config
from loracle.spec.study import Study
from loracle.spec.types import is_quantized
from loracle.store.files import SCHEMA, digest, read_json
from loracle.store.layout import StudyFolder
from loracle.store.provenance import ENGINE
from loracle.study.cells import asks
from loracle.study.crew import Crew, Job
from loracle.study.states import run_record

ALLOCATION = "allocation"


def allocation(study: Study, layout: StudyFolder, plan: Mapping[str, Any], crew: Crew, threads: int) -> str | None:
    """Run the allocation job where the study asks for it and its inputs are not those of last time. Returns what went wrong."""
    if not asks(study, ALLOCATION):
        return None
    runs, settings = finished(layout, plan), settings_of(plan)
    if not settings:
        return f"{ALLOCATION}: no LoRA cell trains in a cohort, so there is no rank to allocate"
    wanted = [[g["sha256"], g["data"], g["seed"]] for g in settings]
    inputs = digest([ENGINE, [[run["run"], run["adapter_sha256"]] for run in runs], wanted])
    if _taken(layout) == inputs:
        return None
    payload = {
        "schema": SCHEMA,
        "kind": ALLOCATION,
        "id": ALLOCATION,
        "device": study.run.device,
        "threads": threads,
        "runs": runs,
        "gradients": settings,
        "inputs_sha256": inputs,
    }
    end = crew.one(Job(layout.job(ALLOCATION), payload, "measuring where rank is needed", threads))
    return None if end.status == "done" else f"{ALLOCATION}: {end.reason}"


def finished(layout: StudyFolder, plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """``{run, cell, seed, adapter_sha256}`` of each finished run that has a cohort LoRA's ΔW, in the plan's order."""
    loras = {cell["id"] for cell in plan["cells"] if in_cohorts(cell)}
    found = []
    for run in plan["runs"]:
        record = run_record(layout, run["id"]) if run["cell"] in loras and run["role"] == "run" else None
        if record and record.get("status") == "done":
            sha256 = record.get("adapter_sha256")
            found.append({"run": run["id"], "cell": run["cell"], "seed": run["seed"], "adapter_sha256": sha256})
    return found


def settings_of(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each distinct base, data and targets among the plan's LoRA cells: the cell that stands for it, and all that share it."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for cell in plan["cells"]:
        if in_cohorts(cell):
            base = cell["config"]["base"]
            known = base.get("fingerprint") or [base["model"], base.get("revision")]
            groups.setdefault(digest([known, cell["data"], cell["targets"]]), []).append(cell)
    seeds = [run["seed"] for run in plan["runs"] if run["role"] == "run"]
    found = []
    for cells in groups.values():
        first = next((cell for cell in cells if not is_quantized(cell["config"]["precision"])), cells[0])
        about = {"cell": first["id"], "cells": [cell["id"] for cell in cells], "sha256": first["sha256"]}
        found.append({**about, "config": first["config"], "data": first["data"], "seed": seeds[0]})
    return found


def in_cohorts(cell: Mapping[str, Any]) -> bool:
    """Whether the cell's runs are LoRA on one frozen base, in cohorts: only there is rank ours to give."""
    return not cell_from_config(cell["config"]).alone


def _taken(layout: StudyFolder) -> str | None:
    try:
        return str(read_json(layout.importance)["inputs_sha256"])
    except (StoreError, KeyError, TypeError):
        return None
