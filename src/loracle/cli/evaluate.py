"""``eval``: a model's scores on a task, or of answers that are there already, or of answers that a judge is asked about."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

# Tasks whose answers are there already: they are scored from files (``answers.py``) or by a judge (``judging.py``).
WITHOUT_MODEL = ("alpaca_eval", "chat")
MISSING_TASK = "Missing option '--task'. (see loracle eval --help)"  # typer's own words, were it required


def evaluate(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[TARGET]", help="A run's, an adapter's or a model's folder, or a hub id; with --judge: answers."
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", metavar="TASK", help="A task of the library; for files: squad, alpaca_eval, chat."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="FILE", help="Rows to evaluate on, all of them; squad: the questions, v1.1."),
    ] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="How a row of --data reads [guessed from its columns].")
    ] = None,
    eval_samples: Annotated[
        int | None,
        typer.Option("--eval-samples", min=1, help="At most this many rows, drawn by the task's split_seed."),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", help="Tokens of a row; longer ones are cut.")
    ] = None,
    precision: Annotated[str | None, typer.Option("--precision", help="Of the base [the run's, else bf16].")] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="What an adapter from elsewhere is put on.")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda [auto].")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other key of a study; repeatable.")
    ] = None,
    lm_eval: Annotated[
        str | None,
        typer.Option("--lm-eval", metavar="TASKS", help="lm-evaluation-harness: task names or YAML files, a,b."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="lm-eval: the first items of each task only.")
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option("--num-fewshot", min=0, help="lm-eval: examples in the prompt [the task's].")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="lm-eval: requests at once [8].")
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option("--include-path", metavar="DIR", help="lm-eval: a folder of your own tasks.")
    ] = None,
    predictions: Annotated[
        str | None, typer.Option("--predictions", metavar="FILE", help="squad: a JSON object, question id → answer.")
    ] = None,
    annotations: Annotated[
        str | None, typer.Option("--annotations", metavar="FILE", help="alpaca_eval: a judge's annotations.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option("--judge", metavar="KIND", help="Ask a judge: endpoint or local (alpaca_eval, chat).")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option("--reference", metavar="FILE", help="alpaca_eval: the answers to compare with.")
    ] = None,
    judge_model: Annotated[
        str | None,
        typer.Option("--judge-model", metavar="NAME", help="The endpoint's name for it; local: a folder or hub id."),
    ] = None,
    judge_url: Annotated[
        str | None,
        typer.Option("--judge-url", metavar="URL", help="An OpenAI-compatible endpoint, as https://HOST/v1."),
    ] = None,
    judge_key_env: Annotated[
        str | None,
        typer.Option("--judge-key-env", metavar="VAR", help="Environment variable with the key [OPENAI_API_KEY]."),
    ] = None,
    judge_seed: Annotated[int | None, typer.Option("--judge-seed", help="Of the answers' order [0].")] = None,
    judge_max_tokens: Annotated[
        int | None, typer.Option("--judge-max-tokens", min=1, help="Of a reply; more for models that think first [64].")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", min=1, max=256, help="Requests at once [8].")
    ] = None,
    price_in: Annotated[float | None, typer.Option("--price-in", min=0, help="Of a million prompt tokens.")] = None,
    price_out: Annotated[float | None, typer.Option("--price-out", min=0, help="Of a million reply tokens.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="PATH",
            help="A model's predictions (.parquet); a judge's folder [judged/MODEL-JUDGE-HASH].",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Score a model or run on a task; or SQuAD predictions and AlpacaEval annotations; or have a judge compare or rate answers."""
    files = {"--data": data, "--predictions": predictions, "--annotations": annotations}
    modelled = {
        "--format": format,
        "--eval-samples": eval_samples,
        "--max-length": max_length,
        "--precision": precision,
        "--base": base,
        "--device": device,
        "--set": set_ or None,
    }
    harness = {
        "--limit": limit,
        "--num-fewshot": num_fewshot,
        "--batch-size": batch_size,
        "--include-path": include_path,
    }
    asked = {
        "--reference": reference,
        "--judge-model": judge_model,
        "--judge-url": judge_url,
        "--judge-key-env": judge_key_env,
        "--judge-seed": judge_seed,
        "--judge-max-tokens": judge_max_tokens,
        "--concurrency": concurrency,
        "--price-in": price_in,
        "--price-out": price_out,
    }
    of_model = {**modelled, "--lm-eval": lm_eval, **harness}
    code = 0
    if judge is not None:
        _refuse(of_model, "not with --judge, which loads no model to be scored")
        scores, lines, code = _judged(judge, task, target, files, {**asked, "--out": out})
    elif target is None or task in WITHOUT_MODEL or predictions or annotations:
        if target is None:
            _refuse(of_model, "needs a model: loracle eval TARGET")
        if task != "chat":
            _refuse({"the answers' path": target, **asked, "--out": out}, "needs --judge")
        scores, lines = _files(task, files)
    else:
        _refuse(asked, "needs --judge")
        named = {"--task": task, "--data": data, **modelled, "--out": out}
        scores, lines = _model(target, named, {"--lm-eval": lm_eval, **harness})
    print(json.dumps(scores) if as_json else "\n".join(lines))
    raise typer.Exit(code)


def _files(task: str | None, files: Mapping[str, str | None]) -> tuple[Mapping[str, object], list[str]]:
    from loracle.base.errors import SpecError
    from loracle.cli.answers import scored_files

    if task is None:
        raise SpecError(MISSING_TASK)
    if task == "chat":
        raise SpecError("needs --judge", "--task chat")
    return scored_files(task, files)


def _model(target: str, given: dict[str, Any], harness: Mapping[str, Any]) -> tuple[Mapping[str, object], list[str]]:
    from loracle.cli.scoring import scored_model
    from loracle.cli.targets import Asked

    overrides = given.pop("--set") or []
    tasks = harness["--lm-eval"]
    if tasks is None:
        _refuse(harness, "needs --lm-eval")
        return scored_model(Asked(target, given, overrides))
    not_there = ("--task", "--data", "--format", "--eval-samples", "--max-length", "--out")
    _refuse({name: given[name] for name in not_there}, "not with --lm-eval, which has tasks of its own")
    include = harness["--include-path"]
    wanted = {
        "tasks": [name.strip() for name in tasks.split(",") if name.strip()],
        "limit": harness["--limit"],
        "num_fewshot": harness["--num-fewshot"],
        "batch_size": harness["--batch-size"] or 8,
        "include_path": None if include is None else str(include),
    }
    return scored_model(Asked(target, given, overrides, wanted))


def _judged(
    judge: str, task: str | None, target: str | None, files: Mapping[str, object], asked: Mapping[str, object]
) -> tuple[Mapping[str, object], list[str], int]:
    from loracle.base.errors import SpecError
    from loracle.cli.judging import JudgeOptions, judged

    if task is None:
        raise SpecError(MISSING_TASK)
    _refuse(files, "not with --judge, which makes the annotations")
    if target is None:
        raise SpecError("--judge needs the answers: a file as AlpacaEval writes them, or a run's folder")
    return judged(JudgeOptions(judge, task, Path(target), asked))


def _refuse(options: Mapping[str, object], why: str) -> None:
    """A ``SpecError`` for the first option that was given."""
    from loracle.base.errors import SpecError

    for name, value in options.items():
        if value is not None:
            raise SpecError(why, name)
