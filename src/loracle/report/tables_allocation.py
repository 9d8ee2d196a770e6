"""The tables of where rank is needed: two measures by layer, the ranks that either would give at equal parameters, arms that tried it.

Reads ``diagnose/importance.json``. The study file that would try the proposal is written by ``proposals.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loracle.report import wording
from loracle.report.columns import named, summary
from loracle.report.evidence import CellData, StudyData, number
from loracle.verdict import recommendation
from loracle.verdict.allocation import allocate
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


# -- rows -----------------------------------------------------------------------------------------------------------------


def allocation(data: StudyData, entries: Sequence[Entry]) -> Iterator[dict[str, Any]]:
    """Rows of ``rank_allocation.csv``: one a site."""
    found = propose(data, entries)
    for i, site in enumerate(found.sites if found else ()):
        assert found is not None
        row = named(found.cell, found.cell.id)
        row |= {key: site.get(key) for key in ("name", "module", "layer", "kind", "params_per_rank", "width")}
        row |= {"learned_cell": found.learned.id if found.learned else None, "gradient_norm": site.get("gradient_norm")}
        row |= {f"{key}_mean": site.get(key) for key in FIGURES} | {"uniform_rank": found.rank}
        yield row | {f"{measure}_rank": ranks[i] for measure, ranks in found.ranks.items()}


def rank_patterns(data: StudyData) -> Iterator[dict[str, Any]]:
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
