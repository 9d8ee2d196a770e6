"""The tables of layer sensitivity (what quantizing one part of a base by itself costs) and of mixed precision."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from loracle.report.evidence import StudyData, number

ABOUT = ("base", "codec", "double_quant", "block_size", "text", "when", "run", "tokens")
FIGURES = ("delta_loss", "kl", "agreement", "params")
ABOUT_MIX = ("base", "codec", "sensitive", "budget", "margin", "text", "tokens", "needed", "reason")
FIGURES_MIX = ("kept_share", "bits_per_weight", "extra_bytes", "delta_loss", "kl", "agreement")


def sensitivity(data: StudyData) -> Iterator[dict[str, Any]]:
    """Rows of ``layer_sensitivity.csv``: every unit of every sweep, worst first within its kind of unit."""
    for sweep in (data.sensitivity or {}).get("sweeps") or []:
        places: dict[str, int] = {}
        about = {key: sweep.get(key) for key in ABOUT}
        for unit in sweep.get("units") or []:
            name = str(unit.get("unit"))
            places[name] = places.get(name, 0) + 1
            row = about | {"unit": name, "place": places[name], "base_loss": number(sweep.get("base_loss"))}
            row |= {key: unit.get(key) for key in ("module", "layer", "kind")}
            yield row | {key: number(unit.get(key)) for key in FIGURES[:3]} | {"params": unit.get("params")}


def mixed_precision(data: StudyData) -> Iterator[dict[str, Any]]:
    """Rows of ``mixed_precision.csv``: of each choice the uniform precision, then every set that was tried, growing."""
    for mix in (data.mixed or {}).get("mixes") or []:
        about = {key: mix.get(key) for key in ABOUT_MIX}
        kept = mix.get("kept") or []
        for place, step in enumerate([mix.get("uniform") or {}, *(mix.get("path") or [])]):
            row = {key: number(step.get(key)) for key in FIGURES_MIX}
            yield about | {"step": place, "added": step.get("added"), "chosen": place == len(kept)} | row
