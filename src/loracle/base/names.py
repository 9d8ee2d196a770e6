"""Names: what may stand in a path, and the nearest right word for a wrong one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

SAFE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")


def is_safe(name: str) -> bool:
    """Whether ``name`` may be a file or folder name inside a study: ``[a-z0-9._-]``, no leading dot."""
    return bool(SAFE_NAME.fullmatch(name)) and ".." not in name


def slug(text: str, limit: int = 60) -> str:
    """``text`` as a safe name: lower case, other characters become ``-``."""
    cleaned = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._") or "x"
    return re.sub(r"\.\.+", ".", cleaned)[:limit]


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like ``word``, or None when nothing is near."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def suggest(word: str, known: Iterable[str]) -> str:
    """``", did you mean 'rank'?"`` or the list of what is known."""
    options = sorted(set(known))
    match = nearest(word, options)
    if match:
        return f"did you mean '{match}'?"
    return "known: " + ", ".join(options)
