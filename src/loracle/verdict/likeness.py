"""Entries on the similarity of learned updates: one for each quantized cell, always beside the null."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from loracle.verdict import entries, similarity
from loracle.verdict.evidence import Record, StudyEvidence
from loracle.verdict.noninferiority import too_few
from loracle.verdict.paired import MIN_SEEDS
from loracle.verdict.scope import arms, check, label, method_of, rank_of, scope_of

LEVEL = 0.95


def similarity_entries(found: StudyEvidence, question: Mapping[str, Any]) -> list[entries.Entry]:
    """The mean cosine of delta-W is above THRESHOLD (the question's margin, default 0.95), for each quantized LoRA cell.

    Other methods have no delta-W = scale·B·A to compare.
    """
    margin = question.get("margin")
    threshold = similarity.THRESHOLD if margin is None else float(margin)
    return [_entry(found, a, threshold, question.get("compare")) for a in arms(found) if method_of(a) == "lora"]


def pairs_of(found: StudyEvidence, cell: Record) -> list[similarity.Pair]:
    """Precision pairs whose second run is one of the cell's finished runs."""
    mine = {str(r["id"]) for r in found.runs.get(str(cell["id"]), {}).values() if r.get("status") == "done"}
    pairs = (found.similarity or {}).get("pairs", [])
    return [p for p in pairs if p.get("kind") == "precision" and str(p.get("b")) in mine]


def _entry(found: StudyEvidence, arm: Record, threshold: float, bundle: Any) -> entries.Entry:
    reference = found.cells[str(arm["reference"])]
    pairs = [p for p in pairs_of(found, arm) if math.isfinite(similarity.pair_value(p))]
    everything = (found.similarity or {}).get("pairs", [])
    null, alike = similarity.null_pairs(everything, rank_of(arm), arm.get("targets"))
    answer = similarity.judge(
        [similarity.pair_value(p) for p in pairs], [similarity.pair_value(p) for p in null], threshold, LEVEL
    )
    stands = check(found, arm, reference, "precision", bundle)
    state = "confounded" if stands.confounded else answer.verdict
    difference = {None: None, True: "worse", False: "not shown"}[answer.below_null]
    needs = too_few(answer.n).as_dict() if answer.n < MIN_SEEDS else None
    return entries.entry(
        question="similarity",
        scope=scope_of(found, arm),
        claim=f"the updates learned with {label(arm)} and {label(reference)} have a mean cosine above {threshold:g}"
        + entries.where(scope_of(found, arm)),
        verdict=state,
        statement=_statement(found, arm, reference, answer, state, null_alike=alike or not null)
        + _confound_text(stands.text),
        difference=None if stands.confounded else difference,
        metric="delta_w_cosine",
        estimate=answer.estimate,
        interval=answer.interval,
        margin=threshold,
        level=LEVEL,
        n=answer.n,
        needs=needs,
        arm=arm["id"],
        reference=reference["id"],
        confounds=stands.confounds,
        records=[str(p[k]) for p in [*pairs, *null] for k in ("a", "b")],
    )


def _statement(
    found: StudyEvidence,
    arm: Record,
    reference: Record,
    answer: similarity.SimilarityVerdict,
    state: str,
    null_alike: bool,
) -> str:
    names = f"of {label(arm)} and {label(reference)}{entries.where(scope_of(found, arm))}"
    if answer.estimate is None:
        return f"The updates {names} were not compared; undecided."
    known = f"{answer.interval[0]:.3f} to {answer.interval[1]:.3f}" if answer.interval else ""
    interval = f"95% interval {known}" if known else "no interval below three seeds"
    figures = f"{interval}, {entries.seeds_text(answer.n)}"
    text = f"The updates {names} have a mean cosine of {answer.estimate:.3f} ({figures}): {state}."
    text += f" {answer.text[0].upper()}{answer.text[1:]}."
    return text if null_alike else f"{text} The null is of other ranks or targets."


def _confound_text(text: str) -> str:
    return f" {text[0].upper()}{text[1:]}." if text else ""
