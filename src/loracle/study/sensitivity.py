"""The sensitivity job: which sweeps a study needs, and whether they have been made.

A sweep is of a base and a codec, whatever is trained on them: cells that share both share it. On the package's prose it is made
before training; on the study's own evaluation rows, before and after training, once there is an adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loracle.base.errors import StoreError
from loracle.spec.study import FOUR_BIT, INTEGER, UNQUANTIZED, Study
from loracle.store.files import SCHEMA, digest, read_json
from loracle.store.layout import StudyFolder
from loracle.store.provenance import ENGINE
from loracle.study.cells import PlannedCell, asks, base_inputs, planned_cells
from loracle.study.crew import Crew, Job
from loracle.study.states import run_record

SENSITIVITY = "sensitivity"
PLAIN, EVALUATION = "plain text", "evaluation rows"

Sweep = dict[str, Any]


def sensitivity(study: Study, layout: StudyFolder, plan: Mapping[str, Any], crew: Crew, threads: int) -> str | None:
    """Run the sensitivity job where the study asks for it and a sweep is missing. Returns what went wrong, if anything."""
    sweeps = with_trained(planned_cells(study), plan, layout) if asks(study, SENSITIVITY) else []
    if not sweeps or all_there(layout, sweeps):
        return None
    return run_job(study, layout, crew, threads, sweeps, [])


def run_job(
    study: Study, layout: StudyFolder, crew: Crew, threads: int, sweeps: list[Sweep], mixes: list[dict[str, Any]]
) -> str | None:
    """Make what is missing of ``sweeps`` and ``mixes``. Returns what went wrong, if anything."""
    payload = {
        "schema": SCHEMA,
        "kind": SENSITIVITY,
        "id": SENSITIVITY,
        "device": study.run.device,
        "threads": threads,
        "sweeps": sweeps,
        "mixes": mixes,
    }
    end = crew.one(Job(layout.job(SENSITIVITY), payload, "quantizing one matrix at a time", threads))
    return None if end.status == "done" else f"{SENSITIVITY}: {end.reason}"


def sweeps_of(cells: Sequence[PlannedCell]) -> list[Sweep]:
    """Each pair of a base and a quantized codec among the cells once, in their order, on the package's prose."""
    found: dict[str, Sweep] = {}
    for planned in cells:
        for name in _codecs(planned):
            sweep = sweep_of(planned, name)
            found.setdefault(sweep["inputs_sha256"], sweep)
    return list(found.values())


def sweep_of(planned: PlannedCell, codec: str) -> Sweep:
    """The sweep of a cell's base under ``codec``, before training, on the package's prose."""
    cell = planned.cell
    settings = {
        "codec": codec,
        "double_quant": bool(cell.double_quant) if codec in FOUR_BIT else None,
        "block_size": (cell.block_size or 64) if codec in FOUR_BIT | INTEGER else None,
    }
    return {
        "base": cell.base.model.rstrip("/").rpartition("/")[2],
        "model": cell.base.model,
        "revision": cell.base.revision,
        **settings,
        "text": PLAIN,
        "when": "before",
        "run": None,
        "listed": cell.task.format != "text",
        "inputs_sha256": digest([ENGINE, base_inputs(cell), cell.base.revision, settings]),
    }


def with_trained(cells: Sequence[PlannedCell], plan: Mapping[str, Any], layout: StudyFolder) -> list[Sweep]:
    """All sweeps: on the prose, then on each evaluation set, of the plain base and with the adapter of a 16-bit run."""
    found: dict[str, Sweep] = {sweep["inputs_sha256"]: sweep for sweep in sweeps_of(cells)}
    entries = {cell["label"]: cell for cell in plan["cells"]}
    for planned in cells:
        entry = entries.get(planned.label)
        if entry is None or planned.cell.task.classifies:
            continue
        data = plan["data"].get(entry["data"]) or {}
        for name in _codecs(planned) if data.get("eval_file") else ():
            for sweep in _on_rows(sweep_of(planned, name), entry, data, plan, layout):
                found.setdefault(sweep["inputs_sha256"], sweep)
    return _one_adapter(list(found.values()))


def _on_rows(
    plain: Sweep, entry: Mapping[str, Any], data: Mapping[str, Any], plan: Mapping[str, Any], layout: StudyFolder
) -> list[Sweep]:
    """Before training, and after it where the cell's 16-bit twin has a finished LoRA run."""
    rows = {**plain, "text": EVALUATION, "eval_file": data["eval_file"], "listed": not plain["listed"]}
    inputs = [plain["inputs_sha256"], data.get("fingerprint")]
    sweeps = [{**rows, "inputs_sha256": digest(inputs)}]
    for run in plan["runs"]:
        record = run_record(layout, run["id"]) if run["cell"] == entry["reference"] and run["role"] == "run" else None
        if record and record.get("status") == "done" and entry["method"] == "lora":
            key = digest([*inputs, record.get("adapter_sha256")])
            sweeps.append({**rows, "when": "after", "run": run["id"], "listed": False, "inputs_sha256": key})
            break
    return sweeps


def _one_adapter(sweeps: list[Sweep]) -> list[Sweep]:
    """After training one run stands for its base, codec and rows: the first that the plan has."""
    seen: set[str] = set()
    kept = []
    for sweep in sweeps:
        key = digest([sweep[k] for k in ("model", "revision", "codec", "double_quant", "block_size", "when", "text")])
        if sweep["when"] == "before" or key not in seen:
            kept.append(sweep)
        seen.add(key)
    return kept


def _codecs(planned: PlannedCell) -> list[str]:
    """The quantized precisions of a cell, its default first."""
    names = [planned.cell.default_precision, *sorted(planned.cell.precision_names)]
    return [name for name in dict.fromkeys(names) if name not in UNQUANTIZED]


def all_there(layout: StudyFolder, sweeps: list[Sweep]) -> bool:
    """Whether the files hold just these sweeps."""
    try:
        made = read_json(layout.sensitivity_sweeps)["sweeps"]
        same = [one["inputs_sha256"] for one in made] == [one["inputs_sha256"] for one in sweeps]
        return same and layout.sensitivity.is_file()
    except (StoreError, KeyError, TypeError):
        return False
