"""H1 to H3 as the report shows them: the answer, its parts as a table, the likeness of updates over depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loracle.report import wording
from loracle.report.evidence import StudyData
from loracle.report.grids import Grid, Item
from loracle.report.inert import plain
from loracle.verdict import entries as words
from loracle.verdict.criterion import Depth, Moment, along, depth
from loracle.verdict.entries import Entry
from loracle.verdict.hypotheses import HYPOTHESES

NOTE = (
    "Hypotheses are exploratory: n counts paired seeds, but layers where a matrix was quantized by itself. "
    "All figures, intervals, levels and records are in verdicts.json under H1, H2 and H3."
)

NOT_ALONG = "Likeness along training was not measured: these runs kept no adapters at their evaluation points (diagnose.along_training)."


@dataclass(frozen=True)
class Hypothesis:
    """One hypothesis: its claim, the verdict, the answer in words, and its parts as a table (None where not asked) and in words:
    (verdict, part, statement)."""

    name: str
    claim: str
    verdict: str
    answer: str
    parts: Grid | None
    words: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Section:
    """The section “Hypotheses”; ``depth`` and ``along`` are None where that was not measured, ``along_note`` says why."""

    answers: Sequence[Hypothesis]
    depth: Grid | None
    along: Grid | None
    along_note: str
    note: str = NOTE


def section(data: StudyData, answers: Sequence[Entry]) -> Section:
    """Everything that the section says."""
    told = [_hypothesis(name, [e for e in answers if e["question"] == name]) for name in HYPOTHESES]
    depths, moments = _depths(data), _along(data)
    return Section(told, depths, moments, NOT_ALONG if depths is not None and moments is None else "")


def _hypothesis(name: str, found: Sequence[Entry]) -> Hypothesis:
    whole, parts = found[0], found[1:]
    rows = [
        [
            Item(_title(part)),
            Item(str(part["verdict"]), str(part["verdict"])),
            Item(_estimate(part), number=True),
            Item(_interval(part), number=True),
            Item(str(part["n"]), number=True),
            Item(str(len(part["records"])), number=True),
        ]
        for part in parts
    ]
    heads = ["part", "verdict", "estimate", "interval", "n", "records"]
    grid = Grid(f"{name} in parts", heads, rows) if rows else None
    told = [(str(part["verdict"]), _title(part), plain(part["statement"])) for part in parts]
    return Hypothesis(name, plain(whole["claim"]), str(whole["verdict"]), plain(whole["statement"]), grid, told)


def _title(part: Entry) -> str:
    scope = {k: v for k, v in part["scope"].items() if k != "part" and v is not None}
    shown = ", ".join(str(v) if k in ("precision", "base", "codec") else f"{k} {v}" for k, v in scope.items())
    return plain(f"{part['scope']['part']}{f' · {shown}' if shown else ''}")


def _shown(part: Entry, value: float) -> str:
    metric = str(part["metric"] or "")
    if metric.startswith("eval_loss_log_ratio"):
        return words.percent(value)
    if metric.startswith("delta_loss"):
        return f"{value:+.4f} nats"
    return f"{value:g}" if metric == "rank" else f"{value:.3f}"


def _estimate(part: Entry) -> str:
    return wording.NONE if part["estimate"] is None else _shown(part, part["estimate"])


def _interval(part: Entry) -> str:
    if part["interval"] is None or part["metric"] == "rank":
        return wording.NONE
    low, high = (_shown(part, value) for value in part["interval"])
    return f"{low} to {high} ({words.level_text(part['level'])})"


def _depths(data: StudyData) -> Grid | None:
    """Cosine at the first, middle and last layer, and whether it falls from early to late."""
    known = [(cell, found) for cell in data.cells if cell.reference and (found := depth(data.evidence(), cell.raw))]
    if not known:
        return None
    rows = []
    for cell, found in known:
        layers = ", ".join(map(str, found.layers))
        cosines = ", ".join(f"{value:.3f}" for value in found.cosines)
        null = ", ".join(wording.NONE if value is None else f"{value:.3f}" for value in found.null)
        texts = [cosines, null, _slope(found), str(found.n)]
        rows.append([Item(cell.label), Item(layers), *(Item(text, number=True) for text in texts)])
    heads = ["cell", "layers", "cosine", "null's cosine", "late less early (95% interval)", "pairs"]
    note = "First, middle and last layer, mean over pairs. Late less early: the last third of the layers less the first, pair by pair."
    return Grid("Likeness of the updates from early to late layers", heads, rows, note)


def _along(data: StudyData) -> Grid | None:
    """Cosine by step, the null's beside it."""
    known = [(cell, found) for cell in data.cells if cell.reference and (found := along(data.evidence(), cell.raw))]
    if not known:
        return None
    steps = sorted({moment.step for _, found in known for moment in found})
    rows = []
    for cell, found in known:
        by_step = {moment.step: moment for moment in found}
        texts = [_moment(by_step.get(step)) for step in steps]
        rows.append(
            [Item(cell.label), *(Item(text, number=True) for text in texts), Item(str(found[0].n), number=True)]
        )
    note = "Mean cosine of ΔW over modules and pairs at the evaluation points; in brackets the null's."
    return Grid(
        "Likeness of the updates along training", ["cell", *(f"step {step}" for step in steps), "pairs"], rows, note
    )


def _moment(moment: Moment | None) -> str:
    if moment is None:
        return wording.NONE
    return f"{moment.cosine:.3f}" + ("" if moment.null is None else f" ({moment.null:.3f})")


def _slope(found: Depth) -> str:
    if found.late_less_early is None:
        return wording.NONE
    around = "" if found.interval is None else f" ({found.interval[0]:+.3f} to {found.interval[1]:+.3f})"
    return f"{found.late_less_early:+.3f}{around}"
