"""AlpacaEval: win rate and standard error of a file of annotations, as AlpacaEval's leaderboards count them. No torch.

An annotation compares ``output_2`` (the model's) with ``output_1`` (the reference's). Its ``preference`` is 1 where the
reference wins, 2 where the model wins, anything between for a judge that weighs both, 1.5 or 0 for a draw, null
for a verdict that could not be read. Source: Li et al. 2023, tatsu-lab/alpaca_eval (``AbsoluteScoringRule``).

Not covered: making annotations, and the length-controlled win rate (Dubois et al. 2024, arXiv:2404.04475). That one is
predicted by a logistic model of the length difference and the difficulty of each of the 805 instructions, fitted
together with annotations of the baseline in a verbose and a concise version. Difficulties and those annotations are
neither in an annotations file nor in the published weights (three coefficients a model), so it cannot be reproduced
from the file alone, and no figure is given for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NotRequired, TypedDict

from loracle.base.errors import DataError
from loracle.tasks.readers import read_table


class WinRate(TypedDict):
    """``win_rate`` and ``standard_error`` in percent over ``n`` verdicts; one verdict alone has no standard error."""

    win_rate: float
    standard_error: float | None
    n: int
    standard_error_reason: NotRequired[str]


def win_rate(preferences: Sequence[float]) -> WinRate:
    """100 · mean of (preference − 1) with 0 read as 1.5, and 100 · s/√n with the sample deviation s (n − 1).

    Raises ``DataError`` when there is no preference.
    """
    if not preferences:
        raise DataError("there are no preferences to take a win rate of")
    wins = [(preference or 1.5) - 1 for preference in preferences]
    n = len(wins)
    if n < 2:
        return {
            "win_rate": 100 * fmean(wins),
            "standard_error": None,
            "n": n,
            "standard_error_reason": "one verdict alone has no standard error",
        }
    return {"win_rate": 100 * fmean(wins), "standard_error": 100 * stdev(wins) / math.sqrt(n), "n": n}


def read_preferences(path: Path) -> list[float]:
    """The preferences of an annotations file (``.json``, ``.jsonl``) in its order, without nulls.

    Raises ``DataError`` for a value that is no preference, and for a file of several models or judges: its
    mean would be nobody's win rate. (AlpacaEval itself drops values that are no preference.)
    """
    rows = read_table(path).rows
    for key, what in (("generator_2", "models"), ("generator_1", "references"), ("annotator", "judges")):
        names = sorted({str(row[key]) for row in rows if row.get(key) is not None})
        if len(names) > 1:
            shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            raise DataError(f"holds {len(names)} {what} ({shown}): one file for each is needed", f"{path}: {key}")
    found = [_preference(row, f"{path}: {index}.preference") for index, row in enumerate(rows)]
    given = [preference for preference in found if preference is not None]
    if not given:
        raise DataError("no row has a preference, all are null", str(path))
    return given


def _preference(row: dict[str, Any], where: str) -> float | None:
    """The row's preference, None for null (or NaN, as pandas would write it)."""
    if "preference" not in row:
        raise DataError("is missing", where)
    value = row["preference"]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value == 0 or 1 <= value <= 2):
        raise DataError(f"a number from 1 to 2, 0 or null is needed, this is {str(value)[:40]!r}", where)
    return float(value)
