"""From a command's options to a study, and from a study's complaints back to the options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def named(options: Mapping[str, str]) -> Iterator[None]:
    """What goes wrong at a dotted path of the study is shown at the option that set it (``options``: path → option)."""
    from loracle.base.errors import LoracleError

    try:
        yield
    except LoracleError as error:
        where, colon, rest = str(error).partition(": ")
        for path, option in options.items():
            if colon and (where == path or where.startswith(f"{path}.")):
                error.args = (f"{option}: {rest}",)
        raise


def tree(values: Mapping[str, Any]) -> dict[str, Any]:
    """``{"a.b": 1, "c": null}`` as ``{"a": {"b": 1}}``: what was not given is left to the study's defaults."""
    from loracle.spec.aliases import put

    out: dict[str, Any] = {}
    for path, value in values.items():
        if value is not None:
            put(out, path, value)
    return out


def words(text: str | None) -> str | list[str] | None:
    """``q,v`` as a list; ``all-linear`` and a missing value as they are."""
    if text is None or text == "all-linear":
        return text
    return [word.strip() for word in text.split(",") if word.strip()]


def number(text: str | None) -> float | str | None:
    """A number where it is one, else the text (``2r``)."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text
