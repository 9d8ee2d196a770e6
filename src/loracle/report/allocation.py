"""Where rank is needed, as a reader sees it: proposed ranks by layer and kind, and the arms that tried such."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loracle.report import wording
from loracle.report.columns import Table
from loracle.report.evidence import StudyData
from loracle.report.grids import Grid, Item
from loracle.report.inert import plain
from loracle.report.tables_allocation import MEASURES, Proposal, Row, propose
from loracle.verdict.allocation import MOST, TOLERANCE
from loracle.verdict.entries import Entry


def grids(data: StudyData, entries: Sequence[Entry], tables: Mapping[str, Table]) -> list[Grid]:
    """Ranks by layer and kind, and the arms that were tried; empty where nothing was measured or tried."""
    found = propose(data, entries)
    shown = [_by_layer(found)] if found is not None else []
    tried = tables["rank_patterns"].rows
    return [*shown, *([_tried(tried)] if tried else [])]


def _by_layer(found: Proposal) -> Grid:
    kinds = list(dict.fromkeys(str(site["kind"]) for site in found.sites))
    place: dict[Any, dict[str, list[int]]] = {}
    for i, site in enumerate(found.sites):
        place.setdefault(site["layer"], {}).setdefault(str(site["kind"]), []).append(i)
    lines = [
        [
            Item(wording.NONE if layer is None else str(layer)),
            *(Item(_pair(found, here.get(kind, ())), number=True) for kind in kinds),
        ]
        for layer, here in place.items()
    ]
    total = [f"{measure} {found.params(ranks):,}" for measure, ranks in found.ranks.items()]
    learned = f", {plain(found.learned.label)}" if found.learned else ""
    note = (
        f"In each cell: rank by spectrum · rank by gradient, in place of {found.rank} everywhere. Spectrum: in proportion to the "
        f"effective rank of the learned updates (mean over seeds{learned}). Gradient: in proportion to the norm of the loss's "
        f"gradient before training. At least 1, at most {MOST} times the uniform rank, trainable parameters within {TOLERANCE:.0%}: "
        f"{wording.listed([f'uniform {found.params():,}', *total])}. "
        + "".join(f"No ranks by {measure}: {plain(why)}. " for measure, why in found.reasons.items())
        + "Measured, not shown to help: proposals/rank_pattern.yaml is the study that tries it. "
        "Figures by layer are in tables/rank_allocation.csv."
    )
    return Grid(f"Ranks by layer, proposed for {plain(found.cell.label)}", ["layer", *map(plain, kinds)], lines, note)


def _pair(found: Proposal, at: Sequence[int]) -> str:
    """``5 · 12``; several sites of one kind in a layer one after the other."""
    texts = [" · ".join(str(found.ranks[m][i]) if m in found.ranks else wording.NONE for m in MEASURES) for i in at]
    return "; ".join(texts) or wording.NONE


def _tried(tried: Sequence[Row]) -> Grid:
    lines = []
    for row in tried:
        change, low, high = (row[f"eval_loss_change{part}_percent"] for part in ("", "_low", "_high"))
        text = wording.NONE if change is None else f"{change:+.1f}%"
        text += "" if low is None else f" ({low:+.1f}% to {high:+.1f}%)"
        sizes = [wording.count(row[key]) for key in ("trainable_params", "against_trainable_params")]
        cells = [*sizes, wording.loss(row["eval_loss_mean"]), text, str(row["difference_n"])]
        also = plain(row["against_differs_in"] or "nothing")
        lines.append([Item(plain(row["label"])), *(Item(cell, number=True) for cell in cells), Item(also)])
    note = (
        "Against the cell with one rank for all layers that is alike in everything else, paired by seed; 95% intervals over seeds and "
        "items, none below three seeds. A measurement, not a verdict: no margin was set."
    )
    heads = ["cell", "parameters", "of uniform", "eval loss", "change against uniform", "seeds", "also differs in"]
    return Grid("Ranks by layer, tried", heads, lines, note)
