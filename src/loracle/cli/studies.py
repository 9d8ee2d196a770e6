"""``demo``, ``plan`` and ``run``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loracle.cli import show

if TYPE_CHECKING:
    from loracle.spec import Study
    from loracle.study import Outcome

StudyFile = Annotated[
    Path, typer.Argument(metavar="STUDY", help="A study file, or the folder of a study to go on with.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the study; repeatable.")
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Study folder; runs/NAME when absent.")]
GpuMemory = Annotated[
    str | None,
    typer.Option("--gpu-memory", metavar="SIZE", help="Memory of one GPU to plan for, such as 24GB (run.gpu_memory)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]

QUICK = ["seeds=[42, 43]", "vary.rank=[2, 8]", "train.steps=20"]


def demo(
    out: Out = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer runs and steps: a look at the report, no verdicts.")
    ] = False,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """A complete study on the built-in model and task: no network, no GPU, a few minutes."""
    from loracle.spec import load_study
    from loracle.study.demo import DEMO

    name = ["name=demo-quick", *QUICK] if quick else []
    _run(load_study(DEMO, [*name, *(set_ or [])]), out, as_json)


def run(
    study: StudyFile,
    out: Out = None,
    set_: Set = None,
    gpu_memory: GpuMemory = None,
    decide: Annotated[
        bool,
        typer.Option(
            "--decide", help="Add seeds at looks fixed before training until the primary question is decided."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Train every run of a study, measure, and write the report. Run it again to go on where it stopped."""
    from loracle.api import folder_given

    _run(_loaded(study, set_, gpu_memory), out or folder_given(study), as_json, decide)


def plan(
    study: StudyFile,
    set_: Set = None,
    gpu_memory: GpuMemory = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Load the weights and, on a CPU, time cohort sizes, as run does.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what a study would train and what it takes. Needs no weights and writes nothing."""
    from loracle import api

    found = api.plan(_loaded(study, set_, gpu_memory), measure=measure)
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    print(show.plan_text(found))
    for warning in show.data_warnings(found["data"]):
        print(f"warning: {warning}", file=sys.stderr)


def _loaded(path: Path, overrides: list[str] | None, gpu_memory: str | None) -> Study:
    from loracle.api import read
    from loracle.cli.options import named

    with named({"run": "--gpu-memory"} if gpu_memory is not None else {}):
        return read(path, overrides or (), gpu_memory)


def _run(study: Study, out: Path | None, as_json: bool, decide: bool = False) -> None:
    from loracle.api import execute

    outcome = execute(study, out, decide)
    if as_json:
        print(json.dumps(outcome_json(outcome), indent=1, ensure_ascii=False))
    else:
        _print_outcome(outcome)
    raise typer.Exit(outcome.exit_code)


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "folder": str(outcome.folder),
        "report": str(outcome.report) if outcome.report else None,
        "runs": {run: {"status": state.status, "reason": state.reason} for run, state in outcome.states.items()},
        "problems": outcome.problems,
        "looks": outcome.looked,
        "exit_code": outcome.exit_code,
    }


def _print_outcome(outcome: Outcome) -> None:
    for line in outcome.troubles():
        print(line, file=sys.stderr)
    if outcome.looked:
        print(outcome.looked)
    print(outcome.summary())
    print(outcome.folder)
    if outcome.report:
        print(outcome.report)
