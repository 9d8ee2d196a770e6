"""Looks: the numbers of seeds at which the primary question is judged, fixed in plan.json before training.

The plan holds the first look's runs, and under ``later`` those of every later one, cohorts included: to go on is to move
one entry of ``later`` up. So nothing is composed after the results are known, and finished runs keep their bits.
Not here: the level of each look and the verdicts (``verdict.sequential``, ``verdict.comparisons``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loracle.base.errors import SpecError, StoreError
from loracle.spec.study import Decide, Study
from loracle.store.files import write_json
from loracle.store.layout import StudyFolder
from loracle.study.states import is_final, run_record

Judge = Callable[[Path], Sequence[Mapping[str, Any]]]
"""Entries of verdicts.json of the primary question, from the folder's records."""

MIN_SEEDS = 3


def with_looks(study: Study, fixed: Sequence[int] | None = None) -> Study:
    """The study with looks: ``fixed``, its own, or 3, 5 and 8 seeds (and its own number where that is larger)."""
    if fixed is None and study.decide is not None:
        return study
    usual = Decide().looks
    own = (len(study.seeds),) if len(study.seeds) > usual[-1] else ()
    return study.model_copy(update={"decide": Decide(looks=tuple(fixed or (*usual, *own)))})


def one_more(n: int) -> tuple[int, int]:
    """The looks of a study of ``n`` seeds that was planned without: the one it had, and one more (5 → 5 and 8).

    Its intervals took half of the error that looks may share, as the first of two would have; so one look is left. Its
    number of seeds follows from ``n`` alone, never from results: else the error would not hold.
    """
    return n, max(n + 2, math.ceil(1.6 * n))


def named_seeds(study: Study) -> tuple[int, ...]:
    """The seeds of all looks, in order: the study's own, then the whole numbers above the largest of them."""
    wanted = study.decide.looks[-1] if study.decide else len(study.seeds)
    following = range(max(study.seeds) + 1, max(study.seeds) + 1 + max(wanted - len(study.seeds), 0))
    return (*study.seeds, *following)[:wanted]


def stages(study: Study) -> list[tuple[int, tuple[int, ...]]]:
    """(number of seeds, the seeds that it adds) of each look; of a study without looks one stage of all its seeds."""
    seeds = named_seeds(study)
    fixed = study.decide.looks if study.decide else (len(seeds),)
    return [(n, seeds[before:n]) for before, n in zip((0, *fixed), fixed, strict=False)]


def described(study: Study) -> dict[str, Any]:
    """What the plan says of its looks: the numbers, all seeds, and the question that is judged at each."""
    assert study.decide is not None
    return {"looks": list(study.decide.looks), "look_seeds": list(named_seeds(study)), "look_question": question(study)}


def question(study: Study) -> dict[str, Any]:
    """The primary question; a ``SpecError`` where seeds do not decide it."""
    from loracle.verdict.questions import QUALITY, primary_question

    found = primary_question([q.model_dump(mode="json") for q in study.questions])
    if found is None or found["name"] not in QUALITY:
        raise SpecError(f"looks need a primary question that seeds decide: {', '.join(QUALITY)}", "questions")
    return {key: found.get(key) for key in ("name", "margin", "compare")}


def same_looks(study: Study, plan: Mapping[str, Any]) -> bool:
    """Whether the plan's looks are the study's; a study that names none takes the plan's."""
    return study.decide is None or plan.get("looks") == list(study.decide.looks)


def bound(study: Study, plan: Mapping[str, Any]) -> Study:
    """The study with the looks of ``plan``, at which its folder has been judged. What would take them back is a ``StoreError``:
    another claim, other seeds, more seeds than the last look has.
    """
    _same_question(study, plan)
    if not same_looks(study, plan):
        raise StoreError(f"decide.looks: fixed as {plan['looks']} before training; others need a new folder")
    looked = with_looks(study, plan["looks"])
    beyond = len(study.seeds) > plan["looks"][-1] and study.decide is None  # else its own looks leave seeds out
    if list(named_seeds(looked)) != plan["look_seeds"] or beyond:
        raise StoreError(f"seeds: fixed for this folder's looks as {plan['look_seeds']}; others need a new folder")
    return looked


def caught_up(plan: dict[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """A changed study's new plan, at the look that the folder has come to: what was seen is not unseen."""
    while len(plan["later"]) > len(before["later"]):
        _go_on(plan)
    return plan


def _same_question(study: Study, plan: Mapping[str, Any]) -> None:
    """Refuse to go on with another claim than the one that was judged at the looks so far."""
    if question(study) != plan["look_question"]:
        was = plan["look_question"]
        raise StoreError(
            f"the looks of this folder are at {was['name']} with margin {was['margin'] or 'by default'}: "
            "another question or margin needs a folder of its own"
        )


@dataclass(frozen=True)
class Standing:
    """Where a study with looks stands, in words, and whether the next look's seeds are due."""

    go_on: bool
    text: str


def standing(layout: StudyFolder, plan: Mapping[str, Any], judge: Judge) -> Standing:
    """Judge the look whose runs have ended."""
    look = plan["looks"][len(plan["looks"]) - 1 - len(plan["later"])]
    at = f"look at {look} of {', '.join(map(str, plan['looks']))} seeds"
    waiting = sum(
        not is_final(layout, run_record(layout, run["id"])) and not _too_large(layout, run) for run in plan["runs"]
    )
    if waiting:
        return Standing(False, f"{at}: waits for {waiting} runs that did not finish; run again with --decide")
    entries = judge(layout.root)
    open_ = [entry for entry in entries if entry["verdict"] == "undecided" and entry["n"]]
    name = plan["look_question"]["name"]
    if not open_:
        return Standing(False, f"{at}: {name} has its answer, no seeds are added")
    count = f"{name} is undecided in {len(open_)} of {len(entries)} answers"
    if not plan["later"]:
        return Standing(False, f"{at}: {count}; it was the last look, so the answer stands")
    return Standing(True, f"{at}: {count}, going on to {plan['later'][0]['look']} seeds")


def _too_large(layout: StudyFolder, run: Mapping[str, Any]) -> bool:
    """Never started for want of memory: an end, as far as a look on this machine goes."""
    return (run_record(layout, run["id"]) or {}).get("status") == "oom"


def go_on(layout: StudyFolder, plan: dict[str, Any]) -> None:
    """The next look's runs and cohorts are the plan's from now on; written before any of them is trained."""
    _go_on(plan)
    write_json(layout.plan, plan)


def _go_on(plan: dict[str, Any]) -> None:
    following = plan["later"].pop(0)
    plan["runs"] += following["runs"]
    plan["cohorts"] += following["cohorts"]


def extended(plan: Mapping[str, Any], longer: Mapping[str, Any]) -> dict[str, Any]:
    """A plan without looks as the first look of ``longer``: its runs, cohorts and splits stay as they are."""
    if {run["id"] for run in plan["runs"]} != {run["id"] for run in longer["runs"]}:
        raise StoreError(
            "the runs of this folder are not those that the study plans now: use a new folder for --decide"
        )
    return {**plan, **{key: longer[key] for key in ("looks", "look_seeds", "look_question", "later")}}
