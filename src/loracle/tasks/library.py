"""The library of tasks: versioned YAML with source and licence. Loads no torch, transformers or datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loracle.base.errors import SpecError
from loracle.base.names import suggest
from loracle.spec.load import tuples, validate
from loracle.spec.study import Task
from loracle.spec.yaml import read_yaml_file

LIBRARY = Path(__file__).resolve().parent / "library"

# What belongs to the library's own data and is not taken over when the user brings data of their own.
_OF_ITS_DATA = (
    "data", "eval", "subset", "split", "eval_split", "columns", "source", "licence", "language", "known_biases",
)  # fmt: skip


def task_names() -> list[str]:
    """Names of the library's tasks, sorted."""
    return sorted(path.stem for path in LIBRARY.glob("*.yaml"))


def known_tasks() -> list[tuple[str, str, str]]:
    """(name, description, licence) of every task of the library, by name."""
    entries = ((name, _entry(name)) for name in task_names())
    return [(name, entry["description"], entry["licence"]) for name, entry in entries]


def load_task(task: Task) -> Task:
    """``task`` with its library entry under its explicit settings; the result of a second call is that of the first.

    A task without a name is the user's own data and stays as it is. A named task with ``data`` of its own takes the
    entry's format, template and limits, but not its files, columns or licence.
    Raises ``SpecError`` at ``task.name`` for a name that the library does not have.
    """
    if task.name is None:
        return task
    explicit = _explicit(task)
    entry = _entry(task.name)
    if "data" in explicit:
        entry = {key: value for key, value in entry.items() if key not in _OF_ITS_DATA}
    elif "eval" in explicit:
        entry.pop("eval_split", None)
    merged = {**entry, **explicit}
    if entry.get("template") is not None:
        merged["template"] = _template(merged, entry)
    return validate(Task, tuples(merged), "task")


def _template(merged: dict[str, Any], entry: dict[str, Any]) -> str | None:
    """The entry's template asks for an answer: a classification head reads the text alone, or a template of the user's.

    A task merged as a classification and varied to a generation afterwards gets the entry's back.
    """
    written: str | None = merged["template"]
    if merged.get("type") == "classification":
        return None if written == entry["template"] else written
    return entry["template"] if written is None and entry.get("type") == "classification" else written


def _explicit(task: Task) -> dict[str, Any]:
    """The user's own settings. After a ``model_dump`` every field counts as set, so defaults are told by their value.

    A task merged before has the entry's description: all of it is explicit then.
    """
    defaults = {key: field.get_default(call_default_factory=True) for key, field in Task.model_fields.items()}
    whole = {**defaults, **task.model_dump()}  # a dump leaves out later settings that stand at their default
    if set(Task.model_fields) - Task.later - task.model_fields_set:
        return {key: whole[key] for key in task.model_fields_set}
    if task.description is not None:
        return whole
    return {key: value for key, value in whole.items() if value != defaults[key] or key == "name"}


def _entry(name: str) -> dict[str, Any]:
    """The YAML of one task, its files as absolute paths."""
    names = task_names()
    if name not in names:
        hint = "; a file or hub data set goes under task.data" if "/" in name or "." in name else ""
        raise SpecError(f"'{name}' is not a task of the library, {suggest(name, names)}{hint}", "task.name")
    entry: dict[str, Any] = read_yaml_file(LIBRARY / f"{name}.yaml")
    for key in ("data", "eval"):
        if key in entry and (LIBRARY / entry[key]).is_file():
            entry[key] = str(LIBRARY / entry[key])
    return {"name": name, **entry}
