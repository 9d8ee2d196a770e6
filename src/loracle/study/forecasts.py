"""Forecasts of a finished study's cells for another memory budget: what ``loracle plan --gpu-memory`` would say, kept.

Made by a worker, once for each budget, and kept in the study folder (``jobs/forecast-BYTES/record.json``), so that a report
within a budget can be written again from the folder alone. What could not be forecast is recorded with its reason, and
tried again the next time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loracle.base.errors import LoracleError, StoreError, one_line
from loracle.spec.load import load_study
from loracle.spec.study import parse_bytes
from loracle.store.files import SCHEMA, read_json, write_json
from loracle.store.layout import StudyFolder
from loracle.study.launch import Launcher
from loracle.study.preview import preview_plan
from loracle.study.progress import Progress


def forecast(
    layout: StudyFolder, gpu_memory: str, launcher: Launcher | None = None, progress: Progress | None = None
) -> None:
    """Have the forecasts for ``gpu_memory`` (``24GB``) in the study folder; no worker starts where they are known."""
    plan, size = read_json(layout.plan), parse_bytes(gpu_memory)
    if _known(layout, plan, size):
        return
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "forecast",
        "id": layout.forecast(size).parent.name,
        "status": "done",
        "reason": None,
        "budget_bytes": size,
        "study_sha256": plan.get("study_sha256"),
        "cells": {
            cell["id"]: cell["fit"] for cell in plan["cells"] if (cell.get("fit") or {}).get("budget_bytes") == size
        },
    }
    if len(record["cells"]) < len(plan["cells"]):
        try:
            study = load_study(layout.study_yaml, [f"run.gpu_memory={gpu_memory}"])
            ahead = preview_plan(study, launcher=launcher, progress=progress)
            record["cells"] = _by_id(plan, ahead)
        except LoracleError as error:
            record |= {"status": "failed", "reason": one_line(error)}
    write_json(layout.forecast(size), record)


def _by_id(plan: Mapping[str, Any], ahead: Mapping[str, Any]) -> dict[str, Any]:
    """``{cell id: fit}``. A cell's hash may be another by now (weights that are not here are not read), its label is not."""
    labels = [cell["label"] for cell in ahead["cells"]]
    fits = {cell["label"]: cell["fit"] for cell in ahead["cells"] if labels.count(cell["label"]) == 1}
    own = [cell.get("label") for cell in plan["cells"]]
    return {
        cell["id"]: fits[cell["label"]]
        for cell in plan["cells"]
        if own.count(cell.get("label")) == 1 and cell.get("label") in fits
    }


def _known(layout: StudyFolder, plan: Mapping[str, Any], size: int) -> bool:
    """Whether the folder has forecasts of this plan for this budget."""
    try:
        record = read_json(layout.forecast(size))
    except StoreError:
        return False
    return record.get("status") == "done" and record.get("study_sha256") == plan.get("study_sha256")
