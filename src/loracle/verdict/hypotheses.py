"""Three hypotheses that are often put to LoRA and QLoRA, answered from whatever a study recorded.

H1 (``criterion``): a cosine above 0.95 makes QLoRA preferable. H2 (``matrices``): matrices differ in sensitivity to
quantization, Q and V from K and the MLP. H3 (``minimum_rank``): there is a minimum rank. Each is supported, partially
supported, rejected, undecided, confounded, or not asked where the study lacks the arms. All are exploratory: they were not
the study's question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from loracle.verdict import criterion, matrices, minimum_rank
from loracle.verdict.entries import Entry
from loracle.verdict.evidence import StudyEvidence
from loracle.verdict.questions import decide

HYPOTHESES = ("H1", "H2", "H3")


def hypotheses(found: StudyEvidence, given: Sequence[Entry]) -> list[Entry]:
    """Entries of verdicts.json; ``given`` are those of the study's own questions."""
    costs = _asked(found, given, "degradation", "degradation")
    thresholds = _asked(found, given, "rank_threshold", "rank_threshold")
    enough = _asked(found, given, "rank_threshold", "rank_enough")
    return [
        *criterion.answer(found, costs, _bundle(found, "similarity")),
        *matrices.answer(found, _bundle(found, "degradation")),
        *minimum_rank.answer(found, thresholds, enough),
    ]


def _asked(found: StudyEvidence, given: Sequence[Entry], question: str, name: str) -> list[Entry]:
    """The entries of ``name``; where the study did not put ``question`` they are made with its default margin."""
    mine = [e for e in given if e["question"] == name]
    if mine or any(q["name"] == question for q in found.questions):
        return mine
    asked = {"name": question, "margin": None, "primary": False, "compare": None}
    return [e for e in decide(replace(found, questions=[asked])) if e["question"] == name]


def _bundle(found: StudyEvidence, question: str) -> Any:
    return next((q.get("compare") for q in found.questions if q["name"] == question), None)
