"""A study file of one cell, to paste: what differs from the defaults, in the keys of docs/study.md.

What the machine decided (compute dtype, storage) is left to the machine that will run it, unless the study itself said so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from loracle.base.names import slug
from loracle.spec.aliases import put
from loracle.spec.factors import cell_from_config
from loracle.spec.study import Adapter, Base, Cell, Task, Train
from loracle.spec.yaml import write_yaml
from loracle.tasks.library import load_task

SECTIONS: Mapping[str, type[Base | Adapter | Train]] = {"base": Base, "adapter": Adapter, "train": Train}
DECIDED = ("compute_dtype", "storage")
NAME_LIMIT = 60


def snippet(study: Mapping[str, Any], cell: Mapping[str, Any], change: Mapping[str, Any], gpu_memory: str) -> str:
    """YAML of a study of this one cell with ``change`` made, trained once with the study's first seed."""
    config = cell["config"]
    tree = _cell(cell_from_config(config), study)
    tree["base"]["model"] = _model(study, config["base"])
    for path, value in change.items():
        put(tree, path, value)
    seeds = study.get("seeds") or [42]
    name = slug(f"{study.get('name') or 'study'}-recommended", NAME_LIMIT).rstrip("-._")
    return write_yaml({"name": name, **tree, "seeds": [seeds[0]], "run": {"gpu_memory": gpu_memory}})


def _cell(cell: Cell, study: Mapping[str, Any]) -> dict[str, Any]:
    """The cell's settings as plain data, defaults left out."""
    whole, plain = cell.model_dump(mode="json"), Cell(task=cell.task).model_dump(mode="json")
    tree: dict[str, Any] = {"base": {}, "task": _task(cell.task)}
    for key, value in whole.items():
        if key in SECTIONS:
            default = SECTIONS[key]().model_dump(mode="json")
            tree[key] = {k: v for k, v in value.items() if k not in default or v != default[k]}
        elif key != "task" and value != plain[key] and value is not None and not _left_to_the_machine(key, study):
            tree[key] = value
    tree["precision"] = whole["precision"]  # what the recommendation is about is written out
    tree["adapter"] |= {key: whole["adapter"][key] for key in ("rank", "alpha", "targets")}
    return {key: tree[key] for key in Cell.model_fields if key in tree and (tree[key] != {} or key == "base")}


def _left_to_the_machine(key: str, study: Mapping[str, Any]) -> bool:
    asked = study.get(key, "auto") != "auto" or key in (study.get("vary") or {})
    return key in DECIDED and not asked


def _task(task: Task) -> dict[str, Any]:
    """What the user has to say of the task: of one of the library its name and what is set otherwise."""
    if task.name is None:
        told, own = {"data": task.data}, Task(data=task.data).model_dump(mode="json")
    else:
        told, own = {"name": task.name}, load_task(Task(name=task.name)).model_dump(mode="json")
    return told | {
        key: value
        for key, value in task.model_dump(mode="json").items()
        if key not in own or (value != own[key] and not (task.name and _same_file(key, value, own[key])))
    }


def _same_file(key: str, value: Any, own: Any) -> bool:
    """Whether both are the library's file, in two installations."""
    return key in ("data", "eval") and bool(value and own) and PurePath(value).name == PurePath(own).name


def _model(study: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """The base as the study writes it (the plan has where it was found)."""
    vary = study.get("vary") or {}
    more = [cell.get("base") for cell in study.get("cells") or [] if isinstance(cell, Mapping)]
    written = [study.get("base"), *vary.get("base", ()), *vary.get("base.model", ()), *more]
    names = [str(one.get("model") if isinstance(one, Mapping) else one) for one in written if one]
    return next((name for name in names if PurePath(name).name == base.get("name")), str(base["model"]))
