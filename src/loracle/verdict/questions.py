"""The study's questions, answered: evidence in, entries of verdicts.json out.

One question is primary (the first so marked, else the first that is about quality), and of it one comparison:
the largest rank of the setting that comes first in the plan. The rest of that question is one Holm family. Comparisons of other
questions stand at full level and are marked exploratory. r* needs no adjustment within a family (closed
testing). ``gain_kept`` (and ``mixed_precision`` where a cell has one) is asked with ``degradation``,
``rank_enough`` with ``rank_threshold``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from loracle.verdict import claims, likeness, ranks, resources, statements
from loracle.verdict.claims import Claim
from loracle.verdict.comparisons import Comparison, Judged, judge_family
from loracle.verdict.entries import Entry
from loracle.verdict.evidence import StudyEvidence, has_score, lacks_score
from loracle.verdict.knowledge import with_broken
from loracle.verdict.mixing import mixed_entries
from loracle.verdict.scope import compare, pairs, rank_of

Question = Mapping[str, Any]

ALONG = {"degradation": "gain_kept", "rank_threshold": "rank_enough"}
KNOWN = (
    "degradation",
    "gain_kept",
    "task_metric",
    "rank_threshold",
    "rank_enough",
    "similarity",
    "memory",
    "speed",
)
QUALITY = ("degradation", "task_metric", "gain_kept", "rank_threshold", "rank_enough")


def decide(study: StudyEvidence) -> list[Entry]:
    """Entries of verdicts.json, in the order of the questions."""
    asked = with_companions(study.questions)
    primary = _primary(asked)
    result: list[Entry] = []
    for question in asked:
        result += _answer(study, question, question["name"] == primary)
        if question["name"] == "degradation":
            result += mixed_entries(study, study.plan.get("looks"))
    return with_broken(study, result)


def primary_question(questions: Sequence[Question]) -> Question | None:
    """The one question that is not exploratory."""
    asked = with_companions(questions)
    name = _primary(asked)
    return next((q for q in asked if q["name"] == name), None)


def decide_primary(study: StudyEvidence) -> list[Entry]:
    """The entries of the primary question alone: what the looks of ``loracle run --decide`` go by."""
    question = primary_question(study.questions)
    return [] if question is None else _answer(study, question, True)


def with_companions(questions: Sequence[Question]) -> list[dict[str, Any]]:
    """The questions, each once, with those that are asked along; an unknown name is a ValueError."""
    asked: dict[str, dict[str, Any]] = {}
    own = {str(q["name"]) for q in questions}
    for question in questions:
        name = str(question["name"])
        if name not in KNOWN:
            raise ValueError(f"no question is called {name!r}: known are {', '.join(KNOWN)}")
        asked.setdefault(name, dict(question))
        along = ALONG.get(name)
        if along and along not in own:
            margin = None if along == "gain_kept" else question.get("margin")
            asked[along] = {
                "name": along,
                "margin": margin,
                "primary": False,
                "compare": question.get("compare"),
            }
    return list(asked.values())


def _primary(asked: Sequence[Question]) -> str | None:
    marked = [str(q["name"]) for q in asked if q.get("primary")]
    quality = [str(q["name"]) for q in asked if q["name"] in QUALITY]
    return next(iter(marked or quality), None)


def _answer(study: StudyEvidence, question: Question, primary: bool) -> list[Entry]:
    name, looks = str(question["name"]), study.plan.get("looks")
    if name in ("memory", "speed"):
        given = (resources.memory_entries if name == "memory" else resources.speed_entries)(study, question)
        return [e | {"primary": primary and i == 0, "exploratory": not primary} for i, e in enumerate(given)]
    if name == "similarity":
        given = likeness.similarity_entries(study, question)
        return [
            e | {"primary": primary and i == 0, "exploratory": not (primary and i == 0)} for i, e in enumerate(given)
        ]
    if name in ("rank_threshold", "rank_enough"):
        make = ranks.threshold_entries if name == "rank_threshold" else ranks.enough_entries
        given = make(study, _margin(question, claims.LOSS_MARGIN), looks, question.get("compare"))
        return [
            e | {"primary": primary and i == 0, "exploratory": not (primary and i == 0)} for i, e in enumerate(given)
        ]
    family = [c for claim in _claims(study, question) for c in _comparisons(study, claim, question.get("compare"))]
    return [statements.as_entry(study, j) for j in _standing(study, family, looks, primary)]


def _claims(study: StudyEvidence, question: Question) -> list[Claim]:
    if question["name"] == "task_metric":
        margin = _margin(question, claims.SCORE_MARGIN)
        return [claims.task_score(name, margin) for name in claims.SCORES if has_score(study, name)]
    make: Callable[[float], Claim] = claims.gain if question["name"] == "gain_kept" else claims.degradation
    default = claims.GAIN_MARGIN if question["name"] == "gain_kept" else claims.LOSS_MARGIN
    return [make(_margin(question, default))]


def _comparisons(study: StudyEvidence, claim: Claim, bundle: Any) -> list[Comparison]:
    held = pairs(study)
    if claim.metric in claims.SCORES:  # of several tasks, those that have this score
        held = [pair for pair in held if not all(lacks_score(study, str(cell["id"]), claim.metric) for cell in pair)]
    return [compare(study, claim, arm, reference, "precision", bundle) for arm, reference in held]


def _standing(
    study: StudyEvidence, family: Sequence[Comparison], looks: Sequence[int] | None, primary: bool
) -> list[Judged]:
    """Judged in the plan's order: the primary comparison alone, the others as one Holm family; or all
    exploratory.
    """
    if not primary or not family:
        return [replace(j, exploratory=True) for j in judge_family(study, family, looks, adjust=False)]
    settings = [{k: v for k, v in one.scope.items() if k not in ("precision", "rank", "metric")} for one in family]
    alike = [i for i, setting in enumerate(settings) if setting == settings[0]]
    first = max(alike, key=lambda i: (rank_of(family[i].pairing.arm) or 0, -i))
    rest = [c for i, c in enumerate(family) if i != first]
    judged = judge_family(study, rest, looks, adjust=True)
    judged.insert(first, replace(judge_family(study, [family[first]], looks, adjust=False)[0], primary=True))
    return judged


def _margin(question: Question, default: float) -> float:
    margin = question.get("margin")
    return default if margin is None else float(margin)
