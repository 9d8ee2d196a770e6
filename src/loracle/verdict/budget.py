"""What a cell takes, beside a memory budget: measured where there is a probe, else predicted, and marked so.

One run alone in its true storage. The bytes of a GPU that can train it are its peak, and two things no probe holds: the
longest batch, where the probe met only shorter ones, and what lies beside the peak (CUDA's context, the allocator's
slack). Both are taken from the forecasts and named; where there is no forecast they are left out, and that is said.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from loracle.verdict import entries
from loracle.verdict.evidence import Record, StudyEvidence
from loracle.verdict.resources import figure, other_storage, probe_of, steps_of, storage_of

Prefer = Literal["speed", "memory", "quality"]
Basis = Literal["measured", "predicted"]
PREFERENCES: tuple[Prefer, ...] = ("speed", "memory", "quality")

KEEPS_NUMBERS = {"train.gradient_checkpointing", "train.batch_size", "train.gradient_accumulation"}
"""What may be changed without changing what is learned: the gradient of an optimizer step stays that of the same rows."""


@dataclass(frozen=True)
class Forecasts:
    """``fits``: a cell's ``fit`` for the budget, as in plan.json; ``source``: the file; ``reason``: why there are none."""

    fits: Mapping[str, Record] = field(default_factory=dict)
    source: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Wish:
    """What is asked: bytes of one GPU (``text`` as written), the margin in eval loss (0.05 = 5%), what to prefer."""

    bytes: int
    text: str
    margin: float
    prefer: Prefer = "speed"
    forecasts: Forecasts = Forecasts()


@dataclass(frozen=True)
class Memory:
    """Bytes that one run of a cell takes. ``needs_bytes`` is held against the budget; None, with a reason, where nothing is
    known. ``longest_bytes`` and ``beside_bytes`` are predicted and part of it, None where no forecast tells."""

    needs_bytes: int | None
    peak_bytes: int | None
    basis: Basis | None
    storage: str | None
    device: str | None
    source: str | None
    longest_bytes: int | None = None
    beside_bytes: int | None = None
    at_least: bool = False
    reason: str | None = None


@dataclass(frozen=True)
class Time:
    """A probe's median step; ``ms_per_step`` is None, with a reason, where none was measured."""

    ms_per_step: Record | None
    tokens_per_s: float | None = None
    storage: str | None = None
    device: str | None = None
    source: str | None = None
    reason: str | None = None


def peaks_of(found: StudyEvidence, cells: Collection[Record]) -> tuple[dict[str, int], Basis]:
    """Bytes by cell id, and what they are: peaks measured on one device where every cell has one, else predicted, as far as
    known; never both, for a prediction beside a measurement is no comparison."""
    probes = {str(cell["id"]): _probed(found, cell) for cell in cells}
    if None not in probes.values() and len({probe.get("device") for probe in probes.values() if probe}) == 1:
        return {name: int(probe["peak_allocated_bytes"]) for name, probe in probes.items() if probe}, "measured"
    known = {str(cell["id"]): figure(cell, "predicted_bytes") for cell in cells}
    return {name: int(size) for name, size in known.items() if size is not None}, "predicted"


def memory_of(found: StudyEvidence, cell: Record, wish: Wish) -> Memory:
    """The cell's memory as it was run."""
    measured = _probed(found, cell)
    if measured is not None:
        return _measured(cell, measured, int(measured["peak_allocated_bytes"]), wish)
    probe = _tried(found, cell)
    ran_out = _ran_out_of(found, cell, probe)
    if ran_out is not None and probe is not None and ran_out >= wish.bytes:
        reason = f"out of memory on {probe.get('device') or 'its device'}, which has {entries.size(ran_out)}"
        return Memory(
            ran_out,
            None,
            "measured",
            storage_of(cell, probe),
            probe.get("device"),
            _path(probe),
            at_least=True,
            reason=reason,
        )
    return _predicted(cell, wish, _why_unmeasured(cell, probe))


def changed_memory(cell: Record, wish: Wish) -> tuple[dict[str, Any] | None, Memory | None]:
    """(the smallest change with which the cell would fit, what it would take then): predicted; (None, None) where no forecast
    knows one."""
    fit = wish.forecasts.fits.get(str(cell["id"])) or {}
    change, needs = fit.get("change"), fit.get("change_needs_bytes")
    if not change or needs is None or needs > wish.bytes:
        return None, None
    storage = "quantized" if "precision" in change else storage_of(cell, None)
    reason = "not run in this study"
    return dict(change), Memory(int(needs), None, "predicted", storage, None, wish.forecasts.source, reason=reason)


def keeps_numbers(cell: Record, change: Mapping[str, Any]) -> bool:
    """Whether a change leaves what is learned as it is: checkpointing, or a smaller batch with as many rows a step."""
    if not set(change) <= KEEPS_NUMBERS:
        return False
    train = dict((cell.get("config") or {}).get("train") or {})
    new = train | {path.removeprefix("train."): value for path, value in change.items()}
    return rows_per_step(train) == rows_per_step(new)


def rows_per_step(train: Mapping[str, Any]) -> int:
    """Rows of one optimizer step."""
    return int(train.get("batch_size") or 1) * int(train.get("gradient_accumulation") or 1)


def time_of(found: StudyEvidence, cell: Record) -> Time:
    """The cell's time as it was run."""
    probe = _tried(found, cell)
    steps = steps_of(probe)
    if probe is None or steps is None:
        return Time(None, reason="its time was not measured" if probe is None else _why_unmeasured(cell, probe))
    if other_storage(cell, probe):
        return Time(None, reason=f"its time was measured in {probe.get('storage')} storage only")
    return Time(steps, figure(probe, "tokens_per_s"), storage_of(cell, probe), probe.get("device"), _path(probe))


def _measured(cell: Record, probe: Record, peak: int, wish: Wish) -> Memory:
    whole, met = figure(cell, "predicted_bytes"), figure(probe, "predicted_bytes")
    longest = None if whole is None or met is None else max(0, int(whole - met))
    needs = figure(wish.forecasts.fits.get(str(cell["id"])), "needs_bytes")
    beside = None if whole is None or needs is None else max(0, int(needs - whole))
    reason = None if beside is not None else _without_context(wish)
    total = peak + (longest or 0) + (beside or 0)
    return Memory(
        total,
        peak,
        "measured",
        storage_of(cell, probe),
        probe.get("device"),
        _path(probe),
        longest,
        beside,
        reason=reason,
    )


def _predicted(cell: Record, wish: Wish, unmeasured: str) -> Memory:
    peak = figure(cell, "predicted_bytes")
    needs = figure(wish.forecasts.fits.get(str(cell["id"])), "needs_bytes")
    if needs is not None:
        beside = max(0, int(needs - peak)) if peak is not None else None
        known = int(peak) if peak is not None else None
        source = wish.forecasts.source
        return Memory(
            int(needs), known, "predicted", storage_of(cell, None), None, source, None, beside, reason=unmeasured
        )
    if peak is None:
        why = cell.get("predicted_reason") or "the plan has no prediction"
        return Memory(None, None, None, None, None, None, reason=f"{unmeasured}, and not predicted ({why})")
    reason = f"{unmeasured}; {_without_context(wish)}"
    return Memory(int(peak), int(peak), "predicted", storage_of(cell, None), None, "plan.json", reason=reason)


def _without_context(wish: Wish) -> str:
    why = wish.forecasts.reason or "no forecast was made"
    return f"without CUDA's context and what the allocator keeps ({why})"


def _tried(found: StudyEvidence, cell: Record) -> Record | None:
    """The cell's probe, unless it was never started: that it would not fit was a prediction for another budget."""
    probe = probe_of(found, cell)
    return None if probe is None or probe.get("started") is False else probe


def _probed(found: StudyEvidence, cell: Record) -> Record | None:
    """The cell's probe, where it measured a peak in the cell's own storage."""
    probe = _tried(found, cell)
    if probe is None or figure(probe, "peak_allocated_bytes") is None or other_storage(cell, probe):
        return None
    return probe


def _ran_out_of(found: StudyEvidence, cell: Record, probe: Record | None) -> int | None:
    """Bytes that a probe had when it ran out of memory; None where it did not, or they are not known."""
    if probe is None or probe.get("status") != "oom":
        return None
    had = [figure(found.plan.get("machine"), "gpu_memory_bytes"), figure(cell.get("fit"), "budget_bytes")]
    return min((int(size) for size in had if size is not None), default=None)


def _why_unmeasured(cell: Record, probe: Record | None) -> str:
    if probe is None:
        return "not probed"
    if other_storage(cell, probe):
        return f"measured in {probe.get('storage')} storage only"
    why = probe.get("peak_reason") or probe.get("peak_allocated_bytes_reason") or probe.get("reason")
    return str(why or f"the probe ended as {probe.get('status')}")


def _path(probe: Record) -> str:
    return f"probes/{probe.get('id') or probe.get('cell')}/record.json"
