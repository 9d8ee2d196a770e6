"""The table of layer variants: adapters that differ in their targets, at equal rank or at equal parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from loracle.report.columns import named, summary
from loracle.report.evidence import StudyData
from loracle.verdict.layers import Variant, variants
from loracle.verdict.resources import probe_of

LEVEL = 0.95


def layer_variants(data: StudyData) -> Iterator[dict[str, Any]]:
    """Rows of ``layer_variants.csv``."""
    for variant in variants(data.evidence()):
        cell, group = data.by_cell[str(variant.cell["id"])], variant.group
        probe = probe_of(data.evidence(), cell.raw) or {}
        row = named(cell, cell.id) | summary("eval_loss", data.values(cell.id, "eval_loss"))
        row |= {
            "basis": group.basis,
            "parameters_apart_percent": None if group.apart is None else 100 * group.apart,
            "trainable_params": cell.raw.get("trainable_params"),
            "reference": cell.reference,
            "drop_n": variant.n or None,
            "peak_allocated_bytes": probe.get("peak_allocated_bytes"),
            "predicted_bytes": cell.raw.get("predicted_bytes"),
            "best": variant.best,
            "differs_in": ", ".join(variant.differs_in),
        }
        yield row | _drop(variant)


def _drop(variant: Variant) -> dict[str, Any]:
    if variant.drop is None:
        return {}
    low, high = variant.drop.interval(LEVEL) or (None, None)
    parts = {"": variant.drop.estimate, "_low": low, "_high": high}
    return {f"drop{part}_percent": None if v is None else 100 * math.expm1(v) for part, v in parts.items()}
