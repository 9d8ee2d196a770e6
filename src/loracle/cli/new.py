"""``new``: a commented study to start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

TEMPLATE = Path(__file__).with_name("new_study.yaml")


def new(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="File to write.")] = Path("study.yaml"),
    model: Annotated[str | None, typer.Option("--model", help="Hub id or folder of the base model.")] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Your data: .json, .jsonl, .csv, .tsv, .parquet, or a hub id.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite PATH.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the study file's JSON Schema, for editors.")] = False,
    tasks: Annotated[bool, typer.Option("--tasks", help="Print the tasks of the library.")] = False,
) -> None:
    """Write a commented study to start from."""
    if schema:
        from loracle.spec import study_schema

        print(json.dumps(study_schema(), indent=1))
    elif tasks:
        from loracle.cli.show import table
        from loracle.tasks.library import known_tasks

        print(table(["task", "what it is", "licence"], [list(row) for row in known_tasks()]))
    else:
        _write(path, model, data, force)


def _write(path: Path, model: str | None, data: str | None, force: bool) -> None:
    from loracle.base.errors import StoreError
    from loracle.spec import parse_study
    from loracle.spec.yaml import read_yaml
    from loracle.store.files import write_text

    if path.is_dir():
        path = path / "study.yaml"
    if path.exists() and not force:
        raise StoreError(f"{path} exists: name another file, or overwrite it with --force")
    text = study_text(path, model, data)
    parse_study(read_yaml(text, str(path)))
    write_text(path, text)
    print(path)


def study_text(path: Path, model: str | None, data: str | None) -> str:
    """The template with a name from the file's, a model and data put in."""
    from loracle.base.names import slug

    task = f"data: {json.dumps(_as_seen_from(path, data))}" if data else "name: banking77-10"
    stem = path.stem if path.stem != "study" else path.resolve().parent.name
    filled = TEMPLATE.read_text(encoding="utf-8")
    for mark, value in (
        ("@NAME@", slug(stem)),
        ("@MODEL@", _as_seen_from(path, model or "gpt2-demo")),
        ("@TASK@", task),
    ):
        filled = filled.replace(mark, value if mark == "@TASK@" else json.dumps(value))
    return filled


def _as_seen_from(study: Path, given: str) -> str:
    """Paths in a study are relative to its file: an existing one is written so that it is found from there."""
    return str(Path(given).resolve()) if Path(given).exists() and study.resolve().parent != Path.cwd() else given
