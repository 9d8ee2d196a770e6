"""The table of layer sensitivity: what quantizing one part of a base by itself costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from loracle.report.evidence import StudyData, number

FIGURES = ("delta_loss", "kl", "agreement", "params")


def sensitivity(data: StudyData) -> Iterator[dict[str, Any]]:
    """Rows of ``layer_sensitivity.csv``: every unit of every sweep, worst first within its kind of unit."""
    for sweep in (data.sensitivity or {}).get("sweeps") or []:
        places: dict[str, int] = {}
        about = {key: sweep.get(key) for key in ("base", "codec", "double_quant", "block_size", "text", "tokens")}
        for unit in sweep.get("units") or []:
            name = str(unit.get("unit"))
            places[name] = places.get(name, 0) + 1
            row = about | {"unit": name, "place": places[name], "base_loss": number(sweep.get("base_loss"))}
            row |= {key: unit.get(key) for key in ("module", "layer", "kind")}
            yield row | {key: number(unit.get(key)) for key in FIGURES[:3]} | {"params": unit.get("params")}
