"""One judging run in one folder: go on from the verdicts that are there, then write what they amount to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from loracle.base.errors import SpecError
from loracle.base.names import slug, suggest
from loracle.evaluate.judging.asking import EndpointJudge
from loracle.evaluate.judging.collect import Collector
from loracle.evaluate.judging.items import Answers, Identity, Item, Verdict, key, line
from loracle.evaluate.judging.scores import Prices, annotation_rows, lines_of, scores
from loracle.evaluate.judging.store import Judgements
from loracle.store.files import SCHEMA, digest, write_json

JUDGEMENTS, ANNOTATIONS, SCORES = "judgements.jsonl", "annotations.json", "scores.json"
TASKS = ("alpaca_eval", "chat")

Say = Callable[..., None]


def default_folder(answers: Answers, judge: Identity) -> Path:
    """``judged/MODEL-JUDGE-HASH`` in the current folder: the same for the same names, so a second call goes on."""
    model = str(judge["model"]).rstrip("/").rsplit("/", 1)[-1]
    hashed = digest([answers.name, answers.reference_name, dict(judge)])[:8]
    return Path("judged") / f"{slug(answers.name, 40)}-{slug(model, 40)}-{hashed}"


def ask_all(folder: Path, answers: Answers, judge: EndpointJudge, concurrency: int, say: Say) -> str | None:
    """Judge what has no verdict yet; returns why some have none still. The caller holds the folder's lock."""
    with Judgements(folder / JUDGEMENTS) as store:
        before = lines_of(answers, judge.identity, store.lines)
        todo = [item for item in answers.items if key(item, judge.identity) not in store.lines]
        others = len(store.lines) - len(before)
        say("judge", step=len(before), steps=len(answers.items))

        def keep(item: Item, verdict: Verdict) -> None:
            store.append(line(item, judge.identity, verdict))
            say("judge", step=len(store.lines) - others, steps=len(answers.items))

        answered = any(one["reply"] is not None for one in before)
        left = Collector(judge, keep, concurrency, answered).run(todo)
    return str(left[0][1]) if left else None


def write_scores(folder: Path, answers: Answers, judge: Identity, prices: Prices) -> dict[str, Any]:
    """The figures of the verdicts in ``folder``; writes ``annotations.json`` (of pairs) and ``scores.json``."""
    with Judgements(folder / JUDGEMENTS) as store:
        lines = lines_of(answers, judge, store.lines)
    found = scores(answers, judge, lines, prices)
    if answers.reference_name is not None:
        write_json(folder / ANNOTATIONS, annotation_rows(answers, judge, lines))
    names = {"model": answers.name, "reference": answers.reference_name}
    write_json(folder / SCORES, {"schema": SCHEMA, "kind": "scores", **names, **found})
    return found


def require_task(task: str, reference: Path | None) -> None:
    """Refuse a task that a judge does not score, and a reference file that is missing or not wanted."""
    if task not in TASKS:
        raise SpecError(f"'{task}' is not a task for a judge, {suggest(task, TASKS)}", "--task")
    if task == "alpaca_eval" and reference is None:
        raise SpecError("--task alpaca_eval with a judge needs --reference: the answers to compare with")
    if task == "chat" and reference is not None:
        raise SpecError("not for --task chat: answers are rated alone", "--reference")
