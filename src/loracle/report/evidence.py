"""From a study folder to typed values in memory, tolerant of what is missing, torn or unfinished.

What could not be read is named in ``StudyData.notes`` and is never replaced by a guess. Only runs of ``plan.json``
count: folders of an earlier plan may lie beside them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from loracle.base.errors import LoracleError, StoreError
from loracle.report.predictions import Predictions, read_predictions
from loracle.spec.study import UNDECIDED
from loracle.spec.yaml import read_yaml_file
from loracle.store.files import read_json, read_jsonl
from loracle.store.layout import StudyFolder
from loracle.verdict.confounds import has_rank, has_targets, precision_label
from loracle.verdict.evidence import RunScores, StudyEvidence
from loracle.verdict.scope import method_of

STATES = ("done", "diverged", "oom", "failed", "interrupted")
NOT_RUN = "not run"
ALL_STATES = (*STATES, NOT_RUN)
SIXTEEN_BIT = ("bf16", "fp16", "fp32")
TASK_METRICS = ("accuracy", "label_accuracy", "f1", "exact_match")
DEFAULT_QUESTIONS = ("degradation", "task_metric", "rank_threshold", "similarity")

Record = Mapping[str, Any]


@dataclass(frozen=True)
class CellData:
    """One planned cell; ``series`` is its label without the rank: what one line of a figure is about.

    ``rank`` is None and ``targets`` "" where the method has none.
    """

    id: str
    label: str
    series: str
    precision: str
    method: str
    rank: int | None
    targets: str
    reference: str | None
    raw: Record

    @property
    def quantized(self) -> bool:
        return self.precision not in SIXTEEN_BIT


@dataclass(frozen=True)
class RunData:
    """One planned run; ``record`` is empty where there is none."""

    id: str
    cell: str
    seed: int
    role: str
    status: str
    reason: str
    record: Record
    points: Sequence[Record]
    predictions: Predictions | None

    def metric(self, name: str) -> float | None:
        """A figure of the record's top level or of its ``metrics``; None when it was not measured."""
        value = self.record.get(name)
        if value is None:
            value = (self.record.get("metrics") or {}).get(name)
        return number(value)


@dataclass(frozen=True)
class StudyData:
    """All that a report is made from."""

    name: str
    plan: Record
    study: Record
    cells: Sequence[CellData]
    runs: Sequence[RunData]
    similarity: Record | None
    agreement: Record | None
    sensitivity: Record | None
    importance: Record | None
    mixed: Record | None
    probes: Sequence[Record]
    notes: Sequence[str]

    @cached_property
    def by_cell(self) -> dict[str, CellData]:
        return {cell.id: cell for cell in self.cells}

    @cached_property
    def by_run(self) -> dict[str, RunData]:
        return {run.id: run for run in self.runs}

    @property
    def seeds(self) -> list[int]:
        """The study's seeds in its own order, then any other that a run has."""
        known = list(dict.fromkeys(run.seed for run in self.runs if run.role == "run"))
        order = [s for s in self.study.get("seeds") or [] if s in known]
        return order + [s for s in known if s not in order]

    def of_cell(self, cell: str, done: bool = False) -> list[RunData]:
        """The cell's runs that count (no null runs), by seed; ``done``: finished ones only."""
        order = {seed: i for i, seed in enumerate(self.seeds)}
        found = [r for r in self.runs if r.cell == cell and r.role == "run" and (r.status == "done" or not done)]
        return sorted(found, key=lambda r: order[r.seed])

    def values(self, cell: str, name: str) -> list[float]:
        """A metric of the cell's finished runs, by seed."""
        return [v for r in self.of_cell(cell, done=True) if (v := r.metric(name)) is not None]

    def count(self, role: str = "run") -> dict[str, int]:
        """How many planned runs ended in each state, those that never ran included."""
        states = [r.status for r in self.runs if r.role == role]
        return {state: states.count(state) for state in ALL_STATES}

    @property
    def ranks(self) -> list[int]:
        return sorted({cell.rank for cell in self.cells if cell.rank is not None})

    def chance(self) -> float | None:
        """1 / number of labels, where every run's audit names the same labels; else None."""
        found = {_label_count(r.record) for r in self.runs if r.record}
        count = found.pop() if len(found) == 1 else None
        return 1.0 / count if count else None

    @cached_property
    def methods(self) -> list[str]:
        """The methods in the plan's order."""
        return list(dict.fromkeys(cell.method for cell in self.cells))

    def classifies(self, cell: CellData) -> bool:
        """Whether the cell's runs have a classification head."""
        return ((cell.raw.get("config") or {}).get("task") or {}).get("type") == "classification"

    def task_metric(self) -> str | None:
        """The score to show first: a head's accuracy, label accuracy, SQuAD's F1, exact match; None without any. Exact match that no
        answer reaches (free text) is none."""
        for name in TASK_METRICS:
            found = [value for cell in self.cells for value in self.values(cell.id, name)]
            if found and (name != "exact_match" or any(found)):
                return name
        return None

    def floor(self) -> tuple[str, float | None]:
        """What the task metric is where nothing was learned, and its name: chance, or the commonest label."""
        metric = self.task_metric()
        if metric == "accuracy":
            found = {v for cell in self.cells for v in self.values(cell.id, "majority_accuracy")}
            return "commonest label", found.pop() if len(found) == 1 else None
        return "chance", self.chance() if metric == "label_accuracy" else None

    def evidence(self) -> StudyEvidence:
        """What ``loracle.verdict`` reads."""
        return self._evidence

    @cached_property
    def _evidence(self) -> StudyEvidence:
        return StudyEvidence(
            plan=self.plan,
            records=[run.record for run in self.runs if run.record],
            scores={
                run.id: RunScores(
                    run.predictions.items,
                    run.predictions.loss,
                    run.predictions.tokens,
                    run.predictions.scores,
                    run.predictions.text.get("group"),
                )
                for run in self.runs
                if run.predictions is not None
            },
            similarity=self.similarity,
            agreement=self.agreement,
            probes=self.probes,
            questions=_questions(self.study),
            seeds=self.seeds,
            sensitivity=self.sensitivity,
        )


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def read_study(folder: Path) -> StudyData:
    """Read a study folder. Without a readable ``plan.json`` there is nothing to count against: a ``StoreError``."""
    place = StudyFolder(folder)
    if not place.plan.exists():
        raise StoreError(f"{place.plan}: no plan here; loracle run writes one")
    plan = read_json(place.plan)
    reader = _Reader(place)
    study = reader.study()
    cells = [_cell(raw) for raw in plan.get("cells", [])]
    runs = [reader.run(raw) for raw in plan.get("runs", [])]
    return StudyData(
        name=str(study.get("name") or plan.get("name") or "study"),
        plan=plan,
        study=study,
        cells=cells,
        runs=runs,
        similarity=reader.optional(place.similarity),
        agreement=reader.optional(place.agreement),
        sensitivity=reader.optional(place.sensitivity_sweeps),
        importance=reader.optional(place.importance),
        mixed=reader.optional(place.mixed_precision),
        probes=list(reader.probes()),
        notes=tuple(reader.notes),
    )


class _Reader:
    """Reads the parts of one folder and gathers what could not be read."""

    def __init__(self, place: StudyFolder) -> None:
        self.place = place
        self.notes: list[str] = []

    def optional(self, path: Path) -> Record | None:
        if not path.exists():
            return None
        try:
            value = read_json(path)
        except (StoreError, OSError) as error:
            self._note(path, error)
            return None
        if isinstance(value, Mapping):
            return value
        self._note(path, ValueError("not an object"))
        return None

    def study(self) -> Record:
        path = self.place.study_yaml
        if not path.exists():
            return {}
        try:
            value = read_yaml_file(path)
        except (LoracleError, OSError) as error:
            self._note(path, error)
            return {}
        return value if isinstance(value, Mapping) else {}

    def run(self, raw: Record) -> RunData:
        run_id = str(raw["id"])
        path = self.place.run_record(run_id)
        record = self.optional(path)
        if record is not None and (misfit := _misfit(record)):
            self._note(path, ValueError(misfit))
            record = None
        reason = str((record or {}).get("reason") or "")
        if record is None:
            reason = "its record cannot be read" if path.exists() else "no record was written"
        status = str(record.get("status")) if record else NOT_RUN
        if status not in STATES:
            status, reason = (NOT_RUN, reason) if not record else ("failed", f"unknown status {status[:40]!r}")
        return RunData(
            id=run_id,
            cell=str(raw["cell"]),
            seed=int(raw["seed"]),
            role=str(raw.get("role", "run")),
            status=status,
            reason=reason if status != "done" else "",
            record=record or {},
            points=self._points(run_id),
            predictions=self._predictions(run_id) if record else None,
        )

    def probes(self) -> Iterator[Record]:
        for path in sorted((self.place.root / "probes").glob("*/record.json")):
            record = self.optional(path)
            if record is not None:
                yield record

    def _points(self, run_id: str) -> list[dict[str, Any]]:
        path = self.place.run(run_id) / "metrics.jsonl"
        try:
            return [row for row in read_jsonl(path) if isinstance(row, dict) and isinstance(row.get("step"), int)]
        except (OSError, UnicodeDecodeError) as error:
            self._note(path, error)
            return []

    def _predictions(self, run_id: str) -> Predictions | None:
        import pyarrow as pa

        path = self.place.run(run_id) / "predictions.parquet"
        if not path.exists():
            return None
        try:
            return read_predictions(path)
        except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
            self._note(path, error)
            return None

    def _note(self, path: Path, error: Exception) -> None:
        what = " ".join(str(error).replace(f"{self.place.root}/", "").split())[:200]
        where = path.relative_to(self.place.root).as_posix()
        self.notes.append(what if where in what else f"{where}: cannot be read ({what})")


def _misfit(record: Record) -> str | None:
    """What no worker writes: a section that is no object, a loss that is no loss."""
    for key in ("metrics", "config", "provenance", "audit", "reload"):
        if record.get(key) is not None and not isinstance(record[key], Mapping):
            return f"{key} is not an object"
    for key in ("eval_loss", "train_loss"):
        loss = record.get(key)
        if loss is not None and (number(loss) is None or float(loss) < 0):
            return f"{key} is {str(loss)[:40]}, which is no loss"
    return None


def _cell(raw: Record) -> CellData:
    method = method_of(raw)
    rank = raw.get("rank") if has_rank(method) else None
    label = str(raw.get("label") or raw["id"])
    parts = [part for part in label.split("-") if rank is None or part != f"r{rank}"]
    targets = raw.get("targets") if has_targets(method) else None
    return CellData(
        id=str(raw["id"]),
        label=label,
        series="-".join(parts) or label,
        precision=precision_label(raw.get("precision")),
        method=method,
        rank=rank if isinstance(rank, int) else None,
        targets=", ".join(map(str, targets)) if isinstance(targets, list | tuple) else str(targets or ""),
        reference=raw.get("reference"),
        raw=raw,
    )


def _label_count(record: Record) -> int | None:
    for section in (record.get("audit") or {}, (record.get("config") or {}).get("task") or {}):
        labels = section.get("labels")
        if isinstance(labels, list | tuple | Mapping):
            return len(labels) or None
        if isinstance(labels, int) and not isinstance(labels, bool):
            return labels or None
    return None


def _questions(study: Record) -> list[dict[str, Any]]:
    """``{name, margin, primary, compare}`` of each question; the study's defaults where it names none."""
    found = []
    for raw in study.get("questions") or DEFAULT_QUESTIONS:
        question = {"name": raw} if isinstance(raw, str) else dict(raw)
        if question.get("name") in UNDECIDED:
            continue
        base = {"margin": None, "primary": False, "compare": "factor"}
        found.append({**base, **question})
    if found and not any(q["primary"] for q in found):
        found[0]["primary"] = True
    return found
