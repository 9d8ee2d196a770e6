"""The grounds on which cells may be set against each other: one base, one task, one tokenized data set.

Losses per token of different tasks or tokenizers are different units, and a setting that is good on one says nothing
about the other. So whatever chooses among cells chooses within one ground.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loracle.verdict import entries
from loracle.verdict.evidence import Record, StudyEvidence
from loracle.verdict.scope import identity, other_factors

NAMED = ("base", "task")


@dataclass(frozen=True)
class Ground:
    """``name`` is for people (``sst2 on gpt2``); ``cells`` in the plan's order."""

    name: str
    base: str
    task: str
    data: str | None
    cells: tuple[Record, ...]

    @property
    def ids(self) -> frozenset[str]:
        return frozenset(str(cell["id"]) for cell in self.cells)


def grounds(found: StudyEvidence) -> list[Ground]:
    """The study's cells by ground, in the plan's order. A plan that does not say what its cells stand on is one ground."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for cell in found.cells.values():
        groups.setdefault(_key(cell), []).append(cell)
    return [
        Ground(name, *_base_and_task(cells[0]), cells[0].get("data"), tuple(cells))
        for name, cells in zip(_names(found, list(groups.values())), groups.values(), strict=True)
    ]


def _key(cell: Record) -> tuple[str, ...]:
    config = _config(cell)
    base = config.get("base") or {}
    which = base.get("fingerprint") or (base.get("model"), base.get("revision"))
    return repr(which), identity(config, "task"), str(cell.get("data"))


def _names(found: StudyEvidence, groups: Sequence[Sequence[Record]]) -> list[str]:
    """``sst2 on gpt2``; where two grounds have one name, with what else differs (``at samples 500``)."""
    pairs = [_base_and_task(cells[0]) for cells in groups]
    factors = [other_factors(found, cells[0]) for cells in groups]
    names = []
    for pair, own in zip(pairs, factors, strict=True):
        alike = [other for other, its in zip(factors, pairs, strict=True) if its == pair]
        apart = {k: v for k, v in own.items() if k not in NAMED and any(other.get(k) != v for other in alike)}
        names.append(f"{pair[1]} on {pair[0]}{entries.where(apart)}")
    return names


def _base_and_task(cell: Record) -> tuple[str, str]:
    config = _config(cell)
    return identity(config, "base"), identity(config, "task")


def _config(cell: Record) -> Mapping[str, Any]:
    config = cell.get("config")
    return config if isinstance(config, Mapping) else {}
