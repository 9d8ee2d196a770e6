"""The table of groups: what quantization costs each group of evaluation rows, and the gap to the other groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from loracle.report.columns import named
from loracle.report.evidence import CellData, StudyData
from loracle.verdict.groups import LOSS, GroupEffects, group_effects

SHOWN = {"worse": "hit harder", "better": "hit less", "not shown": "not shown"}


def effects(data: StudyData) -> Iterator[tuple[CellData, GroupEffects]]:
    """Each quantized cell's effects by group: of the loss, then of the study's task metric."""
    for cell in data.cells:
        if cell.reference is None:
            continue
        for metric in (LOSS, data.task_metric()):
            found = group_effects(data.evidence(), cell.raw, metric) if metric else None
            if found is not None:
                yield cell, found


def rows(data: StudyData) -> Iterator[dict[str, Any]]:
    """Rows of ``groups.csv``."""
    for cell, found in effects(data):
        for effect in found.effects:
            low, high = effect.interval or (None, None)
            gap_low, gap_high = effect.gap_interval or (None, None)
            row = named(cell, cell.id) | {"reference": cell.reference, "metric": found.metric, "group": effect.group}
            row |= {"items": effect.items, "ungrouped": found.ungrouped, "n": found.n}
            row |= {"reference_mean": effect.reference, "arm_mean": effect.arm}
            row |= {"change": effect.change.estimate, "change_low": low, "change_high": high}
            row |= {"gap": effect.gap.estimate if effect.gap else None, "gap_low": gap_low, "gap_high": gap_high}
            row |= {
                "gap_level": 1.0 - effect.gap_alpha if effect.gap_interval else None,
                "gap_shown": SHOWN[effect.hit],
            }
            yield row | {"confounds": ", ".join(found.confounds)}
