"""Which group a row is of (``task.group``): a column that is kept beside each row and never seen by a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from loracle.base.errors import DataError
from loracle.base.names import suggest
from loracle.tasks.readers import RawRow, Table
from loracle.tasks.rows import Row

MOST = 50  # more values than this are no groups but names of rows


def check_column(column: str | None, table: Table) -> None:
    """The file whose rows are evaluated must have the column."""
    if column is not None and column not in table.columns:
        problem = f"no column '{column}' as task.group says, {suggest(column, table.columns)}"
        raise DataError(problem, table.name)


def group_of(row: RawRow, column: str | None) -> str | None:
    """A row's group in words, on one line; None where it says nothing."""
    value = row.get(column) if column is not None else None
    if value is None or value != value or isinstance(value, list | tuple | dict):
        return None
    return " ".join(str(value).encode("utf-8", "replace").decode().split()) or None


def group_columns(rows: Sequence[Row]) -> dict[str, list[str | None]]:
    """``group`` as a column beside evaluation rows; nothing where no row has one."""
    found = [row.group for row in rows]
    return {"group": found} if any(group is not None for group in found) else {}


def counted(train: Sequence[Row], evaluation: Sequence[Row], column: str | None) -> dict[str, Any]:
    """The audit's ``train_groups`` and ``eval_groups`` (group → rows), where a column was named.

    A column with more than ``MOST`` values, or with none in the evaluation rows, is a ``DataError``.
    """
    if column is None:
        return {}
    counts = [_sorted(row.group for row in rows if row.group is not None) for rows in (train, evaluation)]
    if not counts[1]:
        raise DataError(f"task.group: column '{column}' is empty in every evaluation row")
    if len(counts[1]) > MOST:
        problem = (
            f"task.group: column '{column}' has {len(counts[1])} values in the evaluation rows, more than {MOST}: "
        )
        raise DataError(problem + "name one that puts many rows in each group")
    return {"train_groups": counts[0], "eval_groups": counts[1]}


def label_counts(train: Sequence[Row], evaluation: Sequence[Row]) -> dict[str, Any]:
    """The audit's ``train_labels`` and ``eval_labels`` (label → rows) of rows that have one."""
    counts = [_sorted(row.label for row in rows if row.label is not None) for rows in (train, evaluation)]
    return {"train_labels": counts[0], "eval_labels": counts[1]} if counts[0] else {}


def _sorted(values: Any) -> dict[str, int]:
    """Counts, the commonest first, equal ones by name."""
    return dict(sorted(Counter(values).items(), key=lambda pair: (-pair[1], pair[0])))
