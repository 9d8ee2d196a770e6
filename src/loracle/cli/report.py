"""``report``: the report of a study folder, from its records alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A study folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdicts and the report's path as JSON.")] = False,
) -> None:
    """Write the report of a study folder again, from its records."""
    from loracle.base.errors import StoreError
    from loracle.report import write_report
    from loracle.store.files import read_json
    from loracle.store.layout import StudyFolder

    layout = StudyFolder(folder)
    if not layout.plan.is_file():
        raise StoreError(f"{folder}: not a study folder (no plan.json): loracle run makes one")
    page = write_report(folder)
    if as_json:
        print(json.dumps({"verdicts": read_json(layout.report / "verdicts.json"), "report": str(page)}, indent=1))
    else:
        print(page)
