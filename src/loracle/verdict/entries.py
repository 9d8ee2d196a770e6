"""One entry of verdicts.json, and the words and figures of its statement."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loracle.verdict.paired import Interval

Entry = dict[str, Any]

KEYS = (
    "question", "scope", "claim", "verdict", "statement", "difference", "metric", "estimate", "interval", "margin",
    "level", "n", "look", "needs", "primary", "adjusted", "exploratory", "arm", "reference", "confounds", "records",
)  # fmt: skip


def entry(**given: Any) -> Entry:
    """An entry with exactly the documented keys, plain JSON values, in their order."""
    unknown = set(given) - set(KEYS)
    if unknown:
        raise ValueError(f"not keys of a verdict: {sorted(unknown)}")
    empty: Entry = dict.fromkeys(KEYS)
    empty |= {"scope": {}, "n": 0, "primary": False, "adjusted": False, "exploratory": False}
    empty |= {"confounds": [], "records": []}
    return {key: _plain(given.get(key, empty[key])) for key in KEYS}


def percent(value: float) -> str:
    """A log ratio as a signed change: 0.0139 -> ``+1.4%``; two digits below 0.1%."""
    change = 100.0 * math.expm1(value)
    return f"{_unsigned_zero(change, 2 if abs(change) < 0.1 else 1)}%"


def points(value: float) -> str:
    """A difference of fractions as signed points: -0.0082 -> ``-0.8``."""
    return _unsigned_zero(100.0 * value, 2 if abs(value) < 0.001 else 1)


def share(value: float) -> str:
    """A share of the whole: 0.934 -> ``93.4%``."""
    return f"{100.0 * value:.1f}%"


def bounds(interval: Interval, show: Callable[[float], str]) -> str:
    return f"{show(interval[0])} to {show(interval[1])}"


def level_text(level: float) -> str:
    """``95%``, ``98.3%``."""
    return f"{100 * level:.4g}%" if level < 0.999 else f"{100 * level:.5g}%"


def seeds_text(n: int) -> str:
    return f"n = {n} seed{'' if n == 1 else 's'}"


def size(count: float) -> str:
    """Bytes with a decimal unit, as GPU makers count: ``3.31 GB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= scale:
            return f"{count / scale:.3g} {unit}" if count < 1000 * scale else f"{count / scale:.0f} {unit}"
    return f"{count:.0f} bytes"


def where(scope: Mapping[str, Any], leave_out: Sequence[str] = ("precision",)) -> str:
    """`` at rank 8, learning_rate 0.0002``; empty when nothing is to say.

    The method is left out: the cell's label, beside which this always stands, names any but LoRA.
    """
    left_out = {*leave_out, "method"}
    named = [f"{k} {shown(v)}" for k, v in scope.items() if k not in left_out and v is not None]
    return f" at {', '.join(named)}" if named else ""


def shown(value: Any) -> str:
    """A factor's value in a sentence: targets as ``q+v``."""
    return "+".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _unsigned_zero(value: float, digits: int) -> str:
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text


def _plain(value: Any) -> Any:
    """JSON's own types; a figure that is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (bool, str, int)):
        return value
    number = float(value)
    return number if math.isfinite(number) else None
