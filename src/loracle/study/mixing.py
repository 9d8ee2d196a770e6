"""Mixed precision: from a budget in the study file to the block of module names that is trained.

Before the plan is made, a sweep says which matrices suffer (``study.sensitivity``), a worker measures what to keep, and every cell
with a ``Mixed`` precision becomes one with a plain block. Where nothing needs keeping there is no such cell.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from loracle.base.errors import LoracleError
from loracle.spec.factors import apply_factors, cell_tree
from loracle.spec.mixing import Mixed, as_mixed
from loracle.spec.study import Study
from loracle.store.files import digest, read_json
from loracle.store.layout import StudyFolder
from loracle.study.cells import PlannedCell
from loracle.study.crew import Crew
from loracle.study.sensitivity import run_job, sweep_of, sweeps_of

Choices = Mapping[str, Any]
"""Key of a mix (``_key``) → its precision, as a study file has it; None where nothing needs keeping."""


def is_mixed(study: Study) -> bool:
    """Whether some cell's precision is still to be chosen."""
    return any(True for _ in _mixed_rows(study))


def chosen(study: Study, layout: StudyFolder, crew: Crew, threads: int) -> Study:
    """The study with every precision written out. Raises ``LoracleError`` where the sweep could not be made."""
    if not is_mixed(study):
        return study
    cells = [_cell(study, values) for values in _mixed_rows(study)]
    mixes = {_key(planned): _mix(study, planned) for planned in cells}
    found = _known(layout.mixed_precision, mixes)
    if found is None:
        problem = run_job(study, layout, crew, threads, sweeps_of(cells), list(mixes.values()))
        if problem:
            raise LoracleError(problem)
        found = _known(layout.mixed_precision, mixes)
        assert found is not None
    return resolved(study, found)


def margin(study: Study) -> float:
    """What quantizing may cost, relative to the loss: that of the degradation question."""
    from loracle.verdict.claims import LOSS_MARGIN

    own = next((q.margin for q in study.questions if q.name == "degradation"), None)
    return own if own is not None else LOSS_MARGIN


def resolved(study: Study, choices: Choices) -> Study:
    """Each mixed precision replaced by its choice, as a cell of its own; where that is uniform or unknown there is none."""
    cells = [values for values in study.cells if as_mixed(values.get("precision")) is None]
    for values in _mixed_rows(study):
        choice = choices.get(_key(_cell(study, values)))
        if isinstance(choice, Mapping):
            cells.append({**values, "precision": dict(choice)})
    vary = dict(study.vary)
    if "precision" in vary:
        vary["precision"] = tuple(value for value in vary["precision"] if as_mixed(value) is None)
    return study.model_copy(update={"vary": vary, "cells": tuple(cells)})


def unchosen(study: Study) -> list[dict[str, Any]]:
    """Each mixed precision, as the study file has it, and how many cells are to have it: ``{precision, cells}``."""
    rows = [as_mixed(values["precision"]) for values in _mixed_rows(study)]
    return [{"precision": one.model_dump(), "cells": rows.count(one)} for one in dict.fromkeys(rows) if one is not None]


def _mixed_rows(study: Study) -> Iterator[dict[str, Any]]:
    """The factor values of every cell whose precision is mixed."""
    for found in itertools.product(*study.vary.values()):
        values = dict(zip(study.vary, found, strict=True))
        if as_mixed(values.get("precision")) is not None:
            yield values
    yield from (dict(values) for values in study.cells if as_mixed(values.get("precision")) is not None)


def _cell(study: Study, values: Mapping[str, Any]) -> PlannedCell:
    return PlannedCell("", apply_factors(cell_tree(study), values, "vary"), values)


def _mix(study: Study, planned: PlannedCell) -> dict[str, Any]:
    """What the job is asked (docs/jobs.md)."""
    mixed = planned.cell.precision
    assert isinstance(mixed, Mixed)
    return {
        "sweep_sha256": sweep_of(planned, mixed.default)["inputs_sha256"],
        "sensitive": mixed.sensitive,
        "budget": mixed.budget,
        "margin": margin(study),
        "inputs_sha256": digest([_key(planned), margin(study)]),
    }


def _key(planned: PlannedCell) -> str:
    """What a choice hangs on: base, codec, budget."""
    mixed = planned.cell.precision
    assert isinstance(mixed, Mixed)
    return digest([sweep_of(planned, mixed.default)["inputs_sha256"], mixed.model_dump()])


def _known(path: Path, mixes: Mapping[str, Mapping[str, Any]]) -> Choices | None:
    """The choices that were made, if all of them were."""
    if not path.exists():
        return None
    made = {one["inputs_sha256"]: one for one in read_json(path)["mixes"]}
    if any(mix["inputs_sha256"] not in made for mix in mixes.values()):
        return None
    return {key: made[mix["inputs_sha256"]]["precision"] for key, mix in mixes.items()}
