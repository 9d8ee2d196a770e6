"""A run's predictions.parquet, by column."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

TEXT_COLUMNS = ("prompt", "prediction", "reference", "references", "group")
NO_SCORE = {"item", "loss", "base_loss", "target_tokens", "prediction_ids", *TEXT_COLUMNS}

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Predictions:
    """predictions.parquet by column. ``scores`` are NaN, ``text`` None where an item was not generated."""

    items: npt.NDArray[np.int64]
    loss: Floats
    tokens: npt.NDArray[np.int64]
    scores: Mapping[str, Floats]
    text: Mapping[str, Sequence[str | None]]


def read_predictions(path: Path) -> Predictions:
    """predictions.parquet, ordered by item."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    table = table.take(pc.sort_indices(table, sort_keys=[("item", "ascending")]))
    rows = {name: table.column(name).to_pylist() for name in table.column_names if name != "prediction_ids"}
    scores = {name: _floats(values) for name, values in rows.items() if name not in NO_SCORE and _is_score(values)}
    return Predictions(
        items=np.asarray(rows["item"], dtype=np.int64),
        loss=_floats(rows["loss"]),
        tokens=np.asarray(rows["target_tokens"], dtype=np.int64),
        scores=scores,
        text={name: [_text(v) for v in rows[name]] for name in TEXT_COLUMNS if name in rows},
    )


def _text(value: Any) -> str | None:
    """A text; several right answers, each once, with bars between them."""
    if isinstance(value, list):
        return " | ".join(dict.fromkeys(map(str, value))) or None
    return None if value is None else str(value)


def _floats(values: Sequence[Any]) -> Floats:
    return np.asarray([math.nan if v is None else float(v) for v in values], dtype=np.float64)


def _is_score(values: Sequence[Any]) -> bool:
    """Whether a column holds scores: numbers from 0 to 1, at least one."""
    known = [v for v in values if v is not None and v == v]
    return bool(known) and all(isinstance(v, int | float) and 0 <= v <= 1 for v in known)
