"""Failure modes and what the arms of each comparison differ in, as tables to read."""

from __future__ import annotations

from collections.abc import Sequence

from loracle.report import wording
from loracle.report.evidence import StudyData
from loracle.report.grids import Grid, Item
from loracle.report.inert import plain
from loracle.verdict.compared import Compared, comparisons
from loracle.verdict.entries import Entry
from loracle.verdict.failures import FOUND, Finding, failure_modes

MAX_RECORDS = 4


def modes(data: StudyData, entries: Sequence[Entry]) -> list[Grid]:
    """What was found, with cause and mitigation; then what was not found or could not be checked, and why."""
    findings = failure_modes(data.evidence(), entries)
    there = [f for f in findings if f.state == FOUND]
    rest = [f for f in findings if f.state != FOUND]
    grids = [_found(finding) for finding in there]
    if rest:
        rows = [[Item(f.mode.name), Item(f.state), Item(plain(f.symptom))] for f in rest]
        note = "Not found is not proven absent: each mode is looked for by the signs that docs/failure-modes.md names."
        grids.append(Grid("Not found, or not checked", ["failure mode", "", "why"], rows, note))
    return grids


def _found(finding: Finding) -> Grid:
    mode = finding.mode
    told = (
        ("symptom", finding.symptom),
        ("cause", mode.cause),
        ("mitigation", mode.mitigation),
        ("records", _records(finding)),
    )
    return Grid(
        f"Found: {mode.name}", ["", "from the records"], [[Item(name), Item(plain(text))] for name, text in told]
    )


def _records(finding: Finding) -> str:
    shown = list(finding.records[:MAX_RECORDS])
    left = len(finding.records) - len(shown)
    return ", ".join(shown) + (f" and {left} more" if left else "") if shown else wording.NONE


def guard(data: StudyData) -> Grid | None:
    """What the two arms of each comparison differ in; more than one difference, and there is no verdict."""
    found = comparisons(data.evidence())
    if not found:
        return None
    rows = [
        [
            Item(_label(data, pair.arm["id"])),
            Item(_label(data, pair.reference["id"])),
            Item(pair.what),
            Item(plain(", ".join(pair.differences))),
            Item(_standing(pair), "confounded" if pair.guard.confounded else ""),
        ]
        for pair in found
    ]
    heads = ["arm", "against", "compared for", "differ in", "so"]
    note = "Settings that follow from another (a 16-bit arm has no block size) count with it. Seeds, paths and storage are no differences."
    return Grid("What the arms of each comparison differ in", heads, rows, note)


def _standing(pair: Compared) -> str:
    if pair.guard.confounded:
        return "confounded"
    if pair.guard.recipe and len(pair.differences) > 1:
        return "judged as recipes"
    if not pair.judged:
        return "shown, no claim"
    return pair.guard.text or "one factor"


def _label(data: StudyData, cell: str) -> str:
    known = data.by_cell.get(cell)
    return known.label if known else cell
