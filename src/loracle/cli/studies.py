"""``demo``, ``plan`` and ``run``."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Iterator
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

NEEDED_LATER = (
    "loracle.report.write",
    "matplotlib.style",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "matplotlib.ticker",
)
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
    if study.is_dir():
        out = out or study
    _run(_loaded(study, set_, gpu_memory), out, as_json, decide)


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
    from loracle.study.preview import preview_plan
    from loracle.study.progress import for_stream

    progress = for_stream() if measure else None
    found = preview_plan(_loaded(study, set_, gpu_memory), measure=measure, progress=progress)
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    print(show.plan_text(found))
    for warning in show.data_warnings(found["data"]):
        print(f"warning: {warning}", file=sys.stderr)


def _loaded(path: Path, overrides: list[str] | None, gpu_memory: str | None = None) -> Study:
    from loracle.cli.options import named
    from loracle.spec import load_study

    more = [] if gpu_memory is None else [f"run.gpu_memory={gpu_memory}"]
    with named({"run": "--gpu-memory"} if more else {}):
        return load_study(path / "study.yaml" if path.is_dir() else path, [*(overrides or []), *more])


def _run(study: Study, out: Path | None, as_json: bool, decide: bool = False) -> None:
    from loracle.report import primary_verdicts, write_report
    from loracle.study import run_study
    from loracle.study.progress import for_stream

    with _imported_meanwhile():
        outcome = run_study(
            study,
            out or Path("runs") / study.name,
            progress=for_stream(),
            report=write_report,
            decide=primary_verdicts if decide else None,
        )
    if as_json:
        print(json.dumps(outcome_json(outcome), indent=1, ensure_ascii=False))
    else:
        _print_outcome(outcome)
    raise typer.Exit(outcome.exit_code)


@contextlib.contextmanager
def _imported_meanwhile() -> Iterator[None]:
    """scipy and matplotlib take seconds to import: a thread does it while the first worker is at work. It begins only after a
    moment, so that a study with an error in it ends at once; not a daemon, which must not be stopped amid an import."""
    import threading

    timer = threading.Timer(1.0, lambda: [importlib.import_module(name) for name in NEEDED_LATER])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


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
    for run, state in outcome.states.items():
        if state.status != "done":
            print(f"{run}: {state.status}" + (f": {state.reason}" if state.reason else ""), file=sys.stderr)
    for problem in outcome.problems:
        print(f"warning: {problem}", file=sys.stderr)
    if outcome.looked:
        print(outcome.looked)
    print(outcome.summary())
    print(outcome.folder)
    if outcome.report:
        print(outcome.report)
