"""Memory and speed from probes: one measured figure for each cell, alone, in its true storage.

A probe has no seeds. Peak bytes repeat, so the claim on memory is answered by the figure itself; the median
step has the spread of its steps, and the interval is of that one probe only. Where nothing was measured the
answer is undecided and the predicted bytes are quoted as predicted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from loracle.verdict import entries
from loracle.verdict.confounds import NO_BLOCKS, Guard, flatten, listed, precision_label
from loracle.verdict.evidence import Record, StudyEvidence
from loracle.verdict.noninferiority import difference, verdict
from loracle.verdict.paired import Interval
from loracle.verdict.scope import check, label, pairs, quantized, scope_of

MEMORY_MARGIN = 0.01
SPEED_MARGIN = 0.05
LEVEL = 0.95
SAME = ("device", "batch_size", "length", "compute_dtype", "gradient_checkpointing")
DECILES = 2.0 * float(stats.norm.ppf(0.9))
MEDIAN_FACTOR = math.sqrt(math.pi / 2.0)


def memory_entries(found: StudyEvidence, question: Mapping[str, Any]) -> list[entries.Entry]:
    """ "X lowers the peak memory by more than MARGIN", for each quantized cell against its 16-bit reference."""
    margin = _margin(question, MEMORY_MARGIN)
    return [_memory(found, *pair, margin, question.get("compare")) for pair in pairs(found)]


def speed_entries(found: StudyEvidence, question: Mapping[str, Any]) -> list[entries.Entry]:
    """ "A step of X takes less than MARGIN more time", for each quantized cell against its 16-bit reference."""
    margin = _margin(question, SPEED_MARGIN)
    return [_speed(found, *pair, margin, question.get("compare")) for pair in pairs(found)]


def probe_of(found: StudyEvidence, cell: Record) -> Record | None:
    """The cell's probe; of a quantized cell with several, the one in quantized storage."""
    mine = [p for p in found.probes if p.get("cell") == cell["id"]]
    return next((p for p in mine if not other_storage(cell, p)), mine[0] if mine else None)


def _memory(found: StudyEvidence, arm: Record, reference: Record, margin: float, bundle: Any) -> entries.Entry:
    a, b, stands = guarded(found, arm, reference, bundle)
    names = f"{label(arm)} against {label(reference)}{entries.where(scope_of(found, arm))}"
    claim = f"{label(arm)} lowers peak memory by more than {100 * margin:.3g}% against {label(reference)}"
    given = _common(found, "memory", arm, reference, claim, margin, stands) | {"metric": "peak_allocated_log_ratio"}
    if _oom(a) != _oom(b):
        fitting, lost, kept = (reference, arm, b) if _oom(a) else (arm, reference, a)
        peak = figure(kept, "peak_allocated_bytes")
        if peak is not None:
            text = f"{names}: {label(lost)} does not fit on {_device(a or b)}, {label(fitting)} peaks at"
            text += f" {entries.size(peak)} in {storage_of(fitting, kept)} storage"
            return _closed(given, stands, "rejected" if _oom(a) else "supported", text)
    left, right = figure(a, "peak_allocated_bytes"), figure(b, "peak_allocated_bytes")
    missing = _missing(arm, reference, a, b, left, right)
    if missing or left is None or right is None:
        predicted = "" if stands.confounded else _predicted(arm, reference)
        return _closed(given, stands, "undecided", f"{names}: {missing}", predicted)
    ratio = math.log(left / right)
    text = f"{label(arm)} changes peak memory by {entries.percent(ratio)}{entries.where(scope_of(found, arm))}: "
    text += f"{entries.size(left)} in {_storage(a)} storage against {entries.size(right)} of {label(reference)}"
    text += f" (one probe each, measured on {_device(a)}, margin {100 * margin:.3g}%)"
    state = "supported" if ratio < math.log1p(-margin) else "rejected"
    return _closed(given | {"estimate": ratio, "n": 1}, stands, state, text, attribution(found, arm, reference))


def _speed(found: StudyEvidence, arm: Record, reference: Record, margin: float, bundle: Any) -> entries.Entry:
    a, b, stands = guarded(found, arm, reference, bundle)
    claim = f"a step of {label(arm)} takes less than {100 * margin:.3g}% more time than one of {label(reference)}"
    given = _common(found, "speed", arm, reference, claim, margin, stands) | {"metric": "ms_per_step_log_ratio"}
    left, right = steps_of(a), steps_of(b)
    missing = _missing(arm, reference, a, b, left, right)
    if missing or left is None or right is None:
        text = f"{label(arm)} against {label(reference)}{entries.where(scope_of(found, arm))}: {missing}"
        return _closed(given, stands, "undecided", text)
    ratio, interval = time_ratio(left, right)
    text = f"a step of {label(arm)} takes {left['median']:.3g} ms in {_storage(a)} storage against"
    text += f" {right['median']:.3g} ms of {label(reference)}{entries.where(scope_of(found, arm))}:"
    text += f" {entries.percent(ratio)} (one probe each on {_device(a)}, "
    spread = (
        f"95% interval {entries.bounds(interval, entries.percent)} from the spread of steps alone"
        if interval
        else "spread unknown"
    )
    state = verdict(interval, math.log1p(margin), "lower")
    given |= {"estimate": ratio, "interval": interval, "n": 1}
    given["difference"] = None if stands.confounded else difference(interval, "lower")
    return _closed(given, stands, state, f"{text[0].upper()}{text[1:]}{spread}, margin {100 * margin:.3g}%)")


def attribution(found: StudyEvidence, arm: Record, reference: Record) -> str:
    """The 2 x 2 of {16-bit, quantized} x {checkpointing off, on} where its four cells were measured; else
    empty.

    Also of a pair that is confounded by checkpointing, where it says which of the two saved what.
    """
    square: dict[tuple[bool, bool], Record] = {}
    for fewer_bits, cell in ((False, reference), (True, arm)):
        other = _toggled(found, cell)
        square |= {(fewer_bits, _checkpoints(c)): c for c in (cell, other) if c is not None}
    peaks = {key: figure(probe_of(found, cell), "peak_allocated_bytes") for key, cell in square.items()}
    known = {key: peak for key, peak in peaks.items() if peak is not None}
    if len(known) < 4:
        return ""
    off16 = known[False, False]
    saved = [entries.size(off16 - known[key]) for key in ((True, False), (False, True), (True, True))]
    beside = guarded(found, square[True, False], square[False, False], None)[2].confounds
    what = f"quantization ({listed(['precision', *beside])} together)" if beside else "quantization"
    return (
        f"Of {entries.size(off16)} (16-bit, no gradient checkpointing), {what} alone saves {saved[0]}, "
        f"checkpointing alone {saved[1]}, both {saved[2]}."
    )


def _common(
    found: StudyEvidence,
    question: str,
    arm: Record,
    reference: Record,
    claim: str,
    margin: float,
    stands: Guard,
) -> dict[str, Any]:
    sign = -1.0 if question == "memory" else 1.0
    return {
        "question": question,
        "scope": scope_of(found, arm),
        "claim": claim + entries.where(scope_of(found, arm)),
        "margin": math.log1p(sign * margin),
        "level": LEVEL,
        "arm": arm["id"],
        "reference": reference["id"],
        "confounds": stands.confounds,
    }


def _closed(given: dict[str, Any], stands: Guard, state: str, text: str, after: str = "") -> entries.Entry:
    final = "confounded" if stands.confounded else state
    mark = "; " if final == "undecided" else ": "
    tail = [f"{text}{mark}{final}{', so no verdict' if stands.confounded else ''}."]
    tail += [f"{t[0].upper()}{t[1:]}." for t in (stands.text,) if t] + [t for t in (after.strip(),) if t]
    return entries.entry(**given, verdict=final, statement=" ".join(tail))


def guarded(
    found: StudyEvidence, arm: Record, reference: Record, bundle: Any
) -> tuple[Record | None, Record | None, Guard]:
    """Both probes and the guard over the configs and the probes' own settings."""
    a, b = probe_of(found, arm), probe_of(found, reference)
    unlike = [k for k in SAME if a and b and a.get(k) is not None and b.get(k) is not None and a[k] != b[k]]
    return a, b, check(found, arm, reference, "precision", bundle, also=unlike)


def _missing(arm: Record, reference: Record, a: Record | None, b: Record | None, left: Any, right: Any) -> str:
    """Why there is no measured comparison; empty when there is one."""
    for cell, probe, value in ((arm, a, left), (reference, b, right)):
        if probe is None:
            return f"{label(cell)} was not probed"
        if value is None:
            why = (
                probe.get("peak_allocated_bytes_reason")
                or probe.get("reason")
                or f"the probe ended as {probe.get('status')}"
            )
            return f"{label(cell)} has no measured figure ({why})"
        if other_storage(cell, probe):
            return f"{label(cell)} was measured in {_storage(probe)} storage only: the claim is on quantized storage"
    return ""


def _predicted(arm: Record, reference: Record) -> str:
    a, b = arm.get("predicted_bytes"), reference.get("predicted_bytes")
    if not a or not b:
        return ""
    change = entries.percent(math.log(a / b))
    return f" Predicted, not measured: {entries.size(a)} against {entries.size(b)} ({change})."


def time_ratio(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[float, Interval | None]:
    """Log ratio of two median steps; the interval from p10 to p90 as of a normal (median's error: sd
    sqrt(pi/2n)).
    """
    ratio = math.log(a["median"] / b["median"])
    errors = []
    for steps in (a, b):
        if any(not steps.get(k) for k in ("p10", "p90", "n")) or steps["n"] < 3:
            return ratio, None
        sd = (math.log(steps["p90"]) - math.log(steps["p10"])) / DECILES
        errors.append(MEDIAN_FACTOR * sd / math.sqrt(steps["n"]))
    half = float(stats.norm.ppf(0.5 + LEVEL / 2)) * math.hypot(*errors)
    return ratio, (ratio - half, ratio + half)


def _toggled(found: StudyEvidence, cell: Record) -> Record | None:
    """The cell that differs in gradient checkpointing alone."""
    path = "train.gradient_checkpointing"
    mine = flatten(cell.get("config") or {})
    for other in found.cells.values():
        theirs = flatten(other.get("config") or {})
        same = {k: v for k, v in mine.items() if k != path} == {k: v for k, v in theirs.items() if k != path}
        if same and bool(mine.get(path)) != bool(theirs.get(path)):
            return other
    return None


def _checkpoints(cell: Record) -> bool:
    return bool(((cell.get("config") or {}).get("train") or {}).get("gradient_checkpointing"))


def steps_of(probe: Record | None) -> Mapping[str, Any] | None:
    steps = (probe or {}).get("ms_per_step")
    return steps if isinstance(steps, Mapping) and steps.get("median") else None


def figure(probe: Record | None, key: str) -> float | None:
    value = (probe or {}).get(key)
    return float(value) if isinstance(value, (int, float)) and value > 0 else None


def _margin(question: Mapping[str, Any], default: float) -> float:
    margin = question.get("margin")
    return default if margin is None else float(margin)


def _oom(probe: Record | None) -> bool:
    return probe is not None and probe.get("status") == "oom"


def storage_of(cell: Record, probe: Record | None) -> str:
    """How the weights lie in a figure of memory or speed. Predictions and probes are of quantized storage."""
    return str((probe or {}).get("storage") or "quantized") if quantized(cell) else "unquantized"


def _storage(probe: Record | None) -> str:
    return str((probe or {}).get("storage") or "unnamed")


def _device(probe: Record | None) -> str:
    return str((probe or {}).get("device") or "an unnamed device")


def other_storage(cell: Record, probe: Record) -> bool:
    quantized = precision_label(cell.get("precision")) not in NO_BLOCKS - {"int8"}
    return quantized and probe.get("storage") == "dequantized"


__all__: Sequence[str] = (
    "attribution",
    "figure",
    "guarded",
    "memory_entries",
    "other_storage",
    "probe_of",
    "speed_entries",
    "steps_of",
    "storage_of",
    "time_ratio",
)
