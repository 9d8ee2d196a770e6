"""The inspect job: the one look at models and data that a plan needs. Run by a worker; this side has no torch."""

from __future__ import annotations

from typing import Any

from loracle.base.errors import LoracleError, SpecError
from loracle.spec.study import Study
from loracle.store.files import SCHEMA
from loracle.store.layout import StudyFolder
from loracle.study.cells import PlannedCell, plain, planned_cells
from loracle.study.cohorts import group_key
from loracle.study.crew import Crew, Ended, Job
from loracle.study.looks import named_seeds
from loracle.study.plan import NULL_ORDER_STEP, null_count
from loracle.study.resources import Machine, concurrency

JOB = "inspect"


class WorkerDied(LoracleError):
    """A worker ended without a record: its log is all there is."""


def inspect(
    study: Study,
    layout: StudyFolder,
    crew: Crew,
    machine: Machine,
    *,
    weights: bool,
    measure: bool,
    ahead: bool = False,
) -> dict[str, Any]:
    """Run the inspect job in ``layout``'s folder and return its record. ``ahead``: training follows, so spare workers for it
    start meanwhile.

    Raises ``SpecError`` for what the user must mend, ``LoracleError`` for what went wrong otherwise.
    """
    cells = planned_cells(study)
    check_files(cells)
    groups = inspect_groups(study, cells)
    workers, threads = concurrency(study.run, machine, sum(group["members"] for group in groups))
    measure = measure and machine.device == "cpu"  # of a GPU the ledger tells what fits, and no weights need be on it
    payload = {
        "schema": SCHEMA,
        "kind": "inspect",
        "id": JOB,
        "device": study.run.device,
        "threads": threads,
        "cells": [{"key": planned.key, "config": plain(planned.cell)} for planned in cells],
        "groups": groups,
        "measure": measure,
        "workers": workers,
        "weights": weights,
        "gpu_memory": study.run.gpu_memory,
        **data_orders(study, cells),
    }
    job = Job(layout.job(JOB), payload, "looking at model and data", threads)
    coming = crew.places.kinds(threads, workers) if ahead else []
    record = accepted(job, crew.one(job, coming))
    _check(record, cells)
    return record


def data_orders(study: Study, cells: list[PlannedCell]) -> dict[str, list[int]]:
    """Whose data orders make the packed batches: the ``seeds`` of all looks and of the null's runs; ``order_offsets`` for cells that
    name an order of their own."""
    if study.run.packing != "auto":
        return {"seeds": [], "order_offsets": [0]}
    most = max(null_count(study, cells).values(), default=0)
    offsets = [NULL_ORDER_STEP * null for null in range(most + 1)]
    return {
        "seeds": [*named_seeds(study), *(study.seeds[0] + offset for offset in offsets[1:])],
        "order_offsets": offsets,
    }


def check_files(cells: list[PlannedCell]) -> None:
    """Refuse at once a data file that is not there: a plan goes without data that is on the hub, not without a wrong path."""
    from loracle.tasks.readers import check_file, file_of

    named = [text for planned in cells for text in (planned.cell.task.data, planned.cell.task.eval) if text]
    for text in dict.fromkeys(named):
        path = file_of(text)
        if path is not None:
            check_file(path)


def inspect_groups(study: Study, cells: list[PlannedCell]) -> list[dict[str, Any]]:
    """Cells that may share a cohort, with the number of their runs, the null's included."""
    groups: dict[str, dict[str, Any]] = {}
    null = null_count(study, cells)
    for planned in cells:
        group = groups.setdefault(group_key(planned), {"key": group_key(planned), "cells": [], "members": 0})
        group["cells"].append(planned.key)
        group["members"] += len(study.seeds) + null.get(planned.key, 0)
    return list(groups.values())


def accepted(job: Job, end: Ended) -> dict[str, Any]:
    """The record of a job that must succeed, or the error to show."""
    if end.status == "done":
        return end.record
    if not end.record:
        raise WorkerDied(f"{end.reason} (log: {job.folder / 'log.txt'})")
    if end.record.get("usage"):
        raise SpecError(end.reason)
    raise LoracleError(end.reason)


def _check(record: dict[str, Any], cells: list[PlannedCell]) -> None:
    missing = [planned.label for planned in cells if planned.key not in record.get("cells", {})]
    if missing:
        raise LoracleError(f"the inspect job says nothing about {missing[0]}")


def unreadable(record: dict[str, Any]) -> list[str]:
    """Why data sets could not be read; a plan may go on without them, a run may not."""
    return [
        str(entry.get("reason") or f"data set {key} could not be read")
        for key, entry in record.get("data", {}).items()
        if entry.get("status", "done") not in ("done", "ok", None)
    ]
