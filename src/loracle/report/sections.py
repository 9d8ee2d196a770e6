"""The sections of the report in their order, the same in both renderings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loracle.report.facts import Facts


def _always(facts: Facts) -> bool:
    return True


@dataclass(frozen=True)
class Section:
    """``id``: of ``templates/sections/ID.html`` and of its Markdown (``markdown.BODIES``); ``link``: its name in the contents."""

    id: str
    link: str
    title: str
    shown: Callable[[Facts], Any] = _always


SECTIONS = (
    Section("budget", "Within the budget", "What to choose within the memory budget", lambda facts: facts.places),
    Section("verdicts", "Verdicts", "What is decided, and what is not"),
    Section("basis", "Basis", "What this rests on"),
    Section("learning", "Learning", "Did the runs learn?"),
    Section("classes", "Label by label", "Label by label", lambda facts: facts.classes),
    Section("methods", "Methods", "Methods side by side", lambda facts: facts.methods),
    Section("cost", "Cost of quantization", "What quantization costs"),
    Section("groups", "Groups", "Group by group", lambda facts: facts.groups),
    Section("likeness", "Likeness", "Do both learn the same?"),
    Section("allocation", "Rank by layer", "Where rank is needed", lambda facts: facts.allocation),
    Section("hypotheses", "Hypotheses", "Hypotheses"),
    Section("tradeoff", "Quality and memory", "Quality against memory"),
    Section("resources", "Memory and speed", "Memory and speed"),
    Section("failures", "Failure modes", "Failure modes"),
    Section("runs", "Runs", "Every planned run"),
    Section("data", "Data", "Data"),
    Section("examples", "Examples", "Answers side by side"),
    Section("provenance", "Provenance", "Provenance"),
    Section("reading", "How to read", "How to read a verdict"),
)


def shown(facts: Facts) -> list[Section]:
    """Those that have something to show."""
    return [section for section in SECTIONS if section.shown(facts)]
