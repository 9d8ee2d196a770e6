"""The commands by name. What each needs is imported when it runs, so that ``--help`` is instant."""

from __future__ import annotations

from typing import Annotated

import typer

from loracle.cli import doctor, evaluate, new, report, studies, train

app = typer.Typer(
    name="loracle",
    help="An oracle for LoRA: how many bits, what rank, which layers, will it fit, and is the difference real?",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        from loracle import __version__

        print(f"loracle {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback with an error (may stand anywhere).")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


app.command("demo")(studies.demo)
app.command("new")(new.new)
app.command("plan")(studies.plan)
app.command("run")(studies.run)
app.command("train")(train.train)
app.command("report")(report.report)
app.command("eval")(evaluate.evaluate)
app.command("doctor")(doctor.doctor)
