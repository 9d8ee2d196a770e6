"""A study folder as pandas frames, for a notebook: the report's tables, curves and verdicts, straight from the records.

Columns, units and keys are those of docs/files.md. Nothing is written, no report need be there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from loracle.report.columns import named
from loracle.report.evidence import read_study
from loracle.report.tables import all_tables
from loracle.verdict import decide, hypotheses
from loracle.verdict import recommendation as recommend
from loracle.verdict.entries import KEYS

CURVES = ("step", "loss", "lr", "grad_norm", "tokens", "eval_loss")


def tables(folder: str | Path) -> dict[str, pd.DataFrame]:
    """Every table of the report by name (``runs``, ``cells``, ``degradation``, ``memory`` …), as ``report/tables/*.csv`` has it.

    A study folder without a plan is a ``StoreError``, here and below.
    """
    data = read_study(Path(folder))
    return {
        name: _frame(table.rows, table.columns) for name, table in all_tables(data, decide(data.evidence())).items()
    }


def records(folder: str | Path) -> pd.DataFrame:
    """One row a planned run, whatever became of it (``status``, ``reason``): settings, figures before and after, sizes, times."""
    return tables(folder)["runs"]


def curves(folder: str | Path) -> pd.DataFrame:
    """``metrics.jsonl`` of every run: a row for each training step and each evaluation, beside run, cell and seed.

    ``loss`` and ``eval_loss`` are nats a token; a training step has no ``eval_loss``, an evaluation nothing but that.
    """
    data = read_study(Path(folder))
    rows = [
        {"run": run.id, **named(data.by_cell.get(run.cell), run.cell), "seed": run.seed, **point}
        for run in data.runs
        for point in run.points
    ]
    return _frame(rows, ("run", *named(data.cells[0], ""), "seed", *CURVES))


def verdicts(folder: str | Path) -> pd.DataFrame:
    """One row a verdict, with the keys of ``verdicts.json``: the claim, the answer, estimate, interval, margin, and what it needs."""
    study = read_study(Path(folder)).evidence()
    entries = decide(study)
    return _frame([*entries, *hypotheses(study, entries)], KEYS)


def recommendation(folder: str | Path) -> dict[str, Any]:
    """``text``, the recommended ``cell`` and ``runner_up`` (ids or None), ``why`` and the ``undecided`` statements."""
    study = read_study(Path(folder)).evidence()
    return recommend(decide(study), study)


def _frame(rows: Any, columns: tuple[str, ...]) -> pd.DataFrame:
    found: list[Mapping[str, Any]] = list(rows)
    return pd.DataFrame([[row.get(column) for column in columns] for row in found], columns=list(columns))
