"""``eval`` of a model: a worker process loads and scores it in a temporary folder. This side loads no torch."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loracle.cli.options import named
from loracle.cli.show import table
from loracle.cli.targets import PATHS, Asked, Evaluated, evaluated

PREDICTIONS = "predictions.parquet"
JOB = "evaluate"


def scored_model(asked: Asked) -> tuple[dict[str, Any], list[str]]:
    """(scores, lines to print) of the model that ``asked`` names."""
    from loracle.base.errors import SpecError

    out = asked["--out"]
    if out is not None and Path(out).suffix != ".parquet":
        raise SpecError("predictions are written as one .parquet file", "--out")
    if asked.harness is not None:
        from loracle.base.extras import require

        require(("lm_eval",), "lm-evaluation-harness", "--lm-eval", "'loracle[lm-eval]'")
    shown = {path: option for option, path in PATHS.items() if asked[option] is not None}
    with named({**shown, "base.model": "--base" if asked["--base"] is not None else "TARGET"}):
        scores = _job(evaluated(asked), asked)
    return scores, _harness_lines(scores) if asked.harness is not None else _lines(scores, out)


def _job(what: Evaluated, asked: Asked) -> dict[str, Any]:
    """Run the evaluate job (docs/jobs.md) in a folder that goes with the command; its ``scores``."""
    from loracle.base.errors import LoracleError
    from loracle.store.files import SCHEMA, replacing
    from loracle.store.layout import StudyFolder
    from loracle.study.crew import Crew, Job
    from loracle.study.inspect import accepted
    from loracle.study.interrupt import Stop
    from loracle.study.launch import LocalLauncher
    from loracle.study.places import Places
    from loracle.study.progress import for_stream
    from loracle.study.resources import this_machine

    machine, out = this_machine(what.device), asked["--out"]
    payload = {
        "schema": SCHEMA,
        "kind": JOB,
        "id": JOB,
        "threads": machine.cores,
        **what.payload(),
        "model": asked.target,
        "samples": asked["--eval-samples"],
        "predictions": out is not None,
        "harness": asked.harness,
    }
    with tempfile.TemporaryDirectory(prefix="loracle-eval-") as root, Stop() as stop:
        job = Job(StudyFolder(Path(root)).job(JOB), payload, f"evaluating {asked.target}", machine.cores)
        progress = for_stream()
        try:
            end = Crew(LocalLauncher(), stop, progress, Places(machine.gpus)).one(job)
        finally:
            progress.close()
        if not end.record:
            raise LoracleError(end.reason)  # without the log's path: the folder goes
        scores: dict[str, Any] = accepted(job, end)["scores"]
        if out is not None:
            with replacing(Path(out)) as temporary:
                shutil.copyfile(job.folder / PREDICTIONS, temporary)
    return scores


def _lines(scores: Mapping[str, Any], out: str | None) -> list[str]:
    """What a person reads: what it is, the figures with their intervals, the notes."""
    rows = f"{scores['n']:,} rows" + (f", {scores['generated']:,} of them answered" if scores["generated"] else "")
    figures = {"eval_loss": scores["eval_loss"], **scores["metrics"]}
    reasons = scores["interval_reasons"]
    body = [
        [name.replace("_", " "), _figure(value), _interval(scores["intervals"].get(name), reasons.get(name))]
        for name, value in figures.items()
    ]
    lines = [f"{_about(scores)}, on {scores['task']}: {rows}", table(["", "value", "interval"], body)]
    lines.append(f"interval: {scores['interval']}")
    return lines + [f"note: {note}" for note in scores["notes"]] + ([str(out)] if out is not None else [])


def _harness_lines(scores: Mapping[str, Any]) -> list[str]:
    """A row for each figure of the harness."""
    rows = []
    for task, figures in scores["results"].items():
        for name, value in figures.items():
            metric, comma, kind = name.partition(",")
            if not metric.endswith("_stderr"):
                error = figures.get(f"{metric}_stderr{comma}{kind}")
                done = (scores["samples"].get(task) or {}).get("effective")
                rows.append([task, name, _figure(value), _figure(error), "-" if done is None else f"{done:,}"])
    limit = scores["settings"]["limit"]
    about = [f"{_about(scores)}, by lm-evaluation-harness {scores['lm_eval']}"]
    about += [] if limit is None else [f"note: the first {limit:,} items of each task only: no benchmark results"]
    return [*about, table(["task", "metric", "value", "standard error", "items"], rows)]


def _about(scores: Mapping[str, Any]) -> str:
    base = "" if scores["base"] == scores["model"] else f" (base {scores['base']})"
    return f"{scores['model']}{base}, {scores['precision']}, {scores['device']}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _interval(found: list[float] | None, why: str | None) -> str:
    return f"{found[0]:.4f} to {found[1]:.4f}" if found else (f"none: {why}" if why else "-")
