"""A recommendation within a memory budget: what was asked, the forecasts that the folder has, the file, the table.

The choice itself is ``loracle.verdict.choice``; forecasts are made by a worker that ``loracle.study.forecasts`` starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loracle.base.errors import LoracleError, StoreError
from loracle.report.evidence import StudyData, number
from loracle.report.grids import Grid, Item
from loracle.report.inert import plain, shown
from loracle.report.snippet import snippet
from loracle.spec.study import parse_bytes
from loracle.store.files import SCHEMA, read_json, write_json
from loracle.store.layout import StudyFolder
from loracle.verdict import entries
from loracle.verdict.budget import Forecasts, Prefer, Wish
from loracle.verdict.claims import LOSS_MARGIN

STATES = (
    ("recommended", "recommended"),
    ("runner_up", "runner-up"),
    ("also_fit", "fits"),
    ("does_not_fit", "does not fit"),
    ("undecided", "undecided"),
    ("excluded", "excluded"),
)


@dataclass(frozen=True)
class Asked:
    """The options of ``loracle report``: ``gpu_memory`` as written, the margin (None: the study's), what to prefer."""

    gpu_memory: str
    margin: float | None = None
    prefer: Prefer = "speed"


@dataclass(frozen=True)
class Place:
    """What the report shows of one base and task. ``study`` is YAML, or "" where nothing is recommended."""

    cells: Grid
    reasons: Sequence[str]
    study: str


def wish_of(data: StudyData, layout: StudyFolder, asked: Asked) -> Wish:
    """What was asked, with the folder's forecasts for it and the study's own margin where none was given."""
    size = parse_bytes(asked.gpu_memory)
    margin = asked.margin if asked.margin is not None else _own_margin(data)
    return Wish(size, asked.gpu_memory, margin, asked.prefer, _forecasts(layout, size))


def write_recommendation(path: Path, data: StudyData, advice: Mapping[str, Any], wish: Wish | None) -> None:
    """recommendation.json; without a budget there is none, and an earlier one goes."""
    if wish is None:
        path.unlink(missing_ok=True)
        return
    places = [{**place, **_study_file(data, place, wish)} for place in advice["places"]]
    write_json(
        path,
        {
            "schema": SCHEMA,
            "kind": "recommendation",
            "study": data.name,
            "gpu_memory": wish.text,
            "budget_bytes": wish.bytes,
            "margin": wish.margin,
            "prefer": wish.prefer,
            "forecasts": {"source": wish.forecasts.source, "reason": wish.forecasts.reason},
            "text": advice["text"],
            "places": places,
        },
    )


def places(data: StudyData, advice: Mapping[str, Any], wish: Wish | None) -> list[Place]:
    """What the report shows below the recommendation; nothing without a budget."""
    found = [] if wish is None else advice["places"]
    several = len(found) > 1
    return [
        Place(
            _grid(place, plain(f"{place['ground']}, within {wish.text}" if several else f"Within {wish.text}"), wish),
            [plain(text) for text in place["reasons"]] if several else [],
            shown(_study_file(data, place, wish)["study_yaml"] or ""),
        )
        for place in found
        if wish is not None
    ]


def _grid(place: Mapping[str, Any], title: str, wish: Wish) -> Grid:
    """Every cell of the place, none left out: its state, what it takes, what it costs, and why."""
    heads = ["cell", "state", "memory of one GPU", "step", "eval loss", "batch", "checkpointing", "because"]
    rows = [_row(words, one) for key, words in STATES for one in _listed(place[key])]
    note = f"Good enough is within {100 * wish.margin:.3g}% in eval loss; what is preferred is {wish.prefer}. "
    note += "Memory is of one run alone in its true storage; batch is rows × accumulation. "
    note += "Eval loss is the paired change against the cell that quality is held against."
    return Grid(title, heads, rows, note)


def _row(state: str, one: Mapping[str, Any]) -> list[Item]:
    memory, time, quality = one.get("memory") or {}, one.get("time") or {}, one.get("quality") or {}
    needs, steps = memory.get("needs_bytes"), time.get("ms_per_step")
    return [
        Item(plain(one["name"])),
        Item(state),
        Item(f"{'≥ ' if memory.get('at_least') else ''}{entries.size(needs)} {memory['basis']}" if needs else "–"),
        Item(f"{steps['median']:.3g} ms" if steps else "–"),
        Item(_change(quality)),
        Item(f"{one['batch_size'] or '?'} × {one['gradient_accumulation']}"),
        Item("on" if one["gradient_checkpointing"] else "off"),
        Item(plain(_because(one))),
    ]


def _because(one: Mapping[str, Any]) -> str:
    """In short: sources and the rest of the runner-up's differences stand in the reasons and in recommendation.json."""
    if "separated_by" in one:
        return str(one["separated_by"][0])
    return str(one.get("text") or one.get("reason") or one["quality"]["text"])


def _change(quality: Mapping[str, Any]) -> str:
    estimate = number(quality.get("estimate"))
    if estimate is None:
        return "–"
    return f"{estimate:.4f}, the reference" if quality["verdict"] == "reference" else entries.percent(estimate)


def _listed(value: Any) -> Iterator[Mapping[str, Any]]:
    yield from ([] if value is None else [value] if isinstance(value, Mapping) else value)


def _study_file(data: StudyData, place: Mapping[str, Any], wish: Wish) -> dict[str, Any]:
    """``{study_yaml, study_yaml_reason}`` of what is recommended."""
    best = place["recommended"]
    if best is None:
        return {"study_yaml": None, "study_yaml_reason": "nothing is recommended"}
    try:
        text = snippet(data.study, data.by_cell[str(best["cell"])].raw, best["change"] or {}, wish.text)
        return {"study_yaml": text, "study_yaml_reason": None}
    except LoracleError as error:
        return {"study_yaml": None, "study_yaml_reason": f"the plan's settings cannot be read back: {error}"}


def _own_margin(data: StudyData) -> float:
    """The margin in eval loss that the study asks with."""
    asked = [q for q in data.evidence().questions if q["name"] == "degradation" and q.get("margin") is not None]
    return float(asked[0]["margin"]) if asked else LOSS_MARGIN


def _forecasts(layout: StudyFolder, size: int) -> Forecasts:
    """What the folder has for this budget, and why not where it has nothing."""
    path = layout.forecast(size)
    try:
        record = read_json(path)
    except StoreError:
        return Forecasts(reason="no forecast was made for this budget")
    if record.get("status") != "done":
        return Forecasts(reason=str(record.get("reason")))
    source = path.relative_to(layout.root).as_posix()
    return Forecasts({cell: fit for cell, fit in record["cells"].items() if fit}, source)
