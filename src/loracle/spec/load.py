"""From a study file to a validated ``Study``: YAML, ``--set`` overrides, aliases, types; errors name the dotted path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from loracle.base.errors import SpecError
from loracle.base.names import nearest, suggest
from loracle.spec.aliases import (
    ALIASES,
    FACTORS,
    INSTEAD,
    SECTIONS,
    canonical,
    drop,
    factor_path,
    put,
    translate,
)
from loracle.spec.study import PRECISIONS, QUESTIONS, Adapter, Base, Decide, Diagnose, Question, Run, Study, Task, Train
from loracle.spec.yaml import read_yaml, read_yaml_file

SECTION_MODELS: dict[str, type[BaseModel]] = {
    "base": Base,
    "task": Task,
    "adapter": Adapter,
    "train": Train,
    "run": Run,
    "decide": Decide,
    "diagnose": Diagnose,
    "questions": Question,
}


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read, override (``a.b=value``, YAML values) and validate a study file. Local paths become absolute."""
    raw = read_yaml_file(path)
    if not isinstance(raw, dict):
        raise SpecError("a study is a mapping of keys to values", str(path))
    return parse_study(raw, overrides, folder=path.resolve().parent)


def parse_study(raw: dict[str, Any], overrides: Sequence[str] = (), folder: Path | None = None) -> Study:
    """Validate a study given as plain data."""
    tree = canonical(raw)
    for item in overrides:
        path, sep, text = item.partition("=")
        if not sep or not path:
            raise SpecError(f"'{item}' is not KEY=VALUE", "--set")
        override(tree, path.strip(), read_yaml(text, f"--set {path}"))
    tree = canonical(tree)
    if tree.get("questions") is None:
        tree.pop("questions", None)
    else:
        tree["questions"] = [{"name": q} if isinstance(q, str) else q for q in _list(tree["questions"], "questions")]
    tree["vary"] = {name: _vary_values(name, values) for name, values in _mapping(tree.get("vary"), "vary").items()}
    study = validate(Study, tuples(tree))
    return local_paths(study, folder) if folder is not None else study


def override(tree: dict[str, Any], path: str, value: Any) -> None:
    """Apply one ``--set``: a dotted path, a factor or an alias. Setting a varied factor replaces its values."""
    if path.startswith(("run.", "diagnose.", "decide.")) or path in (
        "name",
        "seeds",
        "questions",
        "cells",
        "vary",
        "decide",
    ):
        put(tree, path, value)
        return
    varied = path.removeprefix("vary.") if path.startswith("vary.") else ""
    dotted = factor_path(varied, "vary") if varied else _setting_path(path)
    vary = tree.get("vary")
    if isinstance(vary, dict):
        _check_reach(vary, dotted, path)
        tree["vary"] = {k: v for k, v in vary.items() if k == varied or factor_path(k, "vary") != dotted}
    if dotted in INSTEAD and value is not None and not varied:
        drop(tree, INSTEAD[dotted])
    put(tree, path if varied else dotted, value)


def _check_reach(vary: dict[str, Any], dotted: str, path: str) -> None:
    """Refuse a setting of ``base`` or ``task`` that no cell would get, because each varied one replaces it whole."""
    section, _, inner = dotted.partition(".")
    values = vary.get(section) if section in ("base", "task") and inner else None
    if isinstance(values, list | tuple) and all(_whole(section, value) for value in values):
        raise SpecError(f"would change nothing: {section} is varied; set {section} or vary.{section}", f"--set {path}")


def _whole(section: str, value: Any) -> bool:
    """Whether a varied ``base`` or ``task`` takes nothing over from the study's own (``factors.apply_factors``)."""
    return section == "base" or not isinstance(value, dict) or bool({"name", "data"} & set(value))


def _setting_path(path: str) -> str:
    """The dotted path of a setting given as a factor, an alias, or a path that ends in an alias."""
    section, _, last = path.rpartition(".")
    if section in SECTIONS:
        return ALIASES.get(last, path)
    return {**ALIASES, **FACTORS}.get(path, path)


def _list(value: Any, where: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise SpecError("needs a list", where)
    return list(value)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SpecError("needs {factor: [values]}", where)
    return value


def _vary_values(name: str, values: Any) -> list[Any]:
    path = factor_path(name, "vary")
    values = _list(values, f"vary.{name}")
    if not values:
        raise SpecError("needs at least one value", f"vary.{name}")
    return [translate(path, v) for v in values]


def tuples(value: Any) -> Any:
    """Lists as tuples, so that strict frozen models take them."""
    if isinstance(value, dict):
        return {k: tuples(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return tuple(tuples(v) for v in value)
    return value


M = TypeVar("M", bound=BaseModel)


def validate(model: type[M], tree: dict[str, Any], prefix: str = "") -> M:
    """``model.model_validate`` with one clear line in place of pydantic's list."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise SpecError(*explain(error, model, prefix)) from None


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> tuple[str, str]:
    """(message, dotted path) of the most telling of pydantic's errors."""
    problems = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    # Of a number or a section (adapter.parameters) the one that was meant: a section is no wrong number.
    meant = [p for p in problems if not (isinstance(p.get("input"), dict) and any(map(_is_tag, p["loc"][-1:])))]
    first = (meant or problems)[0]
    if "precision" in first["loc"]:
        first = _of_precision([p for p in problems if "precision" in p["loc"]])
    location = [str(part) for part in first["loc"] if not _is_tag(part)]
    where = ".".join([prefix, *location] if prefix else location)
    if first["type"] == "extra_forbidden":
        return _unknown_key(location, model), where
    message = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    if "precision" in location and first["type"] != "value_error" and location[-1] != "budget":
        return f"{given!r} is not a precision, {suggest(str(given), PRECISIONS)}", where
    if location[:1] == ["questions"] and first["type"] == "literal_error":
        return f"{given!r} is not a question, {suggest(str(given), QUESTIONS)}", where
    if first["type"] == "literal_error":
        expected = str(first.get("ctx", {}).get("expected", ""))
        words = [w.strip().strip("'") for w in expected.replace(" or ", ", ").split(",")]
        return f"{given!r} is not allowed, {suggest(str(given), words)}", where
    inner, sep, rest = message.partition(": ")
    if first["type"] == "value_error" and sep and inner.isidentifier():
        return rest, f"{where}.{inner}" if where else inner
    if given is not None and not isinstance(given, dict) and first["type"] != "value_error":
        message = f"{message} (got {given!r})"
    return message[0].lower() + message[1:], where


def _of_precision(problems: Sequence[Any]) -> Any:
    """Of the errors of a precision's three forms that of the form that was meant: in a block the wrong word inside it."""
    block: Any = next((p["input"] for p in problems if isinstance(p.get("input"), dict)), {})
    mixed = [p for p in problems if any("Mixed" in str(part) for part in p["loc"])]
    if "budget" in block:
        return mixed[0]
    plain = [p for p in problems if p not in mixed]
    return next((p for p in plain if not isinstance(p.get("input"), dict)), plain[0])


def _is_tag(part: Any) -> bool:
    """Pydantic adds the union branch's name to the location: not a key of the file."""
    return isinstance(part, str) and (
        "[" in part or part in {"str", "int", "float", "constrained-int", "constrained-float", "Variant"}
    )


def _unknown_key(location: list[str], model: type[BaseModel]) -> str:
    key = location[-1]
    owner = SECTION_MODELS.get(location[0], model) if len(location) > 1 else model
    known = list(owner.model_fields)
    for section, other in SECTION_MODELS.items():
        if key in other.model_fields and section != "questions":
            return f"unknown key here; it belongs at {section}.{key}"
    if nearest(key, known):
        return f"unknown key, {suggest(key, known)}"
    for factor in (nearest(key, FACTORS),):
        if factor:
            return f"unknown key, did you mean '{FACTORS[factor]}'?"
    return f"unknown key, {suggest(key, known)}"


def local_paths(study: Study, folder: Path) -> Study:
    """Paths in the file are relative to the file, or else to the current folder; hub ids and names stay."""
    return study.model_copy(
        update={
            "base": study.base.model_copy(update={"model": resolve(study.base.model, folder)}),
            "task": _task_paths(study.task, folder),
            "vary": {k: tuple(_factor_paths(k, v, folder) for v in values) for k, values in study.vary.items()},
            "cells": tuple({k: _factor_paths(k, v, folder) for k, v in cell.items()} for cell in study.cells),
        }
    )


def _task_paths(task: Task, folder: Path) -> Task:
    return task.model_copy(update={k: resolve(v, folder) for k in ("data", "eval") if (v := getattr(task, k))})


def _factor_paths(name: str, value: Any, folder: Path) -> Any:
    path = factor_path(name, "vary")
    if path == "base.model" or (path == "base" and isinstance(value, str)):
        return resolve(value, folder)
    if path in ("base", "task") and isinstance(value, dict):
        return {
            k: resolve(v, folder) if k in ("model", "data", "eval") and isinstance(v, str) else v
            for k, v in value.items()
        }
    return value


def resolve(text: str, folder: Path) -> str:
    """An absolute path where ``text`` is one that exists beside the study file or below the current folder."""
    given = Path(text).expanduser()
    for candidate in (folder / given, Path.cwd() / given):
        if candidate.exists():
            return str(candidate.resolve())
    return text


def study_schema() -> dict[str, Any]:
    """JSON Schema of the study file, for editors."""
    schema = Study.model_json_schema()
    schema["title"] = "loracle study"
    return schema
