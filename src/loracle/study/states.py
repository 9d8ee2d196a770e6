"""Run states: what a record says, when it is final, and the records that the study writes for runs that cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loracle.base.errors import EXIT_DONE, EXIT_FAILURE, EXIT_UNFINISHED, StoreError
from loracle.store.files import SCHEMA, read_json, write_json
from loracle.store.layout import StudyFolder
from loracle.study.fits import amount, cell_needs, remedy

ALWAYS_FINAL = frozenset({"done", "diverged", "oom"})
STATES = ("done", "diverged", "oom", "failed", "interrupted")


@dataclass(frozen=True)
class State:
    """One of ``STATES`` and why."""

    status: str
    reason: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a study ended: the state of every planned run, what went wrong beside them, what was written, and with
    ``--decide`` how its looks stand."""

    folder: Path
    states: dict[str, State]
    problems: list[str] = field(default_factory=list)
    report: Path | None = None
    looked: str | None = None

    @property
    def exit_code(self) -> int:
        """3 when some run is not done, 1 when something after training failed, else 0."""
        if any(state.status != "done" for state in self.states.values()):
            return EXIT_UNFINISHED
        return EXIT_FAILURE if self.problems else EXIT_DONE

    def summary(self) -> str:
        """``28 runs: 27 done, 1 diverged``."""
        counts = Counter(state.status for state in self.states.values())
        named = [f"{counts[status]} {status}" for status in STATES if counts[status]]
        return f"{len(self.states)} runs: {', '.join(named)}"

    def troubles(self) -> list[str]:
        """A line for each run that is not done, and one for each thing that went wrong beside them."""
        unlike = {run: state for run, state in self.states.items() if state.status != "done"}
        lines = [
            f"{run}: {state.status}" + (f": {state.reason}" if state.reason else "") for run, state in unlike.items()
        ]
        return [*lines, *(f"warning: {problem}" for problem in self.problems)]


def run_record(layout: StudyFolder, run: str) -> dict[str, Any] | None:
    """The run's record; None where there is none, or a damaged one (it is then trained again)."""
    try:
        record = read_json(layout.run_record(run))
    except StoreError:
        return None
    return record if isinstance(record, dict) and record.get("id") == run else None


def is_final(layout: StudyFolder, record: Mapping[str, Any] | None) -> bool:
    """Whether training this run again would only give the same: done with its adapter there, diverged, oom, or a
    failed reload. A run whose worker crashed is not final: the next ``loracle run`` tries again. Nor is one that was never
    started for want of memory: on another GPU it may fit."""
    if record is None or record.get("started") is False:
        return False
    if record.get("status") == "done":
        folder = layout.run(record["id"]) / "adapter"
        return any((folder / name).is_file() for name in ("adapter_model.safetensors", "model.safetensors"))
    if record.get("status") == "failed":
        return (record.get("reload") or {}).get("passed") is False
    return record.get("status") in ALWAYS_FINAL


def finished_runs(layout: StudyFolder) -> dict[str, str]:
    """Runs in the folder that need no training, with the cohort that trained them."""
    folder = layout.root / "runs"
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    records = {name: run_record(layout, name) for name in names}
    return {name: str(record.get("cohort")) for name, record in records.items() if record and is_final(layout, record)}


def states(layout: StudyFolder, plan: Mapping[str, Any], without: str = "interrupted") -> dict[str, State]:
    """The named state of every planned run; ``without`` for those with no record."""
    found: dict[str, State] = {}
    for run in plan["runs"]:
        record = run_record(layout, run["id"])
        status = record["status"] if record and record.get("status") in STATES else without
        found[run["id"]] = State(status, str((record or {}).get("reason") or ""))
    return found


def write_end(
    layout: StudyFolder,
    plan: Mapping[str, Any],
    cohort: str,
    run: Mapping[str, Any],
    end: State,
    started: bool = True,
) -> None:
    """A record for a run whose worker could not write one. A final record is never overwritten."""
    if is_final(layout, run_record(layout, run["id"])):
        return
    cell = next(cell for cell in plan["cells"] if cell["id"] == run["cell"])
    unmeasured = ("effective_bits", "eval_loss", "train_loss", "steps", "tokens_seen", "wall_s", "adapter_sha256")
    write_json(
        layout.run_record(run["id"]),
        {
            "schema": SCHEMA,
            "kind": "run",
            "id": run["id"],
            "cell": run["cell"],
            "cohort": cohort,
            "seed": run["seed"],
            "role": run["role"],
            "status": end.status,
            "reason": end.reason,
            "started": started,
            "config": member_config(cell, run),
            "trainable_params": cell["trainable_params"],
            "total_params": cell["total_params"],
            **dict.fromkeys(unmeasured),
            "metrics": {},
            "reload": None,
            "audit": plan["data"].get(cell["data"]),
            "provenance": {},
        },
    )


def member_config(cell: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a run's record: its cell's, and its seeds."""
    return {**cell["config"], "init_seed": run["init_seed"], "order_seed": run["order_seed"]}


def out_of_memory(
    plan: Mapping[str, Any], run: Mapping[str, Any], needs_bytes: int | None = None, had_bytes: int | None = None
) -> State:
    """``oom`` with what is known of the need: it is at least ``had_bytes``, the memory in which the run failed by itself; else
    ``needs_bytes``, or the cell's own prediction."""
    cell = next(cell for cell in plan["cells"] if cell["id"] == run["cell"])
    need = needs_bytes or cell_needs(cell) or cell.get("predicted_bytes")
    if had_bytes is not None and had_bytes > (need or 0):
        return State("oom", f"needs ≥ {amount(had_bytes)} (ran out of memory)" + remedy(cell))
    if not need:
        return State("oom", "does not fit; the need is not known")
    return State("oom", f"needs ≥ {amount(need)} (predicted)" + remedy(cell))
