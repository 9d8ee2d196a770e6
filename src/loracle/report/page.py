"""The HTML page: one file, no script, nothing loaded from anywhere; a Content-Security-Policy says so.

All text is escaped by Jinja2 (autoescape); the only unescaped parts are this package's own style sheet and the
figures' base64.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from loracle.report.facts import Facts
from loracle.report.sections import shown
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
    names = {"marks": MARKS, "plural": plural, "fold": FOLD, "sections": shown(facts)}
    return template.render(facts=facts, style=Markup(style), policy=policy(style), **names)


def policy(style: str) -> str:
    """Nothing may load but embedded images and this very style sheet."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
