"""Tables to read (not the CSV ones): plain text by row, escaped by whoever renders them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loracle.report import wording
from loracle.report.answers import cut
from loracle.report.columns import Table
from loracle.report.evidence import ALL_STATES, CellData, RunData, StudyData, number
from loracle.report.inert import plain
from loracle.report.tables import audits


@dataclass(frozen=True)
class Item:
    """A table's cell: text, and the verdict that colours it (or "")."""

    text: str
    verdict: str = ""
    number: bool = False


@dataclass(frozen=True)
class Grid:
    """A table to read. The first column names the row."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Item]]
    note: str = ""


def learned(data: StudyData) -> str:
    """Whether the runs learned, in one or two sentences."""
    done = [r for r in data.runs if r.role == "run" and r.status == "done"]
    pairs = [
        (b, a)
        for r in done
        if (b := r.metric("base_eval_loss")) is not None and (a := r.metric("eval_loss")) is not None
    ]
    if not pairs:
        return "No finished run has both the untrained base's loss and its own."
    below = sum(a < b for b, a in pairs)
    every = "every one" if below == len(pairs) else str(below)
    guessing = all(data.classifies(cell) for cell in data.cells)
    than = "guessing evenly among the labels" if guessing else "the untrained base"
    text = [f"Of {wording.plural(len(pairs), 'finished run')}, {every} ended below {than} in evaluation loss."]
    name = data.task_metric()
    if name:
        means = [m for c in data.cells if (m := wording.mean(data.values(c.id, name))) is not None]
        base = [v for r in done if (v := r.metric(f"base_{name}")) is not None]
        before = f"; the untrained base has {_span(base)}" if base else ""
        words, floor = data.floor()
        what = "guessing among the labels" if words == "chance" else "always saying the commonest label"
        guess = f"{',' if before else '; '} {what} {wording.fraction(floor)}" if floor is not None else ""
        text.append(f"{wording.headed(name)} is {_span(means)} by cell{before}{guess}.")
    return " ".join(text)


def _span(values: Sequence[float]) -> str:
    low, high = wording.fraction(min(values)), wording.fraction(max(values))
    return low if low == high else f"{low} to {high}"


def learning(data: StudyData) -> Iterator[Grid]:
    """Each seed's figure beside the untrained base and chance: the task metric, then the loss."""
    name = data.task_metric()
    for metric in (name, "eval_loss"):
        if metric is None:
            continue
        floors = _floors(data, metric)
        heads = ["cell", *floors, *(f"seed {s}" for s in data.seeds), _mean_head(data)]
        rows = []
        for cell in data.cells:
            row = [Item(cell.label), *(Item(value(cell), number=True) for value in floors.values())]
            runs = {r.seed: r for r in data.of_cell(cell.id)}
            row += [_seed_item(runs.get(seed), metric) for seed in data.seeds]
            rows.append([*row, Item(wording.with_interval(metric, data.values(cell.id, metric)), number=True)])
        unit = "" if metric in wording.FRACTIONS else " (nats per token)"
        yield Grid(f"{wording.headed(metric)} by seed{unit}", heads, rows)


def _floors(data: StudyData, metric: str) -> dict[str, Callable[[CellData], str]]:
    """The columns that a metric is set beside: chance, the commonest label, the untrained base."""

    def mean_of(name: str) -> Callable[[CellData], str]:
        return lambda cell: wording.by_metric(metric, wording.mean(data.values(cell.id, name)))

    if metric == "accuracy":
        return {"commonest label": mean_of("majority_accuracy")}
    chance = data.chance() if metric == "label_accuracy" else None
    floors = {"chance": lambda _: wording.fraction(chance)} if chance else {}
    classified = metric == "eval_loss" and all(data.classifies(cell) for cell in data.cells)
    return floors | {"guessing" if classified else "untrained base": mean_of(f"base_{metric}")}


def _mean_head(data: StudyData) -> str:
    return "mean (95% interval)" if len(data.seeds) >= wording.MIN_SEEDS else "mean"


def _seed_item(run: RunData | None, metric: str) -> Item:
    if run is None:
        return Item(wording.NONE)
    if run.status != "done":
        return Item(state_words(run.status), "undecided")
    return Item(wording.by_metric(metric, run.metric(metric)), number=True)


def _numbers(first: str, *rest: str) -> list[Item]:
    return [Item(first), *(Item(text, number=True) for text in rest)]


def cells(data: StudyData) -> Grid:
    metrics = ["eval_loss", *_task_metrics(data)]
    heads = ["cell", "done", "trained parameters", "bits per weight", *(wording.metric(name) for name in metrics)]
    rows = []
    for cell in data.cells:
        runs = data.of_cell(cell.id)
        bits = number(cell.raw.get("effective_bits"))
        row = [
            f"{sum(r.status == 'done' for r in runs)} of {len(runs)}",
            wording.count(cell.raw.get("trainable_params")),
        ]
        row += [wording.NONE if bits is None else f"{bits:.4g}"]
        row += [wording.with_interval(name, data.values(cell.id, name)) for name in metrics]
        rows.append(_numbers(cell.label, *row))
    return Grid(
        "Results by cell",
        heads,
        rows,
        "Means over finished runs, with 95% intervals over seeds where there are three or more.",
    )


def _task_metrics(data: StudyData) -> list[str]:
    """The task metric and the one that is usually given with it."""
    task = data.task_metric()
    beside = {"accuracy": "macro_f1", "f1": "exact_match", None: "embedding_cosine"}.get(task)
    known = beside is not None and any(data.values(cell.id, beside) for cell in data.cells)
    return [*([task] if task else []), *([beside] if beside is not None and known else [])]


def similarity(table: Table) -> Grid | None:
    """Mean over layers, per cell."""
    if not table.rows:
        return None
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in table.rows:
        groups.setdefault(str(row.get("label", row["cell"])), []).append(row)
    rows = []
    for label, layers in groups.items():
        lowest = min(layers, key=lambda r: r["cosine_mean"])
        null = wording.mean([r["null_mean"] for r in layers if r["null_mean"] is not None])
        beside = wording.NONE if null is None else f"{null:.3f}"
        centre = wording.mean([r["cosine_mean"] for r in layers]) or 0.0
        low = f"{lowest['cosine_mean']:.3f} (layer {lowest['layer']})"
        rows.append(_numbers(label, f"{centre:.3f}", beside, low, str(layers[0]["n"]), str(layers[0]["null_n"])))
    heads = ["cell", "mean cosine", "null's mean", "lowest layer", "pairs", "null pairs"]
    return Grid("Likeness of the learned updates", heads, rows, "Cosine of ΔW with the 16-bit twin, mean over layers.")


def memory(table: Table) -> Grid:
    """Per cell and storage: the predicted part, and what a probe measured."""
    rows, unpredicted = [], not_predicted(table)
    for parts in _by_storage(table):
        whole, peak = parts["sum_of_known"], parts["peak"]
        measured = peak["measured_bytes"]
        shown = wording.size(measured) if measured is not None else f"not measured: {plain(peak['reason'])}"
        checkpointing = {True: "on", False: "off"}.get(whole["gradient_checkpointing"], wording.NONE)
        row = [Item(str(whole.get("label", whole["cell"]))), Item(plain(whole["storage"])), Item(checkpointing)]
        there = f" ({plain(whole['device'])})" if whole["measured_bytes"] is not None and whole["device"] else ""
        row.append(Item(wording.size(whole["predicted_bytes"]), number=True))
        row.append(Item(wording.size(whole["measured_bytes"]) + there, number=True))
        rows.append([*row, Item(shown, number=measured is not None)])
    heads = ["cell", "storage", "gradient checkpointing", "predicted parts", "the same, measured", "measured peak"]
    after = " The peak is of a whole step."
    if all(row["measured_bytes"] is None for row in table.rows) and len({row["reason"] for row in table.rows}) == 1:
        rows, heads = [row[:4] for row in rows], heads[:4]
        after = f" Nothing was measured: {plain(table.rows[0]['reason'])}."
    left = f" Not predicted: {wording.listed(unpredicted)}." if unpredicted else ""
    note = f"Predicted: on an accelerator, from the configuration alone.{left}{after}"
    return Grid("Memory", heads, rows, note)


def not_predicted(table: Table) -> list[str]:
    """Components of memory.csv that no prediction covers, in words."""
    found = [row["component"] for row in table.rows if row["predicted_bytes"] is None and row["component"] != "peak"]
    return [name.replace("_", " ") for name in dict.fromkeys(found)]


def _by_storage(table: Table) -> list[dict[str, Mapping[str, Any]]]:
    """The table's rows by component, one mapping for each cell, storage and device."""
    found: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
    for row in table.rows:
        key = tuple(row[name] for name in ("cell", "storage", "gradient_checkpointing", "device"))
        found.setdefault(key, {})[row["component"]] = row
    return list(found.values())


def unfinished(data: StudyData) -> Grid | None:
    rows = [
        [Item(run.id), Item(state_words(run.status)), Item(plain(run.reason) or "no reason was recorded")]
        for state in ALL_STATES
        for run in data.runs
        if run.status == state != "done"
    ]
    return Grid("Runs that did not finish", ["run", "state", "reason"], rows) if rows else None


def state_words(state: str) -> str:
    return {"oom": "out of memory"}.get(state, state)


_AUDIT_NAMES = {
    "rows_read": "rows read",
    "duplicates": "duplicate rows",
    "train_rows": "training rows",
    "eval_rows": "evaluation rows",
    "overlap": "evaluation rows that also are training rows",
    "truncated": "rows cut to the maximum length",
    "zero_target_rows": "rows with nothing to score",
    "target_token_share": "share of tokens that are scored",
}


def audit_grids(data: StudyData) -> Iterator[Grid]:
    found = audits(data)
    for key, audit in found.items():
        rows = []
        for field, name in _AUDIT_NAMES.items():
            value = audit.get(field)
            shown = wording.fraction(number(value)) if field == "target_token_share" else wording.count(value)
            rows.append(_numbers(name, plain(shown)))
        dropped = audit.get("dropped") or {}
        rows += [_numbers(f"dropped: {plain(reason)}", wording.count(n)) for reason, n in sorted(dropped.items())]
        tokens = audit.get("tokens") or {}
        rows += [
            _numbers(f"tokens a row, {part}", wording.count(tokens.get(part)))
            for part in ("mean", "p95", "max")
            if part in tokens
        ]
        labels = audit.get("labels")
        note = ""
        if isinstance(labels, list):
            note = f"{len(labels)} labels: {cut(plain(', '.join(map(str, labels))))}"
        if audit.get("reason"):
            note = f"{plain(audit['reason'])}. {note}".strip()
        yield Grid("Audit" if len(found) == 1 else f"Data set {plain(key)[:12]}", ["", "count"], rows, note)


def data_examples(data: StudyData) -> list[list[tuple[str, bool]]]:
    """At most two rows of each data set, as pieces of text that are scored or not."""
    found = []
    for audit in audits(data).values():
        for example in (audit.get("examples") or [])[:2]:
            tokens = example.get("tokens") if isinstance(example, Mapping) else [[str(example), 0]]
            pieces: list[tuple[str, bool]] = []
            for text, scored in tokens or []:
                if pieces and pieces[-1][1] == bool(scored):
                    pieces[-1] = (pieces[-1][0] + str(text), bool(scored))
                else:
                    pieces.append((str(text), bool(scored)))
            found.append([(cut(text), scored) for text, scored in pieces])
    return found


def provenance(data: StudyData) -> Grid:
    records = [run.record for run in data.runs if run.record]
    origins = [r.get("provenance") or {} for r in records]
    rows = [("study (SHA-256)", [data.plan.get("study_sha256")]), ("plan", [data.plan.get("plan_id")])]
    bases = [(cell.raw.get("config") or {}).get("base") or {} for cell in data.cells]
    bases += [(r.get("config") or {}).get("base") or {} for r in records]
    rows.append(("base model", [b.get("name") or b.get("model") for b in bases]))
    rows.append(("base revision", [b.get("revision") for b in bases]))
    rows.append(("base fingerprint", [b.get("fingerprint") for b in bases]))
    rows += [(name, [o.get(name) for o in origins]) for name in ("device", "system", "machine", "threads", "engine")]
    packages = list(dict.fromkeys(name for o in origins for name in o.get("versions") or {}))
    rows += [(name, [(o.get("versions") or {}).get(name) for o in origins]) for name in packages]
    checked = [r["reload"] for r in records if r.get("reload")]
    if checked:
        worst = max((abs(v) for c in checked if (v := number(c.get("difference"))) is not None), default=None)
        passed = sum(bool(c.get("passed")) for c in checked)
        text = f"{passed} of {len(checked)} saved adapters reloaded to the recorded loss"
        rows.append(("reload check", [text + (f" (largest difference {worst:.2g})" if worst is not None else "")]))
    rows.append(("notes", [note for r in records for note in r.get("notes") or []]))
    shown = [(name, distinct(values)) for name, values in rows]
    return Grid("Provenance", ["", ""], [[Item(name), Item(plain(", ".join(v)))] for name, v in shown if v])


def distinct(values: Any) -> list[str]:
    return list(dict.fromkeys(str(v) for v in values if v is not None))
