"""CSV rows of what guards the verdicts: failure modes, and what the arms of each comparison differ in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from loracle.report.evidence import StudyData
from loracle.verdict.compared import comparisons
from loracle.verdict.entries import Entry
from loracle.verdict.failures import failure_modes


def failures(data: StudyData, entries: Sequence[Entry]) -> Iterator[dict[str, Any]]:
    """Every mode, found or not."""
    for found in failure_modes(data.evidence(), entries):
        row = {"mode": found.mode.name, "state": found.state, "symptom": found.symptom, "cause": found.mode.cause}
        yield row | {"mitigation": found.mode.mitigation, "records": ", ".join(found.records) or None}


def differing(data: StudyData) -> Iterator[dict[str, Any]]:
    """Every pair of arms, whatever it is compared for."""
    for pair in comparisons(data.evidence()):
        row = {
            "arm": pair.arm["id"],
            "reference": pair.reference["id"],
            "compared_for": pair.what,
            "judged": pair.judged,
        }
        yield row | {
            "differences": ", ".join(pair.differences),
            "confounded": pair.guard.confounded,
            "recipe": pair.guard.recipe,
        }
