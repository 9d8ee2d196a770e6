"""Text made inert: what a model, a label or a file name says must not act in a spreadsheet or a Markdown viewer.

HTML needs nothing here: the page's template escapes by itself (Jinja2 autoescape).
"""

from __future__ import annotations

import math
import re
from typing import Any

FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
_SPECIAL = re.compile(r"([\\`*_\[\]#|~{}])")
_LIST = re.compile(r"^([-+]|\d+[.)])(?=\s|$)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2066-\u2069]")


def shown(text: Any) -> str:
    """Text with its line breaks; control characters and marks that reorder text become visible."""
    return _CONTROL.sub("\ufffd", str(text).encode("utf-8", "replace").decode())


def plain(text: Any) -> str:
    """The same on one line."""
    return " ".join(_CONTROL.sub(" ", str(text).encode("utf-8", "replace").decode()).split())


def csv_cell(value: Any) -> str:
    """A CSV cell: numbers as they are (shortest exact form), no figure as empty, text that a sheet would run quoted."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else ""
    text = plain(value)
    return f"'{text}" if text.startswith(FORMULA) else text


def markdown(value: Any) -> str:
    """Text as Markdown that shows it and does nothing: no emphasis, link, image, autolink, HTML or table cell."""
    text = plain(value)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _SPECIAL.sub(r"\\\1", text)
    text = text.replace("://", "&#58;//").replace("@", "&#64;")
    text = re.sub(r"(?i)\b(www)\.", r"\1&#46;", text)
    text = re.sub(r"(?i)\b(mailto|xmpp|javascript|data):", r"\1&#58;", text)
    return _LIST.sub(lambda m: f"\\{m[0]}" if m[0] in "-+" else f"{m[0][:-1]}\\{m[0][-1]}", text)
