"""What a model card is about: for each base and task of a study one cell, the best supported one, and one run's adapter.

The run is that of the study's first seed, never the one with the best score: picking by the evaluation rows would make
the adapter look better than it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from loracle.report.evidence import CellData, Record, RunData, StudyData
from loracle.report.inert import plain
from loracle.report.wording import mean
from loracle.tasks.readers import looks_like_hub_id
from loracle.verdict.entries import Entry
from loracle.verdict.grounds import Ground, grounds
from loracle.verdict.recommendation import recommended_on


@dataclass(frozen=True)
class Subject:
    """One base and one task. ``cell`` and ``run`` are None where no run finished; ``advice`` says why this cell."""

    name: str
    cells: Sequence[CellData]
    cell: CellData | None
    run: RunData | None
    advice: str

    @property
    def config(self) -> Record:
        """The run's settings, or those of the first planned cell."""
        if self.run is not None and isinstance(self.run.record.get("config"), Mapping):
            return self.run.record["config"]
        return (self.cell or self.cells[0]).raw.get("config") or {}

    def section(self, name: str) -> Record:
        """``base``, ``task``, ``adapter`` or ``train`` of the settings."""
        found = self.config.get(name)
        return found if isinstance(found, Mapping) else {}

    @property
    def base(self) -> str:
        """The base in words: its hub id, or its folder's name."""
        return base_id(self.section("base")) or plain(self.section("base").get("name") or "unnamed base")

    @property
    def task(self) -> str:
        return task_name(self.section("task"))

    @property
    def classifies(self) -> bool:
        return self.section("task").get("type") == "classification"

    @property
    def method(self) -> str:
        return str(self.section("adapter").get("method") or (self.cell or self.cells[0]).method)


def subjects(data: StudyData, entries: Sequence[Entry]) -> list[Subject]:
    """One for each ground (base, task and data set) of the study, in the plan's order."""
    return [_subject(data, entries, place) for place in grounds(data.evidence())]


def _subject(data: StudyData, entries: Sequence[Entry], place: Ground) -> Subject:
    cells = [cell for cell in data.cells if cell.id in place.ids]
    name = plain(place.name)
    advice = recommended_on(entries, data.evidence(), place)
    chosen = data.by_cell.get(str(advice["cell"]))
    if chosen is not None and data.of_cell(chosen.id, done=True):
        return Subject(name, cells, chosen, data.of_cell(chosen.id, done=True)[0], plain(advice["text"]))
    finished = [cell for cell in cells if data.of_cell(cell.id, done=True)]
    if not finished:
        return Subject(name, cells, None, None, "No run finished, so there is no adapter and no result.")
    best = min(finished, key=lambda c: (-len(data.of_cell(c.id, done=True)), _loss(data, c)))
    why = (
        "No cell is recommended: this is the one with the most finished runs, and of these the lowest evaluation loss."
    )
    return Subject(name, cells, best, data.of_cell(best.id, done=True)[0], why)


def _loss(data: StudyData, cell: CellData) -> float:
    found = mean(data.values(cell.id, "eval_loss"))
    return float("inf") if found is None else found


def base_id(base: Record) -> str | None:
    """The base's hub id; None for a folder or a built-in base. A base from the hub has its commit in the record."""
    model = str(base.get("model") or "")
    return model if base.get("revision") and model.count("/") < 2 and not model.startswith((".", "/", "~")) else None


def data_id(task: Record) -> str | None:
    """The data set's hub id; None for files."""
    data = str(task.get("data") or "")
    return data if looks_like_hub_id(data) else None


def task_name(task: Record) -> str:
    """A task in words, never by its path."""
    name = task.get("name") or data_id(task) or PurePath(str(task.get("data") or "")).name
    return plain(name) or "unnamed data"


def of_task(task: Record, key: str) -> Any:
    """A setting of the task, None where it is empty."""
    return task.get(key) or None
