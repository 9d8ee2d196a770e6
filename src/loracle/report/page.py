"""The HTML page: one file, no script, nothing loaded from anywhere; a Content-Security-Policy says so.

All text is escaped by Jinja2 (autoescape); the only unescaped parts are this package's own style sheet and the
figures' base64.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loracle.report.facts import Facts
from loracle.report.wording import plural

TEMPLATES = Path(__file__).parent / "templates"
MARKS = {
    "supported": "✓",
    "rejected": "✕",
    "undecided": "?",
    "confounded": "≠",
    "partially supported": "◐",
    "not asked": "–",
}

FOLD = 12  # a table of more rows is folded under its title


def _always(facts: Facts) -> bool:
    return True


@dataclass(frozen=True)
class Section:
    """One section of the page: ``templates/sections/ID.html`` under a heading, with a link in the contents."""

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


def render(facts: Facts) -> str:
    """The whole page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    style = TEMPLATES.joinpath("report.css").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["data_uri"] = data_uri
    environment.filters["anchor"] = lambda name: name.removesuffix(".png").replace("_", "-")
    template = environment.get_template("report.html")
    sections = [section for section in SECTIONS if section.shown(facts)]
    names = {"marks": MARKS, "plural": plural, "fold": FOLD, "sections": sections}
    return template.render(facts=facts, style=Markup(style), policy=policy(style), **names)


def policy(style: str) -> str:
    """Nothing may load but embedded images and this very style sheet."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
