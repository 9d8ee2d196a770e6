"""Likeness of two runs' updates along training, from the adapters that both kept at the same steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loracle.diagnose.similarity import compare_adapters
from loracle.store.layout import StudyFolder

FIGURES = ("cosine", "relative_difference")


def along(folder: StudyFolder, first: str, second: str, modules: Mapping[str, Any]) -> list[dict[str, Any]]:
    """``{step, cosine, relative_difference}`` at every step that both have, each the mean over modules and slices; null where
    an update is still zero."""
    steps = sorted(folder.along_steps(first) & folder.along_steps(second))
    found = []
    for step in steps:
        rows = compare_adapters(folder.along(first, step), folder.along(second, step), modules)
        found.append({"step": step, **{name: _mean([row[name] for row in rows]) for name in FIGURES}})
    return found


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
