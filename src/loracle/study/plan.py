"""The plan: from a study and what the inspect job found to cells, runs and cohorts (docs/files.md, plan.json).

Pure: reads no file but the data it hashes, starts nothing. Once training has begun the plan's composition is law.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from loracle.spec.study import Study
from loracle.store.files import SCHEMA, digest
from loracle.store.identity import run_digest
from loracle.study import looks
from loracle.study.cells import PlannedCell, asks, described, planned_cells, references, study_digest, with_ranks
from loracle.study.cohorts import Load, chunks, cohort_id, divide, group_key, makespan, most
from loracle.study.fits import cohort_needs, gpu_memory, limit, stored_to_fit
from loracle.study.resources import Machine, as_seen, concurrency, lanes

NULL_ORDER_STEP = 1000  # a null run's order_seed is this far from its twin's


def make_plan(
    study: Study,
    record: Mapping[str, Any],
    machine: Machine,
    finished: Mapping[str, str] | None = None,
    *,
    elsewhere: bool = False,
) -> dict[str, Any]:
    """plan.json. ``record`` is the inspect job's; ``finished`` maps runs that need no training to their cohort. ``elsewhere``: a plan
    to look at, for a GPU that need not be here."""
    asked = planned_cells(study)
    cells = with_ranks(asked, record)
    memory = (gpu_memory if elsewhere else limit)(study.run, record.get("machine") or {})
    record = stored_to_fit(record, _choosable(cells), memory)
    entries = {planned.key: described(planned, record) for planned in cells}
    _relate(cells, entries)
    stages = looks.stages(study)
    runs, null_pairs = planned_runs(study, cells, entries, stages[0][1])
    cohorts, workers = planned_cohorts(study, cells, entries, runs, record, machine, finished or {})
    costs = [cohort["estimated_s"] for cohort in cohorts]
    plan: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "plan",
        "study": study.name,
        "cells": list(_by_id(entries.values()).values()),
        "runs": runs,
        "cohorts": cohorts,
        "null_pairs": null_pairs,
        "data": dict(record["data"]),
        "sizing": dict(record.get("sizing") or {}),
        "machine": _machine(machine, record),
        "workers": workers,
        "estimated_s": None if None in costs else makespan(costs, workers),
        "splits": {},
        "study_sha256": study_digest(study, asked),
    }
    if study.decide is not None:
        plan |= looks.described(study)
        plan["later"] = []
        for look, seeds in stages[1:]:
            added, _ = planned_runs(study, cells, entries, seeds, with_null=False)
            beside, _ = planned_cohorts(study, cells, entries, added, record, machine, finished or {})
            plan["later"].append({"look": look, "runs": added, "cohorts": beside})
    later = plan.get("later", [])
    whole = {**plan, "runs": [*runs, *(run for stage in later for run in stage["runs"])]}
    for cohort in [*cohorts, *(cohort for stage in later for cohort in stage["cohorts"])]:
        cohort["needs_bytes"] = cohort_needs(whole, cohort)
    plan["plan_id"] = digest([plan["study_sha256"], runs, [[c["runs"], c["threads"]] for c in cohorts]])[:12]
    return plan


def _machine(machine: Machine, record: Mapping[str, Any]) -> dict[str, Any]:
    """What the inspect job saw, with all GPUs: it was shown but its own."""
    facts = dict(record.get("machine") or {})
    return facts | ({"gpus": len(machine.gpus)} if machine.gpus and "gpus" in facts else {})


def _choosable(cells: Sequence[PlannedCell]) -> dict[str, list[str]]:
    """The cells of each group whose storage while training is not the study's but ours to choose."""
    found: dict[str, list[str]] = {}
    for planned in cells:
        if planned.cell.storage == "auto":
            found.setdefault(group_key(planned), []).append(planned.key)
    return found


def _by_id(entries: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Entries by id; of two cells that turn out to be one (steps and epochs of equal length) the first stays."""
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        found.setdefault(entry["id"], entry)
    return found


def _relate(cells: Sequence[PlannedCell], entries: dict[str, dict[str, Any]]) -> None:
    """Each quantized cell's reference, or the nearest 16-bit cell where it has no twin; and in what the two differ."""
    from loracle.verdict.confounds import differences
    from loracle.verdict.scope import nearest

    twins = references(cells)
    plain = [entries[cell.key] for cell in cells if not cell.quantized]
    for cell in cells:
        entry, twin = entries[cell.key], twins[cell.key]
        near = entries[twin] if twin else nearest(entry, plain) if cell.quantized else None
        entry["reference"] = entries[twin]["id"] if twin else None
        if near and not twin:
            entry["nearest"] = near["id"]
        entry["differences"] = list(differences(near["config"], entry["config"]).changed) if near else []


def planned_runs(
    study: Study,
    cells: Sequence[PlannedCell],
    entries: Mapping[str, dict[str, Any]],
    seeds: Sequence[int],
    with_null: bool = True,
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Runs (cell × seed), then the similarity null's, and the pairs that make up the null."""
    runs: dict[str, dict[str, Any]] = {}
    pairs: list[dict[str, str]] = []
    null = null_count(study, cells) if with_null else {}
    for planned in cells:
        for seed in seeds:
            run = _run(planned, entries[planned.key], seed)
            runs.setdefault(run["id"], run)
    for planned in cells:
        twin = _run(planned, entries[planned.key], seeds[0])
        for i in range(1, null.get(planned.key, 0) + 1):
            run = _run(planned, entries[planned.key], seeds[0], null=i)
            if runs.setdefault(run["id"], run) is run:
                pairs.append({"a": twin["id"], "b": run["id"]})
    return list(runs.values()), pairs


def null_count(study: Study, cells: Sequence[PlannedCell]) -> dict[str, int]:
    """Extra runs of each cell for the similarity null: only references of quantized cells have them, and only LoRA a ΔW."""
    if not asks(study, "similarity"):
        return {}
    lora = {planned.key for planned in cells if not planned.cell.alone}
    return {key: study.diagnose.null_runs for key in references(cells).values() if key in lora}


def _run(planned: PlannedCell, entry: Mapping[str, Any], seed: int, null: int = 0) -> dict[str, Any]:
    train = planned.cell.train
    init_seed = train.init_seed if train.init_seed is not None else seed
    order_seed = (train.order_seed if train.order_seed is not None else seed) + NULL_ORDER_STEP * null
    name = f"{entry['label']}-s{seed}" + (f"-null{null}" if null else "")
    return {
        "id": f"{name}-{run_digest(entry['sha256'], seed, init_seed, order_seed)[:6]}",
        "cell": entry["id"],
        "seed": seed,
        "init_seed": init_seed,
        "order_seed": order_seed,
        "role": "null" if null else "run",
        "cohort": None,
    }


def planned_cohorts(
    study: Study,
    cells: Sequence[PlannedCell],
    entries: Mapping[str, dict[str, Any]],
    runs: Sequence[dict[str, Any]],
    record: Mapping[str, Any],
    machine: Machine,
    finished: Mapping[str, str],
) -> tuple[list[dict[str, Any]], int]:
    """(cohorts, workers). Sets ``cohort`` of every run; finished runs keep the one that trained them."""
    machine = as_seen(machine, record.get("machine") or {})
    by_id: dict[str, PlannedCell] = {}
    for planned in cells:
        by_id.setdefault(entries[planned.key]["id"], planned)
    groups = _groups(by_id, runs, finished)
    leaders = {key: by_id[members[0]["cell"]] for key, members in groups.items()}
    loads = [
        _load(study, leaders[key], entries, members, _sizing(record, key), machine) for key, members in groups.items()
    ]
    at_once, _ = concurrency(study.run, machine, sum(load.count for load in loads))
    divided = divide(loads, lanes(at_once, machine)) if loads else []
    workers, threads = concurrency(study.run, machine, sum(len(sizes) for sizes in divided))
    cohorts: list[dict[str, Any]] = []
    for (key, members), sizes, load in zip(groups.items(), divided, loads, strict=True):
        config = entries[leaders[key].key]["config"]
        measured = _sizing(record, key).get("ms_per_step") is not None and config["train"]["steps"]
        for chunk in chunks(members, sizes):
            cohort = {
                "id": cohort_id(leaders[key], chunk),
                "runs": [run["id"] for run in chunk],
                "threads": threads,
                "steps": config["train"]["steps"],
                "estimated_s": round(load.seconds * len(chunk), 1) if measured else None,
                "group": key,
                "data": entries[leaders[key].key]["data"],
            }
            cohorts.append(cohort)
            for run in chunk:
                run["cohort"] = cohort["id"]
    return cohorts, workers


def _groups(
    by_id: Mapping[str, PlannedCell], runs: Sequence[dict[str, Any]], finished: Mapping[str, str]
) -> dict[str, list[dict[str, Any]]]:
    """Unfinished runs by group, sorted so that like targets and ranks sit together (less padding)."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if run["id"] in finished:
            run["cohort"] = finished[run["id"]]
        else:
            groups.setdefault(group_key(by_id[run["cell"]]), []).append(run)
    for members in groups.values():
        members.sort(key=lambda run: _width(by_id[run["cell"]]))
    return groups


def _width(planned: PlannedCell) -> tuple[str, int]:
    adapter = planned.cell.adapter
    return str(adapter.targets), adapter.rank


def _sizing(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    return (record.get("sizing") or {}).get(key) or {}


def _load(
    study: Study,
    planned: PlannedCell,
    entries: Mapping[str, dict[str, Any]],
    members: Sequence[Any],
    sizing: dict[str, Any],
    machine: Machine,
) -> Load:
    size = most(planned, study.run.cohort, sizing, machine.device)
    steps = entries[planned.key]["config"]["train"]["steps"] or 100
    per_step = (sizing.get("ms_per_step") or 100.0 * size) / max(1, sizing.get("size") or size)
    return Load(len(members), size, per_step * steps / 1000, fixed=isinstance(study.run.cohort, int))
