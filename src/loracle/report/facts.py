"""What the report says, once: the page and the Markdown are two renderings of the same ``Facts``.

Everything here is plain text; escaping is the renderers' business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loracle.report import (
    allocation,
    answers,
    budget,
    failures,
    fidelity,
    files,
    grids,
    grids_compared,
    grids_parts,
    groups,
    hypotheses,
    layers,
    mixing,
    proposals,
    sensitivity,
    wording,
)
from loracle.report.answers import Example
from loracle.report.budget import Place
from loracle.report.columns import Table
from loracle.report.evidence import StudyData
from loracle.report.figures import Figure
from loracle.report.grids import Grid, Item
from loracle.report.inert import plain
from loracle.verdict.budget import Wish
from loracle.verdict.entries import Entry, where
from loracle.verdict.knowledge import broken, broken_words

VERDICTS = ("supported", "rejected", "undecided", "confounded")

TOPICS = {
    "cost": ("degradation", "gain_kept", "mixed_precision", "task_metric", "rank_threshold", "rank_enough"),
    "likeness": ("similarity",),
    "resources": ("memory", "speed"),
}

RANK_QUESTIONS = ("rank_threshold", "rank_enough")


@dataclass(frozen=True)
class Sentence:
    """A verdict as a sentence."""

    verdict: str
    text: str
    standing: str


@dataclass(frozen=True)
class Group:
    """The verdicts on one question; ``standing`` is that of all of them, or "" where they differ."""

    title: str
    sentences: Sequence[Sentence]
    standing: str


@dataclass(frozen=True)
class Facts:
    """The whole report."""

    name: str
    subtitle: str
    recommendation: str
    runner_up: str
    why: Sequence[str]
    headlines: Sequence[Sentence]
    glance: Grid | None
    tally: Sequence[tuple[str, int]]
    basis: Sequence[tuple[str, str]]
    broken: Sequence[str]
    notes: Sequence[str]
    learned: str
    learning: Sequence[Grid]
    methods: Sequence[Grid]
    classes: Sequence[Grid]
    groups: Sequence[Grid]
    groups_said: Sequence[str]
    figures: Mapping[str, Figure]
    topics: Mapping[str, Sequence[Group]]
    cells: Grid
    agreement: Grid | None
    similarity: Grid | None
    layers: Grid | None
    sensitivity: Sequence[Grid]
    allocation: Sequence[Grid]
    patterns: Sequence[tuple[str, str]]
    hypotheses: hypotheses.Section
    failures: Sequence[Grid]
    guard: Grid | None
    layer_places: Grid | None
    tradeoff: Grid | None
    memory_by_rank: Grid | None
    memory: Grid
    speed: Grid
    latency: Grid | None
    unfinished: Grid | None
    states: Sequence[tuple[str, int]]
    audits: Sequence[Grid]
    data_examples: Sequence[Sequence[tuple[str, bool]]]
    examples: Sequence[Example]
    examples_note: str
    provenance: Grid
    tables: Sequence[tuple[str, str, int]]
    files: Sequence[tuple[str, str]]
    places: Sequence[Place]


def gather(
    data: StudyData,
    entries: Sequence[Entry],
    advice: Mapping[str, Any],
    tables: Mapping[str, Table],
    figures: Sequence[Figure],
    hypothesis_entries: Sequence[Entry],
    beside: Sequence[tuple[str, str]],
    wish: Wish | None = None,
) -> Facts:
    """All facts of a study's report; ``beside``: path and content of the files beside its page that are no tables."""
    examples, examples_note = answers.examples(data, advice)
    runner = data.by_cell.get(str(advice.get("runner_up")))
    return Facts(
        name=plain(data.name),
        subtitle=_subtitle(data),
        recommendation=plain(advice["text"]),
        runner_up=runner.label if runner else "",
        why=_why(entries, advice["why"]) + (_left_out(tables["memory"]) if advice.get("memory") == "predicted" else []),
        headlines=[_sentence(e) for e in entries if e["primary"] or e["question"] == "rank_threshold"],
        glance=_glance(entries, _nulls(tables["similarity_by_layer"])),
        tally=[(v, n) for v in VERDICTS if (n := sum(e["verdict"] == v for e in entries))],
        basis=_basis(data),
        broken=_broken(data),
        notes=list(_notes(data)),
        learned=grids.learned(data),
        learning=list(grids.learning(data)),
        methods=grids_parts.methods(data, tables["methods"]),
        classes=_classes(tables),
        groups=groups.grids(tables["groups"]),
        groups_said=[plain(text) for text in groups.sentences(tables["groups"])],
        figures={figure.file: figure for figure in figures},
        topics={topic: _groups(entries, questions) for topic, questions in TOPICS.items()},
        cells=grids.cells(data),
        agreement=fidelity.fidelity(data, tables["agreement"], entries),
        similarity=grids.similarity(tables["similarity_by_layer"]),
        layers=layers.grid(tables["layer_variants"]),
        sensitivity=[*sensitivity.grids(tables["layer_sensitivity"]), *mixing.grids(tables["mixed_precision"])],
        allocation=allocation.grids(data, entries, tables),
        patterns=proposals.texts(data, entries),
        hypotheses=hypotheses.section(data, hypothesis_entries),
        failures=failures.modes(data, entries),
        guard=failures.guard(data),
        layer_places=grids_compared.layer_places(tables["similarity_by_layer"]),
        tradeoff=grids_compared.tradeoff(tables["quality_memory"]),
        memory_by_rank=grids_compared.memory_by_rank(tables["memory_by_rank"]),
        memory=grids.memory(tables["memory"]),
        speed=grids_compared.speed(tables["speed"]),
        latency=grids_parts.latency(tables["latency"]),
        unfinished=grids.unfinished(data),
        states=[(state, n) for state, n in data.count().items()],
        audits=list(grids.audit_grids(data)),
        data_examples=grids.data_examples(data),
        examples=examples,
        examples_note=examples_note,
        provenance=grids.provenance(data),
        tables=files.tables(tables),
        files=beside,
        places=budget.places(data, advice, wish),
    )


def _sentence(entry: Entry) -> Sentence:
    standing = "primary" if entry["primary"] else "exploratory" if entry["exploratory"] else ""
    return Sentence(str(entry["verdict"]), plain(entry["statement"]), standing)


def _broken(data: StudyData) -> list[str]:
    """Precisions that break the base before training, each once for all cells that say it alike."""
    found = broken(data.evidence())
    return list(dict.fromkeys(plain(broken_words(data.by_cell[cell].raw, lost)) for cell, lost in found.items()))


def _classes(tables: Mapping[str, Table]) -> list[Grid]:
    """What a classification study adds: confused pairs and labels one by one."""
    pairs = grids_parts.confused(tables["confusion"])
    return [*([pairs] if pairs else []), *grids_parts.classes(tables["classes"])]


def _why(entries: Sequence[Entry], reasons: Sequence[str]) -> list[str]:
    """The first reason, and those that are no verdict of their own; none that stands in the headlines anyway."""
    headlines = {e["statement"] for e in entries if e["primary"] or e["question"] == "rank_threshold"}
    verdicts = {e["statement"] for e in entries}
    found = [r for i, r in enumerate(reasons) if r not in headlines and (i == 0 or r not in verdicts)]
    return [plain(reason) for reason in found]


def _left_out(memory: Table) -> list[str]:
    """What the recommendation's predicted bytes do not hold."""
    parts = grids.not_predicted(memory)
    return [f"Predicted memory leaves out {wording.listed(parts)}."] if parts else []


def _groups(entries: Sequence[Entry], questions: Sequence[str]) -> list[Group]:
    found = []
    for name in [*questions, *_unknown(entries, questions)]:
        sentences = [_sentence(e) for e in entries if e["question"] == name]
        standings = {s.standing for s in sentences}
        shared = standings.pop() if len(standings) == 1 else ""
        if shared:
            sentences = [Sentence(s.verdict, s.text, "") for s in sentences]
        if sentences:
            found.append(Group(wording.question(name), sentences, shared))
    return found


def _unknown(entries: Sequence[Entry], questions: Sequence[str]) -> list[str]:
    """Questions that no topic names are shown with the first topic, so that none is lost."""
    if questions != TOPICS["cost"]:
        return []
    named = {q for group in TOPICS.values() for q in group}
    return list(dict.fromkeys(e["question"] for e in entries if e["question"] not in named))


def _glance(entries: Sequence[Entry], nulls: Mapping[str, float]) -> Grid | None:
    """Questions by rank: one verdict and its estimate in each cell."""
    shown = [e for e in entries if e["question"] not in RANK_QUESTIONS]
    if not shown:
        return None
    ranks = sorted({r for e in shown if isinstance(r := e["scope"].get("rank"), int)})
    rows: dict[str, dict[Any, Entry]] = {}
    beside: dict[str, list[float]] = {}
    for entry in shown:
        name = _row_name(entry)
        if entry["question"] == "similarity":
            beside.setdefault(name, []).extend(v for v in (nulls.get(str(entry["arm"])),) if v is not None)
        rows.setdefault(name, {})[entry["scope"].get("rank")] = entry
    columns: list[Any] = [*ranks, *([None] if any(None in row for row in rows.values()) else [])]
    heads = [f"rank {rank}" if rank is not None else "no rank" if ranks else "all" for rank in columns]
    grid = [
        [Item(name + _null_words(beside.get(name))), *(_verdict_item(row.get(column)) for column in columns)]
        for name, row in rows.items()
    ]
    return Grid("Verdicts at a glance", ["", *heads], grid)


def _nulls(table: Table) -> dict[str, float]:
    """The null's mean cosine over layers, by the arm's cell."""
    found: dict[str, list[float]] = {}
    for row in table.rows:
        if row["null_mean"] is not None:
            found.setdefault(str(row["cell"]), []).append(row["null_mean"])
    return {cell: sum(values) / len(values) for cell, values in found.items()}


def _null_words(values: Sequence[float] | None) -> str:
    """A likeness never stands without its null."""
    if values is None:
        return ""
    if not values:
        return " · no null"
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return f" · null {low}" if low == high else f" · null {low} to {high}"


def _row_name(entry: Entry) -> str:
    """What a row of the overview is about: question, precision, and what else is in its scope."""
    scope = entry["scope"]
    name = wording.question(entry["question"])
    if entry["question"] == "task_metric":
        name = wording.headed(str(entry["metric"]))
    method = scope.get("method", "lora")
    precision = scope.get("precision", "") if method == "lora" else f"{method} {scope.get('precision', '')}"
    rest = where(scope, ("precision", "rank", "metric")).removeprefix(" at ")
    bound = _claimed(entry)
    about = plain(f"{precision}, {rest}").strip(", ")
    return f"{name} · {about}{f' · {bound}' if bound else ''}"


def _claimed(entry: Entry) -> str:
    """The bound of the claim in two or three words."""
    margin, question = entry["margin"], entry["question"]
    if margin is None:
        return ""
    words = {
        "degradation": lambda: f"within {wording.change(margin)}",
        "gain_kept": lambda: f"at least {100 * margin:.3g}%",
        "mixed_precision": lambda: f"at least {100 * margin:.3g}%",
        "task_metric": lambda: f"within {100 * margin:.3g} pt",
        "similarity": lambda: f"above {margin:.3g}",
        "memory": lambda: f"saves over {wording.change(margin)}" if margin < 0 else f"within {wording.change(margin)}",
        "speed": lambda: f"within {wording.change(margin)}",
    }
    return words[question]() if question in words else ""


def _verdict_item(entry: Entry | None) -> Item:
    if entry is None:
        return Item(wording.NONE)
    return Item(wording.estimate(entry), str(entry["verdict"]), number=True)


def _subtitle(data: StudyData) -> str:
    configs = [cell.raw.get("config") or {} for cell in data.cells]
    bases = grids.distinct((c.get("base") or {}).get("name") or (c.get("base") or {}).get("model") for c in configs)
    tasks = grids.distinct((c.get("task") or {}).get("name") or (c.get("task") or {}).get("format") for c in configs)
    parts = [f"{wording.listed(bases)} on {wording.listed(tasks)}" if bases and tasks else wording.listed(bases)]
    precisions = grids.distinct(cell.precision for cell in data.cells)
    parts.append(" against ".join(precisions) if len(precisions) == 2 else ", ".join(precisions))
    if len(data.methods) > 1:
        parts.append(", ".join(data.methods))
    if len(data.ranks) > 1:
        parts.append(f"ranks {', '.join(map(str, data.ranks))}")
    parts.append(wording.plural(len(data.seeds), "seed"))
    return plain(" · ".join(part for part in parts if part))


def _basis(data: StudyData) -> list[tuple[str, str]]:
    """(figure, what it counts) of the strip under the verdicts."""
    count, null = data.count(), data.count("null")
    planned = sum(count.values())
    found = [(f"{count['done']} of {planned}", "planned runs done")]
    found += [(str(n), grids.state_words(state)) for state, n in count.items() if state != "done" and n]
    found.append((str(len(data.seeds)), "seed" if len(data.seeds) == 1 else "seeds, paired"))
    if sum(null.values()):
        found.append((f"{null['done']} of {sum(null.values())}", "null runs done (data order alone)"))
    items = {len(r.predictions.items) for r in data.runs if r.status == "done" and r.predictions is not None}
    if items:
        found.append((" / ".join(map(str, sorted(items))), "evaluation items"))
    return found


def _notes(data: StudyData) -> Iterator[str]:
    """What is missing, in sentences."""
    count = data.count()
    left = [f"{n} {grids.state_words(state)}" for state, n in count.items() if state != "done" and n]
    if left:
        planned = sum(count.values())
        yield f"This is a partial study: of {planned} planned runs {count['done']} are done; {wording.listed(left)}."
    n = len(data.seeds)
    if n < wording.MIN_SEEDS:
        yield f"With {wording.plural(n, 'seed')} there is no interval over seeds, so nothing about seeds is decided."
    if data.task_metric() is None:
        yield "No task metric was measured: only losses are reported."
    if data.similarity is None and any(c.reference and c.method == "lora" for c in data.cells):
        yield "The learned updates were not compared (no diagnose/similarity.json)."
    if data.agreement is None and any(c.reference and not data.classifies(c) for c in data.cells):
        yield "Generations were not compared token by token (no diagnose/agreement.json)."
    for sweep in (data.sensitivity or {}).get("sweeps") or []:
        if sweep.get("reason"):
            yield f"No sensitivity of {plain(sweep.get('base'))} to {plain(sweep.get('codec'))}: {plain(sweep['reason'])}."
    if not data.probes:
        yield "Memory and speed were not probed: memory is predicted, and step times are absent."
    yield from (plain(note) for note in data.notes)
