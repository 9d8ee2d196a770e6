"""Whether a precision breaks the base before anything is trained.

    lost = (loss_q - loss_16) / (ln V - loss_16)

Losses per token of the untrained base on plain prose (on the evaluation set where that is all there is), quantized
and in 16 bits; ln V is that of guessing evenly among the vocabulary. Prose is what a base knows: on a strange prompt
format the 16-bit base is near guessing itself, and the share would be one of next to nothing. 0: nothing lost; 1: as
good as knowing nothing. Not defined for classification, whose base has no head, nor where the 16-bit base is itself no
better than guessing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from loracle.verdict import entries
from loracle.verdict.confounds import precision_label
from loracle.verdict.evidence import Record, StudyEvidence

BROKEN = (
    0.15  # seen: 0.03 under int3 and 0.25 under int2 on a healthy base, 0.3 under nf4 on one with a known 4-bit fault
)
LOSSES = ("base_plain_text_loss", "base_eval_loss")


def knowledge_lost(loss: float, reference: float, vocabulary: int) -> float | None:
    """The share of the base's knowledge that a precision loses; losses in nats per token."""
    room = math.log(vocabulary) - reference if vocabulary > 1 else 0.0
    return (loss - reference) / room if room > 0 else None


def lost_by(found: StudyEvidence, cell: Record) -> float | None:
    """The share that a cell's precision loses against its 16-bit twin; None where it is not defined or not known."""
    twin = found.cells.get(str(cell.get("reference")))
    if twin is None or _classifies(cell):
        return None
    both = ((base_loss(found, cell, name), base_loss(found, twin, name)) for name in LOSSES)
    loss, reference = next(((a, b) for a, b in both if a is not None and b is not None), (None, None))
    vocabulary = _vocabulary(found, (cell, twin))
    if loss is None or reference is None or vocabulary is None:
        return None
    return knowledge_lost(loss, reference, vocabulary)


def base_loss(found: StudyEvidence, cell: Record, name: str) -> float | None:
    """Mean of the untrained base's loss ``name`` over the cell's runs, nats per token."""
    known = [(r.get("metrics") or {}).get(name) for r in _records(found, cell)]
    values = [float(x) for x in known if isinstance(x, int | float) and math.isfinite(x)]
    return float(np.mean(values)) if values else None


def broken(found: StudyEvidence) -> dict[str, float]:
    """``{cell id: share lost}`` of the cells whose precision breaks the base (more than 15% is lost)."""
    shares = {cell_id: lost_by(found, cell) for cell_id, cell in found.cells.items()}
    return {cell_id: lost for cell_id, lost in shares.items() if lost is not None and lost > BROKEN}


def broken_words(cell: Record, lost: float) -> str:
    """``int2: broken on this base before training (lost 76% of what it knows over guessing).``"""
    share = f"lost {100 * lost:.0f}% of what it knows over guessing"
    return f"{precision_label(cell.get('precision'))}: broken on this base before training ({share})."


def with_broken(found: StudyEvidence, answers: Sequence[entries.Entry]) -> list[entries.Entry]:
    """The entries, those on an arm that is broken before training saying so."""
    shares = broken(found)
    told = []
    for entry in answers:
        cell = str(entry["arm"])
        words = f" {broken_words(found.cells[cell], shares[cell])}" if cell in shares else ""
        told.append(entry | {"statement": f"{entry['statement']}{words}"})
    return told


def _classifies(cell: Record) -> bool:
    config: Any = cell.get("config") or {}
    return (config.get("task") or {}).get("type") == "classification"


def _vocabulary(found: StudyEvidence, cells: Sequence[Record]) -> int | None:
    """The vocabulary's size, from a run's record or from the plan's cell."""
    for source in [*(r for cell in cells for r in _records(found, cell)), *cells]:
        size = source.get("vocab_size")
        if isinstance(size, int) and not isinstance(size, bool):
            return size
    return None


def _records(found: StudyEvidence, cell: Record) -> list[Record]:
    return list(found.runs.get(str(cell["id"]), {}).values())
