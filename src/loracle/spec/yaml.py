"""YAML as people mean it: ``2e-4`` is a number, ``no`` is a word, keys stand once, sizes are bounded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from loracle.base.errors import SpecError

MAX_BYTES = 1 << 20
MAX_ALIASES = 64
MAX_DEPTH = 24


class StudyLoader(yaml.SafeLoader):
    """Safe YAML with the number and boolean rules of YAML 1.2, unique keys and a bound on aliases and depth."""

    aliases = 0
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            self.aliases += 1
            if self.aliases > MAX_ALIASES:
                raise SpecError(f"more than {MAX_ALIASES} YAML aliases")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise SpecError(f"nested deeper than {MAX_DEPTH} levels")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def _mapping(loader: StudyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if not isinstance(key, str):
            raise SpecError(f"key {key!r} is not a word: put it in quotes", f"line {line}")
        if key in seen:
            raise SpecError(f"key '{key}' stands twice", f"line {line}")
        seen[key] = loader.construct_object(value_node, deep=True)
    return seen


StudyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
StudyLoader.yaml_implicit_resolvers = {
    first: [
        (tag, rule)
        for tag, rule in rules
        if tag not in {f"tag:yaml.org,2002:{t}" for t in ("bool", "int", "float", "timestamp")}
    ]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class StudyDumper(yaml.SafeDumper):
    """Quotes the words that either rules, YAML 1.1's or ours, would read as something else."""


for _tag, _rule, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    for _class in (StudyLoader, StudyDumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_rule})$"), list(_first))
StudyLoader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
StudyLoader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(node.value))


def read_yaml(text: str, where: str) -> Any:
    """Parse YAML text; errors say ``where:line``."""
    if len(text.encode()) > MAX_BYTES:
        raise SpecError(f"larger than {MAX_BYTES} bytes", where)
    loader = StudyLoader(text)
    try:
        return loader.get_single_data()
    except SpecError as error:
        raise SpecError(str(error), where) from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise SpecError(f"not valid YAML: {error.problem or error.context}", f"{where}{line}") from None
    except yaml.YAMLError as error:
        raise SpecError(f"not valid YAML: {' '.join(str(error).split())}", where) from None
    finally:
        loader.dispose()


def read_yaml_file(path: Path) -> Any:
    """Parse a YAML file of at most ``MAX_BYTES``."""
    if not path.is_file():
        raise SpecError("no such file", str(path))
    if path.stat().st_size > MAX_BYTES:
        raise SpecError(f"larger than {MAX_BYTES} bytes", str(path))
    try:
        return read_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError:
        raise SpecError("not UTF-8 text", str(path)) from None


def write_yaml(value: Any) -> str:
    """YAML text that ``read_yaml`` reads back as the same value."""
    return yaml.dump(value, Dumper=StudyDumper, sort_keys=False, allow_unicode=True, width=110)
