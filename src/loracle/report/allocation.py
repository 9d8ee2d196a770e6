"""Where rank is needed: the two measures by layer, the ranks that either would give at equal parameters, and arms that tried it.

Reads ``diagnose/importance.json``. The study file that would try the proposal is written by ``proposals.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loracle.report import wording
from loracle.report.columns import Table, named, summary
from loracle.report.evidence import CellData, StudyData, number
from loracle.report.grids import Grid, Item
from loracle.report.inert import plain
from loracle.verdict import recommendation
from loracle.verdict.allocation import MOST, TOLERANCE, allocate
from loracle.verdict.confounds import differences
from loracle.verdict.entries import Entry
from loracle.verdict.methods import loss_change
from loracle.verdict.patterns import against_uniform, pattern_of

Row = Mapping[str, Any]

MEASURES = ("spectrum", "gradient")
WEIGHTS = {"spectrum": "effective_rank", "gradient": "gradient_norm"}
FIGURES = ("frobenius", "stable_rank", "effective_rank")


@dataclass(frozen=True)
class Proposal:
    """Ranks by layer in place of ``cell``'s one rank. ``sites``: importance.json's, with both measures; ``ranks``: measure → a rank
    a site; ``reasons``: measure → why there are none; ``learned``: the cell whose updates were measured."""

    cell: CellData
    rank: int
    sites: Sequence[Row]
    learned: CellData | None
    ranks: Mapping[str, Sequence[int]]
    reasons: Mapping[str, str]

    def params(self, ranks: Sequence[int] | None = None) -> int:
        """Trainable parameters of the adapters at these ranks; None: at the uniform one."""
        each = ranks if ranks is not None else [self.rank] * len(self.sites)
        return sum(r * int(site["params_per_rank"]) for r, site in zip(each, self.sites, strict=True))


def propose(data: StudyData, entries: Sequence[Entry]) -> Proposal | None:
    """The proposal for the recommended cell, else for the first that has one rank for all of a LoRA's layers; None without measures."""
    measured = data.importance or {}
    settings = {str(cell): entry for entry in measured.get("gradients") or [] for cell in entry.get("cells") or []}
    cells = [c for c in data.cells if c.id in settings and c.rank is not None and not pattern_of(c.raw)]
    if not cells:
        return None
    advised = str(recommendation(entries, data.evidence()).get("cell"))
    cell = next((c for c in cells if c.id == advised), cells[0])
    learned, spectra = _learned(cell, cells, measured.get("spectra") or [])
    sites = [{**site, **_means(site, spectra)} for site in settings[cell.id]["sites"]]
    ranks: dict[str, list[int]] = {}
    reasons: dict[str, str] = {}
    for measure in MEASURES:
        if measure == "spectrum" and learned is None:
            reasons[measure] = "no run has finished"
            continue
        weights = [number(site.get(WEIGHTS[measure])) or 0.0 for site in sites]
        costs, widths = ([int(site[key]) for site in sites] for key in ("params_per_rank", "width"))
        try:
            ranks[measure] = allocate(weights, costs, widths, int(cell.rank or 1))
        except ValueError as error:
            reasons[measure] = str(error)
    return Proposal(cell, int(cell.rank or 1), sites, learned, ranks, reasons)


def _learned(
    cell: CellData, cells: Sequence[CellData], spectra: Sequence[Row]
) -> tuple[CellData | None, list[Sequence[Row]]]:
    """The cell like ``cell`` but for its rank that has the largest one of those with finished runs, and its runs' spectra."""
    alike = [c for c in cells if set(_changed(c, cell)) <= {"rank", "alpha"}]
    known = {str(run["cell"]) for run in spectra}
    found = max((c for c in alike if c.id in known), key=lambda c: c.rank or 0, default=None)
    return found, [run["sites"] for run in spectra if found is not None and run["cell"] == found.id]


def _changed(a: CellData, b: CellData) -> tuple[str, ...]:
    return differences(a.raw.get("config") or {}, b.raw.get("config") or {}).changed


def _means(site: Row, runs: Sequence[Sequence[Row]]) -> dict[str, float | None]:
    """Means over runs of a site's figures; None where no run has one."""
    own = [row for run in runs for row in run if row["name"] == site["name"]]
    known = {key: [v for row in own if (v := number(row.get(key))) is not None] for key in FIGURES}
    return {key: wording.mean(values) for key, values in known.items()}


# -- tables ---------------------------------------------------------------------------------------------------------------


def rows(data: StudyData, entries: Sequence[Entry]) -> Iterator[dict[str, Any]]:
    """Rows of ``rank_allocation.csv``: one a site."""
    found = propose(data, entries)
    for i, site in enumerate(found.sites if found else ()):
        assert found is not None
        row = named(found.cell, found.cell.id)
        row |= {key: site.get(key) for key in ("name", "module", "layer", "kind", "params_per_rank", "width")}
        row |= {"learned_cell": found.learned.id if found.learned else None, "gradient_norm": site.get("gradient_norm")}
        row |= {f"{key}_mean": site.get(key) for key in FIGURES} | {"uniform_rank": found.rank}
        yield row | {f"{measure}_rank": ranks[i] for measure, ranks in found.ranks.items()}


def arms(data: StudyData) -> Iterator[dict[str, Any]]:
    """Rows of ``rank_patterns.csv``: each cell with ranks by layer beside its twin with one rank for all, paired by seed."""
    for cell in data.cells:
        compared = against_uniform(data.evidence(), cell.raw)
        if compared is None:
            continue
        found = loss_change(data.evidence(), compared)
        low, high = (found.interval(0.95) or (None, None)) if found else (None, None)
        parts = {"": found.estimate if found else None, "_low": low, "_high": high}
        yield {
            **named(cell, cell.id),
            "trainable_params": cell.raw.get("trainable_params"),
            **summary("eval_loss", data.values(cell.id, "eval_loss")),
            "against": compared.reference["id"],
            "against_trainable_params": compared.reference.get("trainable_params"),
            "against_differs_in": ", ".join(compared.guard.confounds) or None,
            "difference_n": len(compared.pairing.seeds),
            **{f"eval_loss_change{k}_percent": None if v is None else 100 * math.expm1(v) for k, v in parts.items()},
        }


# -- what a reader sees ---------------------------------------------------------------------------------------------------


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
