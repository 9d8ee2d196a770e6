"""Ranks by layer against one rank for all: each cell with a ``rank_pattern`` beside its uniform twin, paired by seed. No verdict.

The twin differs in nothing but the pattern (and what that brings along); the paired difference is given with its interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loracle.verdict.confounds import differences
from loracle.verdict.evidence import Record, StudyEvidence, pair
from loracle.verdict.methods import AgainstLora
from loracle.verdict.scope import check

FACTOR = "rank_pattern"


def pattern_of(cell: Record) -> Mapping[str, int]:
    """The cell's ranks by layer; empty where all have one."""
    return (_config(cell).get("adapter") or {}).get(FACTOR) or {}


def against_uniform(found: StudyEvidence, cell: Record) -> AgainstLora | None:
    """The comparison of a cell with the one that has one rank for all and is alike in everything else; None where there is none."""
    if not pattern_of(cell):
        return None
    for other in found.cells.values():
        if not pattern_of(other) and differences(_config(cell), _config(other)).changed == (FACTOR,):
            pairing = pair(found, cell, other)
            return AgainstLora(other, pairing, check(found, cell, other, FACTOR, pairing=pairing))
    return None


def _config(cell: Record) -> Mapping[str, Any]:
    found = cell.get("config")
    return found if isinstance(found, Mapping) else {}
