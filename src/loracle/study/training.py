"""Training: cohorts to jobs, and what to do when one ends: go on, try again, split it, or give its runs an end."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from loracle.spec.study import Study
from loracle.store.files import SCHEMA, write_json
from loracle.store.layout import StudyFolder
from loracle.study.cohorts import halves, leaves, part_of
from loracle.study.crew import Crew, Ended, Job
from loracle.study.fits import amount, cohort_needs, fits, limit, memory_fraction, worker_memory
from loracle.study.measuring import keeps_adapters
from loracle.study.spares import Kind
from loracle.study.states import State, is_final, member_config, out_of_memory, run_record, write_end


class Training:
    """Brings every planned run to a final record, or to one that says why not."""

    def __init__(self, study: Study, layout: StudyFolder, plan: dict[str, Any], crew: Crew) -> None:
        self.study, self.layout, self.plan, self.crew = study, layout, plan, crew
        self.runs = {run["id"]: run for run in plan["runs"]}
        self.cells = {cell["id"]: cell for cell in plan["cells"]}
        self.memory = limit(study.run, plan["machine"])

    def run(self, workers: int, following: Sequence[Kind] = ()) -> None:
        """Train what is not finished. A cohort is trained whole if any member is unfinished: its bits depend on it.
        ``following``: the kinds of jobs that come after training."""
        open_ = [cohort for cohort in leaves(self.plan) if not self.finished(cohort)]
        done = len(self.runs) - len({run for cohort in open_ for run in cohort["runs"]})
        self.crew.progress.open(len(self.runs), done)
        fitting = [part for cohort in open_ for part in self.fitting(cohort)]
        fitting.sort(key=lambda cohort: -(cohort["estimated_s"] or len(cohort["runs"])))
        self.crew.run([self.job(cohort) for cohort in fitting], workers, self.ended, following)

    def fitting(self, cohort: dict[str, Any]) -> list[dict[str, Any]]:
        """The cohort, or what it is split into until all parts fit a GPU by their predicted peaks. A single run that does not
        is never started: it has its end, and the others go on."""
        if fits(self.plan, cohort, self.memory):
            return [cohort]
        need = cohort_needs(self.plan, cohort)
        if len(cohort["runs"]) == 1:
            self.close(cohort, out_of_memory(self.plan, self.runs[cohort["runs"][0]], need), started=False)
            return []
        why = f"needs {amount(need)} of {amount(self.memory)}"
        return [leaf for part in self.split(cohort, why) for leaf in self.fitting(part)]

    def finished(self, cohort: Mapping[str, Any]) -> bool:
        return all(is_final(self.layout, run_record(self.layout, run)) for run in cohort["runs"])

    def job(self, cohort: dict[str, Any]) -> Job:
        """The train job of one cohort (docs/jobs.md)."""
        members = [self.member(self.runs[run]) for run in cohort["runs"]]
        data = cohort["data"]
        payload = {
            "schema": SCHEMA,
            "kind": "train",
            "id": cohort["id"],
            "device": self.study.run.device,
            "threads": cohort["threads"],
            "members": members,
            "data": data,
            "eval_file": (self.plan["data"].get(data) or {}).get("eval_file"),
            "checkpoint_seconds": self.study.run.checkpoint_seconds,
            "keep_adapters": keeps_adapters(self.study),
            "reload_items": self.study.run.reload_items,
            "compile": self.study.run.compile,
            "packing": self.study.run.packing,
            "study": self.study.name,
            "track": list(self.study.run.track),
            "memory_fraction": memory_fraction(self.study.run, self.plan["machine"]),
        }
        needs = cohort_needs(self.plan, cohort)
        return Job(
            self.layout.cohort(cohort["id"]), payload, cohort["id"], cohort["threads"], needs_bytes=needs, about=cohort
        )

    def member(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """One member of a train job."""
        cell = self.cells[run["cell"]]
        named = {key: run[key] for key in ("cell", "seed", "init_seed", "order_seed", "role")}
        return {"run": run["id"], "label": cell["label"], **named, "config": member_config(cell, run)}

    def ended(self, job: Job, end: Ended) -> list[Job]:
        """What follows from the end of a cohort's worker."""
        cohort = job.about
        if end.status in ("oom", "failed") and end.shared:  # a full card's libraries fail in words of their own
            self.crew.progress.note(f"{cohort['id']} failed beside another: once more with the GPU to itself")
            return [replace(job, needs_bytes=None)]
        if end.status == "oom" or end.memory_killed:
            return self.too_large(cohort)
        if end.status == "done":
            return self.close(cohort, State("failed", "the worker left no record of this run"), trust=True)
        if end.status == "failed":
            return self.close(cohort, State("failed", end.reason))
        if self.likely_too_large(job, end):
            return self.too_large(cohort)
        if job.attempts < self.study.run.retries:
            return [replace(job, attempts=job.attempts + 1)]
        return self.close(cohort, State("failed", f"{end.reason} (after {job.attempts + 1} attempts)"))

    def likely_too_large(self, job: Job, end: Ended) -> bool:
        """SIGKILL again and again: most likely for want of memory. Where the kernel counts its kills and counted none,
        all retries come first: a cohort killed by hand keeps its composition, and so its bits."""
        enough = 1 if end.memory_killed is None else max(1, self.study.run.retries)
        return end.code == -signal.SIGKILL and job.attempts >= enough and len(job.about["runs"]) > 1

    def too_large(self, cohort: dict[str, Any]) -> list[Job]:
        """Out of memory: two halves in its place, written to plan.json first; a single run has its end."""
        if len(cohort["runs"]) == 1:
            had = worker_memory(self.study.run, self.plan["machine"])
            return self.close(cohort, out_of_memory(self.plan, self.runs[cohort["runs"][0]], had_bytes=had))
        return [self.job(part) for part in self.split(cohort, "out of memory")]

    def split(self, cohort: dict[str, Any], why: str) -> list[dict[str, Any]]:
        """The two halves that take the cohort's place."""
        parts = halves(cohort)
        self.plan.setdefault("splits", {})[cohort["id"]] = parts
        write_json(self.layout.plan, self.plan)
        sizes = " + ".join(str(len(part["runs"])) for part in parts)
        self.crew.progress.note(f"{cohort['id']} does not fit ({why}): going on with {sizes} runs")
        return [part_of(cohort, part) for part in parts]

    def close(self, cohort: Mapping[str, Any], without: State, trust: bool = False, started: bool = True) -> list[Job]:
        """Every member has a named end now: its own final record's, or ``without``. ``trust``: the worker ended well,
        so what it recorded stands, whatever it is. ``started``: whether there was a worker at all."""
        for name in cohort["runs"]:
            record = run_record(self.layout, name)
            if not (trust and record and record.get("status") not in (None, "interrupted")):
                write_end(self.layout, self.plan, cohort["id"], self.runs[name], without, started)
        self.crew.progress.advance(len(cohort["runs"]))
        return []
