"""What a cell needs of memory, and on what ground it is said: a probe's peak, a predicted peak, or predicted parts.

Figures are only held against each other on the same ground: a measured peak beside a predicted one says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loracle.report.columns import Table
from loracle.report.evidence import number

BASES = ("measured peak", "predicted peak", "predicted parts")
"""From the best to the weakest; parts leave out what was not predicted."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of a cell in its true storage; ``device`` is where a probe measured them."""

    bytes: int
    basis: str
    device: str | None
    storage: str


def footprints(memory: Table) -> dict[str, dict[str, Footprint]]:
    """``{cell: {basis: figure}}`` from memory.csv's rows; dequantized storage is not what a cell needs."""
    found: dict[str, dict[str, Footprint]] = {}
    for row in memory.rows:
        mine = found.setdefault(str(row["cell"]), {})
        if row["component"] not in ("peak", "sum_of_known") or row["storage"] == "dequantized":
            continue
        peak = row["component"] == "peak"
        given = {"predicted peak" if peak else "predicted parts": row["predicted_bytes"]}
        given |= {"measured peak": row["measured_bytes"]} if peak else {}
        for basis, value in given.items():
            size = number(value)
            if size:
                device = row["device"] if basis == "measured peak" else None
                mine.setdefault(basis, Footprint(int(size), basis, device, str(row["storage"])))
    return found


def shared_basis(found: Mapping[str, Mapping[str, Footprint]], cells: Sequence[str]) -> str | None:
    """The best ground on which all these cells have a figure, measured ones on one device; None where there is none."""
    for basis in BASES:
        figures = [found.get(cell, {}).get(basis) for cell in cells]
        devices = {figure.device for figure in figures if figure is not None}
        if figures and None not in figures and len(devices) == 1:
            return basis
    return None


def best_basis(found: Mapping[str, Mapping[str, Footprint]], cells: Sequence[str]) -> str | None:
    """The ground that all cells share, else the best that any has: the others are then left out."""
    return shared_basis(found, cells) or next((b for b in BASES if any(b in found.get(c, {}) for c in cells)), None)
