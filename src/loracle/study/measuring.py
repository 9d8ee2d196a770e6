"""What is measured after training: diagnose (similarity, agreement) and one probe a cell, alone on its GPU or the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loracle.base.errors import StoreError
from loracle.spec.study import Study
from loracle.spec.types import is_quantized
from loracle.store.files import SCHEMA, digest, read_json, write_json
from loracle.store.layout import StudyFolder
from loracle.study.cells import asks
from loracle.study.crew import Crew, Ended, Job
from loracle.study.fits import amount, cell_needs, limit, memory_fraction, remedy
from loracle.study.resources import Machine, concurrency, lanes
from loracle.study.spares import Kind
from loracle.study.states import run_record

PROBE_STEPS = 20
PROBE_WARMUP = 5
DIAGNOSE = "diagnose"


def diagnose(study: Study, layout: StudyFolder, plan: Mapping[str, Any], crew: Crew, threads: int) -> str | None:
    """Run the diagnose job unless its inputs are those of last time. Returns what went wrong, if anything."""
    done = {run["id"]: record for run in plan["runs"] if (record := _done(layout, run["id"]))}
    pairs, agreement = diagnose_pairs(plan, done)
    pairs = pairs if asks(study, "similarity") else []
    if not pairs and not agreement:
        return None
    used = sorted({pair[end] for pair in [*pairs, *agreement] for end in ("a", "b", "run", "twin") if end in pair})
    encoder = study.diagnose.sentence_encoder
    along = ["along training"] if keeps_adapters(study) else []
    inputs = digest([pairs, agreement, encoder, {run: done[run].get("adapter_sha256") for run in used}, *along])
    folder = layout.job(DIAGNOSE)
    if _unchanged(layout, inputs):
        return None
    payload = {
        "schema": SCHEMA,
        "kind": "diagnose",
        "id": DIAGNOSE,
        "device": study.run.device,
        "threads": threads,
        "pairs": pairs,
        "agreement": agreement,
        "sentence_encoder": encoder,
        "along": bool(along),
        "inputs_sha256": inputs,
    }
    end = crew.one(Job(folder, payload, "comparing adapters", threads))
    return None if end.status == "done" else f"diagnose: {end.reason}"


def keeps_adapters(study: Study) -> bool:
    """Whether runs keep their adapters at evaluation points, to be compared along training."""
    return study.diagnose.along_training and asks(study, "similarity")


def comparable(plan: Mapping[str, Any]) -> bool:
    """Whether a diagnose job may follow at all: some cell has a 16-bit twin, or some run another data order's."""
    return bool(plan["null_pairs"]) or any(cell["reference"] for cell in plan["cells"])


def diagnose_pairs(
    plan: Mapping[str, Any], done: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """(similarity pairs, agreement pairs) among the runs that are done; ``a`` and ``twin`` are the reference's."""
    cells = {cell["id"]: cell for cell in plan["cells"]}
    runs = {run["id"]: run for run in plan["runs"]}
    by_cell = {(run["cell"], run["seed"]): run["id"] for run in plan["runs"] if run["role"] == "run"}
    twins = [
        (by_cell.get((cells[run["cell"]]["reference"], run["seed"])), run["id"])
        for run in plan["runs"]
        if run["role"] == "run" and cells[run["cell"]]["reference"]
    ]
    both = [(a, b) for a, b in twins if a in done and b in done]
    null = [(pair["a"], pair["b"]) for pair in plan["null_pairs"] if pair["a"] in done and pair["b"] in done]

    def pair(a: str, b: str, kind: str) -> dict[str, Any]:
        cell = cells[runs[b]["cell"]]
        return {"a": a, "b": b, "kind": kind, "rank": cell["rank"], "targets": cell["targets"], "seed": runs[b]["seed"]}

    def config(run: str) -> Mapping[str, Any]:
        return cells[runs[run]["cell"]]["config"]

    pairs = [pair(str(a), b, "precision") for a, b in both if config(b)["adapter"]["method"] == "lora"]
    pairs += [pair(a, b, "null") for a, b in null]
    agreement = [{"run": b, "twin": str(a)} for a, b in both if generates(config(b)["task"])]
    return pairs, agreement


def generates(task: Mapping[str, Any]) -> bool:
    """Whether runs of a task have generated answers to compare."""
    return bool(task["generate"]) and task.get("type") != "classification"


def probed(study: Study) -> bool:
    """Whether the study asks what its cells take, in memory or time."""
    return asks(study, "memory", "speed")


def probes(
    study: Study,
    layout: StudyFolder,
    plan: Mapping[str, Any],
    crew: Crew,
    threads: int,
    machine: Machine,
    following: Sequence[Kind] = (),
) -> None:
    """Measure memory and speed of each cell that has not been: one at a time with nothing else on its GPU, all GPUs side by
    side; on a CPU with nothing else running. What cannot fit its GPU is not tried."""
    if not probed(study):
        return
    memory, jobs = limit(study.run, plan["machine"]), []
    for cell in plan["cells"]:
        if _probe_status(layout, cell["id"]) in ("done", "oom"):
            continue
        folder, need = layout.probe(cell["id"]), cell_needs(cell)
        if memory is not None and need is not None and need > memory:
            reason = f"needs ≥ {amount(need)} (predicted)" + remedy(cell)
            write_json(folder / "record.json", {**_unprobed(cell, "oom", reason), "started": False})
            continue
        payload = probe_job(study, cell, threads, memory_fraction(study.run, plan["machine"]))
        jobs.append(Job(folder, payload, f"probe {cell['id']}", threads, alone=True, about=dict(cell)))

    def ended(job: Job, end: Ended) -> list[Job]:
        if not end.record:
            status = "oom" if end.memory_killed else "failed"
            write_json(job.folder / "record.json", _unprobed(job.about, status, end.reason))
        return []

    workers, _ = concurrency(study.run, machine, len(jobs))
    crew.run(jobs, lanes(workers, machine) if machine.device != "cpu" else 1, ended, following)


def probe_job(
    study: Study, cell: Mapping[str, Any], threads: int, memory_fraction: float | None = None
) -> dict[str, Any]:
    """The probe of one cell, in true quantized storage whatever it was trained in (docs/jobs.md)."""
    storage = "quantized" if is_quantized(cell["config"]["precision"]) else cell["config"]["storage"]
    return {
        "schema": SCHEMA,
        "kind": "probe",
        "id": cell["id"],
        "device": study.run.device,
        "threads": threads,
        "cell": cell["id"],
        "config": {**cell["config"], "storage": storage},
        "data": cell["data"],
        "steps": PROBE_STEPS,
        "warmup": PROBE_WARMUP,
        "memory_fraction": memory_fraction,
    }


def _unprobed(cell: Mapping[str, Any], status: str, reason: str) -> dict[str, Any]:
    figures = ("ms_per_step", "tokens_per_s", "peak_allocated_bytes", "peak_reserved_bytes", "effective_bits", "device")
    ledger = {
        part: {"predicted_bytes": size, "measured_bytes": None} for part, size in (cell.get("ledger") or {}).items()
    }
    return {
        "schema": SCHEMA,
        "kind": "probe",
        "id": cell["id"],
        "cell": cell["id"],
        "status": status,
        "reason": reason,
        **dict.fromkeys(figures),
        "ledger": ledger,
    }


def _probe_status(layout: StudyFolder, cell: str) -> str | None:
    """None where there is no record, or one of a probe that was never started."""
    try:
        record = read_json(layout.probe(cell) / "record.json")
        return None if record.get("started") is False else str(record.get("status"))
    except StoreError:
        return None


def _done(layout: StudyFolder, run: str) -> dict[str, Any] | None:
    record = run_record(layout, run)
    return record if record and record.get("status") == "done" else None


def _unchanged(layout: StudyFolder, inputs: str) -> bool:
    """Whether the last diagnose job was over the same adapters and its results are there."""
    folder = layout.job(DIAGNOSE)
    try:
        same = read_json(folder / "job.json").get("inputs_sha256") == inputs
        written = layout.similarity.is_file() or layout.agreement.is_file()
        return same and written and read_json(folder / "record.json").get("status") == "done"
    except StoreError:
        return False
