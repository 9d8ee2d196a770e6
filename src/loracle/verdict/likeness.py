"""Entries on the similarity of learned updates: one for each quantized cell, always beside the null."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from loracle.verdict import entries, similarity
from loracle.verdict.confounds import differences, listed
from loracle.verdict.evidence import Record, StudyEvidence, pair
from loracle.verdict.noninferiority import too_few
from loracle.verdict.paired import MIN_SEEDS
from loracle.verdict.scope import arms, check, label, method_of, rank_of, scope_of, unlike_device

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


def null_of(found: StudyEvidence, rank: Any, targets: Any) -> tuple[list[similarity.Pair], bool, list[str]]:
    """The null's pairs for a rank and targets, whether they are of just these, and what others differ in beside the
    data order: those are no null and are left out.
    """
    pairs = (found.similarity or {}).get("pairs") or []
    unsound = {id(p): beside for p in pairs if p.get("kind") == "null" and (beside := _beside_order(found, p))}
    null, alike = similarity.null_pairs([p for p in pairs if id(p) not in unsound], rank, targets)
    return null, alike, list(dict.fromkeys(name for beside in unsound.values() for name in beside))


def _beside_order(found: StudyEvidence, pair: similarity.Pair) -> list[str]:
    """What two runs of a null pair differ in that is not the data order."""
    known = {str(r["id"]): r for r in found.records}
    a, b = known.get(str(pair.get("a"))), known.get(str(pair.get("b")))
    if a is None or b is None:
        return []
    left, right = a.get("config") or {}, b.get("config") or {}
    seeds = ["init_seed"] if left.get("init_seed") != right.get("init_seed") else []
    return [*differences(left, right).changed, *seeds, *unlike_device(a, b)]


def _entry(found: StudyEvidence, arm: Record, threshold: float, bundle: Any) -> entries.Entry:
    reference = found.cells[str(arm["reference"])]
    pairs = [p for p in pairs_of(found, arm) if math.isfinite(similarity.pair_value(p))]
    null, alike, unsound = null_of(found, rank_of(arm), arm.get("targets"))
    answer = similarity.judge(
        [similarity.pair_value(p) for p in pairs], [similarity.pair_value(p) for p in null], threshold, LEVEL
    )
    stands = check(found, arm, reference, "precision", bundle, pair(found, arm, reference))
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
        + _confound_text(stands.text)
        + _confound_text(f"pairs for the null that also differ in {listed(unsound)} are left out" if unsound else ""),
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
        return f"The updates {names} were not compared; {_end(state)}."
    known = f"{answer.interval[0]:.3f} to {answer.interval[1]:.3f}" if answer.interval else ""
    interval = f"95% interval {known}" if known else "no interval below three seeds"
    figures = f"{interval}, {entries.seeds_text(answer.n)}"
    text = f"The updates {names} have a mean cosine of {answer.estimate:.3f} ({figures}): {_end(state)}."
    text += f" {answer.text[0].upper()}{answer.text[1:]}."
    return text if null_alike else f"{text} The null is of other ranks or targets."


def _confound_text(text: str) -> str:
    return f" {text[0].upper()}{text[1:]}." if text else ""


def _end(state: str) -> str:
    return "confounded, so no verdict" if state == "confounded" else state
