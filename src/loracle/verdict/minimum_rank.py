"""H3: "there is a minimum rank r* below which low rank can't make up for quantization", by r*'s two readings.

Against 16-bit at the same rank: r* is such a rank if the next smaller one tested is rejected. Against the largest rank tested:
does the quantized arm need a larger rank than the 16-bit one? Both are about the ranks that were tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loracle.verdict.confounds import NO_BLOCKS
from loracle.verdict.entries import Entry
from loracle.verdict.evidence import StudyEvidence
from loracle.verdict.parts import CONFOUNDED, NOT_ASKED, PARTLY, REJECTED, SUPPORTED, UNDECIDED, Part, combine, whole
from loracle.verdict.scope import rank_of, scope_of

CLAIM = "there is a minimum rank r* below which low rank can't make up for quantization"
SAME_RANK, LARGEST = "against 16-bit at the same rank", "against the largest rank"


def answer(found: StudyEvidence, thresholds: Sequence[Entry], enough: Sequence[Entry]) -> list[Entry]:
    """H3 as a whole, then its parts: each reading for each quantized precision with two ranks or more."""
    asked = [(entry, ranks) for entry in thresholds if len(ranks := _ranks(found, entry)) > 1]
    if not asked:
        return [
            whole("H3", CLAIM, NOT_ASKED, "Not asked: no quantized precision has two ranks or more beside 16-bit ones.")
        ]
    first = [_threshold(entry, ranks) for entry, ranks in asked]
    second = [part for entry, _ in asked for part in _needs_more(entry, enough)]
    state = combine([part.verdict for part in first])
    if state != SUPPORTED and SUPPORTED in {part.verdict for part in second}:
        state = PARTLY
    parts = [*first, *second]
    return [whole("H3", CLAIM, state, _words(state, asked), parts), *(part.entry("H3") for part in parts)]


def _threshold(entry: Entry, ranks: Sequence[int]) -> Part:
    """r* with a rejected rank below it is the rank that the hypothesis is about."""
    rank, smallest = entry["estimate"], min(ranks)
    if entry["verdict"] == CONFOUNDED:
        state, text = CONFOUNDED, "The arms differ in more than the precision."
    elif entry["interval"] is not None:
        state, text = SUPPORTED, f"Rank {rank} stays within the margin and the next smaller one tested does not."
    elif entry["verdict"] == SUPPORTED and rank == smallest:
        state = REJECTED
        text = f"No rank tested is too low: {smallest}, the smallest, stays within the margin. Ranks below {smallest} were not tested."
    elif entry["verdict"] == REJECTED:
        state = UNDECIDED
        text = "Not even the largest rank tested stays within the margin: r* is above it, or there is none."
    else:
        state, text = UNDECIDED, "No rank tested is shown to be too low, and not all are shown to be enough."
    return Part(
        SAME_RANK, f"at some tested rank and below it quantization costs more than the margin, above it less ({SAME_RANK})",
        state, f"{text} {entry['statement']}", "rank", given=_figures(entry), records=entry["records"],
        confounds=entry["confounds"], scope=entry["scope"],
    )  # fmt: skip


def _needs_more(entry: Entry, enough: Sequence[Entry]) -> list[Part]:
    """Whether the quantized arm needs a larger rank than 16-bit, from the ranks that are enough for either."""
    rest = _but_precision(entry)
    mine = next((e for e in enough if e["scope"] == entry["scope"]), None)
    other = next(
        (e for e in enough if _but_precision(e) == rest and e["scope"].get("precision") in NO_BLOCKS - {"int8"}), None
    )
    if mine is None or other is None:
        return []
    low, high = other["estimate"], mine["estimate"]
    if CONFOUNDED in (mine["verdict"], other["verdict"]):
        state, text = CONFOUNDED, "The ranks differ in more than the rank."
    elif low is None or high is None or min(mine["n"], other["n"]) == 0:
        state, text = UNDECIDED, "One of the two has no rank that is shown to be enough."
    elif mine["interval"] is not None and low < high:
        state, text = SUPPORTED, f"In 16-bit rank {low} is enough, quantized {high} is and the next smaller one is not."
    elif mine["verdict"] == SUPPORTED and high <= low:  # below the largest, which is enough by definition
        state, text = REJECTED, f"Rank {high} is enough quantized, {low} in 16-bit."
    else:
        state, text = (
            UNDECIDED,
            f"Shown to be enough: {high} quantized, {low} in 16-bit; what lies below is not decided.",
        )
    statement = f"{text} {mine['statement']} {other['statement']}"
    given = _figures(mine) | {"n": min(mine["n"], other["n"])}
    confounds = list(dict.fromkeys([*mine["confounds"], *other["confounds"]]))
    records = list(dict.fromkeys([*mine["records"], *other["records"]]))
    claim = f"quantized, a larger rank is needed than in 16-bit ({LARGEST})"
    return [Part(LARGEST, claim, state, statement, "rank", given, records, confounds, entry["scope"])]


def _figures(entry: Entry) -> dict[str, Any]:
    keys = ("estimate", "interval", "n", "level", "margin", "look", "needs", "arm", "reference")
    return {key: entry[key] for key in keys}


def _but_precision(entry: Entry) -> dict[str, Any]:
    scope: Mapping[str, Any] = entry["scope"]
    return {key: value for key, value in scope.items() if key != "precision"}


def _ranks(found: StudyEvidence, entry: Entry) -> list[int]:
    """Ranks that were tested for the entry's precision and other settings."""
    alike = (
        c
        for c in found.cells.values()
        if {k: v for k, v in scope_of(found, c).items() if k != "rank"} == entry["scope"]
    )
    return sorted({rank for c in alike if (rank := rank_of(c)) is not None})


def _words(state: str, asked: Sequence[tuple[Entry, Sequence[int]]]) -> str:
    ranks = sorted({rank for _, found in asked for rank in found})
    text = {
        SUPPORTED: "There is such a rank among those tested.",
        PARTLY: "It holds in part.",
        REJECTED: "Among the ranks tested there is none below which quantization costs more than the margin.",
        UNDECIDED: "The records decide neither way.",
        CONFOUNDED: "No verdict.",
    }[state]
    tested = ", ".join(map(str, ranks))
    return f"{text} Tested were ranks {tested}, on this base, task and training length: r* moves with all three and with the margin."
