"""How faithful a quantized cell is to its 16-bit twin, by rank: token match, embedding similarity, degradation, in one table."""

from __future__ import annotations

from collections.abc import Sequence

from loracle.report import wording
from loracle.report.columns import Table
from loracle.report.evidence import StudyData
from loracle.report.grids import Grid, Item
from loracle.report.tables import MATCH
from loracle.verdict import entries as words
from loracle.verdict.entries import Entry


def fidelity(data: StudyData, agreement: Table, entries: Sequence[Entry]) -> Grid | None:
    """One row for each quantized cell with a twin of which anything was measured; a confounded pair gets no yes or no."""
    matched = {str(row["cell"]): row for row in agreement.rows}
    costs = {str(e["arm"]): e for e in entries if e["question"] == "degradation" and e["estimate"] is not None}
    cells = [c for c in data.cells if c.reference and (c.id in matched or c.id in costs)]
    if not cells:
        return None
    rows = []
    for cell in cells:
        row, cost = matched.get(cell.id, {}), costs.get(cell.id)
        confounded = cost is not None and cost["verdict"] == "confounded"
        match, near = row.get("token_match_mean"), row.get("embedding_cosine_mean")
        low, high = row.get("token_match_low"), row.get("token_match_high")
        shown = (
            wording.NONE if match is None else f"{match:.3f}" + ("" if low is None else f" ({low:.3f} to {high:.3f})")
        )
        texts = [wording.count(cell.rank), shown, _reach(match, confounded), wording.fraction(row.get("exact_mean"))]
        texts += [wording.NONE if near is None else f"{near:.3f}", _reach(near, confounded), _degradation(cost)]
        verdict = str(cost["verdict"]) if cost else ""
        seeds = str(row.get("n") or (cost["n"] if cost else 0))
        rows.append(
            [
                Item(cell.label),
                *(Item(t, number=True) for t in texts),
                Item(verdict or wording.NONE, verdict),
                Item(seeds, number=True),
            ]
        )
    reach, margin = f"≥ {MATCH:g}?", _margin(list(costs.values()))
    heads = [
        "cell",
        "rank",
        "token match",
        reach,
        "identical",
        "embedding cosine",
        reach,
        "degradation",
        margin,
        "seeds",
    ]
    items = max((row["items"] or 0 for row in agreement.rows), default=0)
    note = "Against the 16-bit twin of the same seed, 95% intervals unless adjusted. Token match and embeddings are of greedy answers"
    note += f" to {items} items; ≥ {MATCH:g} is read off the mean." if items else " (no answers were compared)."
    return Grid("Fidelity to 16-bit by rank", heads, rows, note)


def _reach(value: float | None, confounded: bool) -> str:
    if value is None:
        return wording.NONE
    return "confounded" if confounded else "yes" if value >= MATCH else "no"


def _degradation(cost: Entry | None) -> str:
    if cost is None:
        return wording.NONE
    text = words.percent(cost["estimate"])
    return text if cost["interval"] is None else f"{text} ({words.bounds(tuple(cost['interval']), words.percent)})"


def _margin(costs: Sequence[Entry]) -> str:
    """The head of the column: the margin that the degradation is held against."""
    found = list(dict.fromkeys(wording.change(e["margin"]) for e in costs))
    return f"within {found[0]}?" if len(found) == 1 else "within the margin?"
