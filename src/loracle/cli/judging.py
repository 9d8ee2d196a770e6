"""``eval`` with a judge: its options, the judge they name, and what is printed. The work is ``evaluate.judging``'s."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loracle.evaluate.judging.items import Answers
    from loracle.evaluate.judging.scores import Prices

JUDGES = ("endpoint", "local")
DEFAULT_KEY = "OPENAI_API_KEY"
# Options that mean something for an endpoint only.
ENDPOINT = (
    "--judge-url", "--judge-key-env", "--judge-seed", "--judge-max-tokens", "--concurrency", "--price-in", "--price-out",
)  # fmt: skip


@dataclass(frozen=True)
class JudgeOptions:
    """What the command line says of a judge; ``given`` is option → value, null where it was left out."""

    judge: str
    task: str
    target: Path
    given: Mapping[str, Any]

    def __getitem__(self, option: str) -> Any:
        return self.given[option]


def judged(options: JudgeOptions) -> tuple[dict[str, Any], list[str], int]:
    """Judge what is not judged yet: (scores, lines to print, exit code)."""
    from loracle.base.errors import EXIT_DONE, EXIT_UNFINISHED
    from loracle.evaluate.judging.answers import read_answers
    from loracle.evaluate.judging.scores import Prices

    _check(options)
    prices = Prices(options["--price-in"], options["--price-out"])
    answers = read_answers(options.target, options["--reference"])
    for note in answers.notes:
        print(f"warning: {note}", file=sys.stderr)
    folder, scores = (_by_endpoint if options.judge == "endpoint" else _by_model)(options, answers, prices)
    found = {**scores, "folder": str(folder)}
    return found, _lines(found, folder), EXIT_UNFINISHED if scores["unfinished"] else EXIT_DONE


def _check(options: JudgeOptions) -> None:
    """A ``SpecError`` for options that do not go together."""
    from loracle.base.errors import SpecError
    from loracle.base.names import suggest
    from loracle.evaluate.judging.session import require_task

    if options.judge not in JUDGES:
        raise SpecError(f"'{options.judge}' is no judge, {suggest(options.judge, JUDGES)}", "--judge")
    require_task(options.task, options["--reference"])
    needed = ("--judge-url", "--judge-model") if options.judge == "endpoint" else ("--judge-model",)
    if missing := [name for name in needed if options[name] is None]:
        raise SpecError(f"--judge {options.judge} needs {' and '.join(missing)}")
    for name in ENDPOINT if options.judge == "local" else ():
        if options[name] is not None:
            raise SpecError("not for --judge local, which asks no endpoint", name)
    if (options["--price-in"] is None) != (options["--price-out"] is None):
        raise SpecError("--price-in and --price-out are needed together: a cost has both")


def _by_endpoint(options: JudgeOptions, answers: Answers, prices: Prices) -> tuple[Path, dict[str, Any]]:
    from loracle.evaluate.judging.asking import EndpointJudge
    from loracle.evaluate.judging.endpoint import Endpoint, key_from
    from loracle.evaluate.judging.session import ask_all, default_folder, write_scores
    from loracle.store.claims import claim
    from loracle.study.progress import for_stream

    variable = options["--judge-key-env"]
    endpoint = Endpoint(
        options["--judge-url"], options["--judge-model"], key_from(variable or DEFAULT_KEY, variable is not None)
    )
    if endpoint.in_the_open:
        print(f"warning: the key goes unencrypted to {endpoint.url}: use https", file=sys.stderr)
    judge = EndpointJudge(endpoint, seed=options["--judge-seed"] or 0, max_tokens=options["--judge-max-tokens"] or 64)
    folder = options["--out"] or default_folder(answers, judge.identity)
    progress = for_stream()
    with claim(folder / "judge.lock", str(folder)):
        try:
            progress.started("judge", f"{len(answers.items):,} answers", 0)
            problem = ask_all(
                folder,
                answers,
                judge,
                options["--concurrency"] or 8,
                lambda phase, **facts: progress.event("judge", {"phase": phase, **facts}),
            )
        finally:
            progress.close()
        scores = write_scores(folder, answers, judge.identity, prices)
    if problem is not None:
        print(
            f"warning: {scores['unfinished']:,} item(s) have no verdict ({problem}): the same command asks again",
            file=sys.stderr,
        )
    return folder, scores


def _by_model(options: JudgeOptions, answers: Answers, prices: Prices) -> tuple[Path, dict[str, Any]]:
    """A worker process judges: this one never loads torch."""
    from loracle.evaluate.judging.session import default_folder, write_scores
    from loracle.store.claims import claim
    from loracle.store.files import SCHEMA, digest
    from loracle.store.layout import StudyFolder
    from loracle.study.crew import Crew, Job
    from loracle.study.inspect import accepted
    from loracle.study.interrupt import Stop
    from loracle.study.launch import LocalLauncher
    from loracle.study.progress import for_stream
    from loracle.study.resources import usable_cores

    model, threads = options["--judge-model"], usable_cores()
    folder = options["--out"] or default_folder(answers, {"kind": "local", "model": model})
    name = f"judge-{digest([model, [item.sha256 for item in answers.items]])[:8]}"
    payload = {"schema": SCHEMA, "kind": "judge", "id": name, "device": "auto", "threads": threads, "model": model}
    job = Job(
        StudyFolder(folder).job(name),
        {**payload, "items": [asdict(item) for item in answers.items]},
        "judging",
        threads,
    )
    progress = for_stream()
    with claim(folder / "judge.lock", str(folder)), Stop() as stop:
        try:
            record = accepted(job, Crew(LocalLauncher(), stop, progress).one(job))
        finally:
            progress.close()
        return folder, write_scores(folder, answers, record["judge"], prices)


def _lines(scores: Mapping[str, Any], folder: Path) -> list[str]:
    """What a person reads, paths last."""
    from loracle.evaluate.judging.items import ASPECTS
    from loracle.evaluate.judging.session import ANNOTATIONS, JUDGEMENTS, SCORES

    paired = "win_rate" in scores
    if paired:
        lines = [_figure("win rate", scores, "win_rate", "%")]
    else:
        lines = [_figure(aspect, scores[aspect], "mean", " of 5") for aspect in ASPECTS]
    lines.append(f"{scores['nulls']:,} without a verdict, {scores['unfinished']:,} not judged")
    cost = scores["cost"]
    lines.append(
        f"cost: {scores['cost_reason']}" if cost is None else f"cost: {cost:.4f}, in the currency of the prices"
    )
    files = [JUDGEMENTS, *([ANNOTATIONS] if paired else []), SCORES]
    return lines + [str(folder / name) for name in files]


def _figure(name: str, scores: Mapping[str, Any], key: str, unit: str) -> str:
    value, error = scores[key], scores["standard_error"]
    if value is None:
        return f"{name}: none, {scores['reason']}"
    why = scores.get("standard_error_reason") or scores.get("reason")
    spread = why if error is None else f"standard error {error:.4f}{unit if unit == '%' else ''}"
    return f"{name} {value:.4f}{unit}, {spread}, {scores['n']:,} verdict(s)"
