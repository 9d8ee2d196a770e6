"""Whether a mixed precision helped: the share of the loss between uniform quantization and 16 bits that it takes back.

    g = (uniform loss - mixed loss) / (uniform loss - 16-bit loss)

trained at the same settings, paired by seed and item. A ratio of two uncertain means, as ``gain.py`` has it (Fieller).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from loracle.verdict import entries, evidence, statements
from loracle.verdict.claims import Claim
from loracle.verdict.comparisons import Comparison, judge_family
from loracle.verdict.confounds import precision_label
from loracle.verdict.entries import Entry
from loracle.verdict.evidence import Pairing, Record, StudyEvidence
from loracle.verdict.gain import GainKept, gap_closed
from loracle.verdict.scope import arms, compare

MARGIN = 0.85
QUESTION = "mixed_precision"


def mixed_entries(found: StudyEvidence, looks: Sequence[int] | None) -> list[Entry]:
    """One entry for each cell of mixed precision that has both its uniform and its 16-bit twin; all exploratory."""
    judged = judge_family(found, comparisons(found), looks, adjust=False)
    return [statements.as_entry(found, replace(one, exploratory=True)) for one in judged]


def comparisons(found: StudyEvidence) -> list[Comparison]:
    """Mixed against 16 bits, the uniform twin at hand."""
    pairs = [(arm, uniform_twin(found, arm)) for arm in arms(found)]
    return [
        compare(found, closes(uniform), arm, found.cells[str(arm["reference"])], "precision")
        for arm, uniform in pairs
        if uniform is not None
    ]


def uniform_twin(found: StudyEvidence, arm: Record) -> Record | None:
    """The cell that is the mixed cell ``arm`` but for the layers kept; None where ``arm`` is not mixed or has none."""
    precision = arm.get("precision")
    if not isinstance(precision, Mapping):
        return None
    same = ("double_quant", "block_size", "compute_dtype")
    for cell in arms(found):
        mine, its = ([(c.get("config") or {}).get(key) for key in same] for c in (arm, cell))
        if (cell["precision"], cell["reference"]) == (precision.get("default"), arm["reference"]) and mine == its:
            return cell
    return None


def closes(uniform: Record, margin: float = MARGIN) -> Claim:
    """Closes at least ``margin`` of the gap that ``uniform`` leaves."""
    name = precision_label(uniform.get("precision"))
    return Claim(
        question=QUESTION,
        metric="gap_closed",
        bound=margin,
        margin=margin,
        better="higher",
        no_effect=0.0,
        measure=partial(_measure, uniform),
        spread=None,
        show=entries.share,
        words=f"{{arm}} closes at least {100 * margin:.3g}% of the gap in eval loss between {name} and {{reference}}{{where}}",
        headline=f"{{arm}} closes {{value}} of the gap in eval loss between {name} and {{reference}}{{where}}",
        margin_text=f"margin {100 * margin:.3g}%",
    )


def _measure(uniform: Record, found: StudyEvidence, pairing: Pairing, seeds: Sequence[int]) -> GainKept:
    lost = [s for s in seeds if found.state(str(uniform["id"]), s)]
    if lost:
        raise ValueError(f"{precision_label(uniform.get('precision'))} has no finished run of seed {lost[0]}")
    arm, reference, tokens = evidence.losses(found, pairing, seeds)
    beside, again, _ = evidence.losses(found, replace(pairing, arm=uniform), seeds)
    if beside.shape != arm.shape or (again != reference).any():
        raise ValueError("the three were not scored on the same items")
    return gap_closed(arm, reference, beside, tokens)
