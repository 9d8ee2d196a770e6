"""``report``: the report of a study folder, from its records alone; within a memory budget also from forecasts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from loracle.report.budget import Asked
    from loracle.store.layout import StudyFolder


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A study folder.")],
    gpu_memory: Annotated[
        str | None,
        typer.Option(
            "--gpu-memory", metavar="SIZE", help="Recommend what to use on one GPU of this size, such as 24GB."
        ),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            "--margin", help="Loss of eval loss that can be borne, 0.05 = 5%; else the study's. With --gpu-memory."
        ),
    ] = None,
    prefer: Annotated[
        str | None,
        typer.Option(
            "--prefer", help="speed (the default), memory or quality, among what is good enough. With --gpu-memory."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdicts and the report's path as JSON.")] = False,
) -> None:
    """Write the report of a study folder again, from its records; with --gpu-memory, what to use within it."""
    from loracle.base.errors import StoreError
    from loracle.report import write_report
    from loracle.store.files import read_json
    from loracle.store.layout import StudyFolder

    asked = _asked(gpu_memory, margin, prefer)
    layout = StudyFolder(folder)
    if not layout.plan.is_file():
        raise StoreError(f"{folder}: not a study folder (no plan.json): loracle run makes one")
    if asked is not None:
        _forecast(layout, asked)
    page = write_report(folder, asked)
    advice = read_json(layout.report / "recommendation.json") if asked else None
    if as_json:
        found = {"verdicts": read_json(layout.report / "verdicts.json"), "report": str(page)}
        print(json.dumps(found | ({"recommendation": advice} if advice else {}), indent=1))
        return
    if advice:
        print(advice["text"])
    print(page)


def _asked(gpu_memory: str | None, margin: float | None, prefer: str | None) -> Asked | None:
    """The options as one thing; a ``SpecError`` names the option that cannot mean anything."""
    from loracle.base.errors import SpecError

    if gpu_memory is None:
        for option, value in (("--margin", margin), ("--prefer", prefer)):
            if value is not None:
                raise SpecError("goes with --gpu-memory SIZE, the memory to choose within", option)
        return None
    from loracle.base.names import suggest
    from loracle.report.budget import Asked
    from loracle.spec.study import parse_bytes
    from loracle.verdict.budget import PREFERENCES

    try:
        parse_bytes(gpu_memory)
    except ValueError as error:
        raise SpecError(str(error), "--gpu-memory") from None
    if margin is not None and not 0 < margin < 1:
        raise SpecError(f"{margin:g} is no fraction between 0 and 1: 0.05 is 5%", "--margin")
    chosen = next((name for name in PREFERENCES if name == (prefer or PREFERENCES[0])), None)
    if chosen is None:
        raise SpecError(f"'{prefer}' is nothing to prefer, {suggest(str(prefer), PREFERENCES)}", "--prefer")
    return Asked(gpu_memory.strip(), margin, chosen)


def _forecast(layout: StudyFolder, asked: Asked) -> None:
    """Forecasts for the budget, by a worker where the folder has none."""
    from loracle.study.forecasts import forecast
    from loracle.study.progress import for_stream

    forecast(layout, asked.gpu_memory, progress=for_stream())
