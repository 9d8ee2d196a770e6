"""DATA_CARD.md: where the rows come from, how they became tokens, what the audit found, what was not looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from loracle.report import markdown_parts, wording
from loracle.report.cards import known
from loracle.report.cards.licences import Licence, licence, licence_of_data, warnings
from loracle.report.cards.metadata import dataset_card_data, header
from loracle.report.cards.model import grid, shown
from loracle.report.cards.subject import data_id, of_task, task_name
from loracle.report.evidence import Record, StudyData, number
from loracle.report.inert import markdown as inert
from loracle.report.inert import plain
from loracle.report.tables import audits

SCORED = {
    "alpaca": "the output",
    "messages": "every turn of the assistant",
    "sharegpt": "every turn of the assistant",
    "prompt_completion": "the completion",
    "text_label": "the label, written as text",
    "squad": "the first answer",
    "text": "all of the text",
}
_COUNTS = (
    ("rows_read", "rows read"),
    ("train_rows", "training rows"),
    ("eval_rows", "evaluation rows"),
    ("truncated", "rows cut to the maximum length"),
    ("truncated_prompts", "evaluation rows whose prompt was cut"),
    ("answers_cut", "rows whose context was cut and holds no right answer any more"),
)
_AUDIT = (
    ("duplicates", "rows that say the same as an earlier one of their part"),
    ("overlap", "evaluation rows that also are training rows"),
    ("zero_target_rows", "rows left out: nothing to score after the cut"),
    ("unknown_eval_labels", "evaluation rows with a label that training does not have"),
)
_MOST_LABELS = 100


@dataclass(frozen=True)
class DataSet:
    """One data set of the study: its task's settings and its audit (empty where it was never read)."""

    name: str
    task: Record
    audit: Record

    @property
    def format(self) -> str:
        return str(self.task.get("format") or self.audit.get("format") or "")

    @property
    def rows(self) -> int | None:
        train, held = self.audit.get("train_rows"), self.audit.get("eval_rows")
        return train + held if isinstance(train, int) and isinstance(held, int) else None


def data_sets(data: StudyData) -> list[DataSet]:
    """Each of the plan's data sets with the task that it belongs to, in the plan's order."""
    found = audits(data)
    tasks: dict[tuple[str, str], Record] = {}
    for cell in data.cells:
        task = (cell.raw.get("config") or {}).get("task") or {}
        tasks.setdefault((str(cell.raw.get("data") or next(iter(found), "data")), task_name(task)), task)
    return [DataSet(name, task, found.get(key) or {}) for (key, name), task in tasks.items()]


def render(data: StudyData) -> str:
    """The whole card."""
    found = data_sets(data)
    licences = [licence_of_data(one.task) for one in found]
    counted = [one.rows for one in found]
    rows = sum(n for n in counted if n is not None) if any(n is not None for n in counted) else None
    names = wording.listed(list(dict.fromkeys(one.name for one in found))) or data.name
    head = header(dataset_card_data(names, [one.task for one in found], licences or [licence(None)], rows))
    return head + "\n" + "\n".join(_lines(data, names, found, licences)).rstrip() + "\n"


def _lines(data: StudyData, names: str, found: Sequence[DataSet], licences: Sequence[Licence]) -> Iterator[str]:
    yield from (f"# {inert(names)}", "")
    yield from (
        f"The rows of the study {inert(data.name)}, as loracle read, cut and scored them. This card holds no rows.",
        "",
    )
    for text in dict.fromkeys(warnings([(f"the data {d.name}", one) for d, one in zip(found, licences, strict=True)])):
        yield from (f"> **{inert(text)}**", "")
    for one, terms in zip(found, licences, strict=True):
        if len(found) > 1:
            yield from (f"## {inert(one.name)}{_apart(one, found)}", "")
        mark = "###" if len(found) > 1 else "##"
        yield from _section(f"{mark} Source and licence", _source(one, terms))
        yield from _section(f"{mark} Formatting", _formatting(one))
        yield from _section(f"{mark} Statistics", _statistics(one))
        yield from _section(f"{mark} Audit", _audit(one))
        yield from _section(f"{mark} Labels", _labels(one))
        yield from _section(f"{mark} Groups", _groups(one))
        yield from _section(f"{mark} Known biases", _biases(one))
    yield from ("## What was not looked at", "", *(f"- {inert(text)}" for text in known.NOT_LOOKED_AT))


def _section(title: str, lines: Iterator[str]) -> Iterator[str]:
    yield from (title, "", *lines, "")


def _apart(one: DataSet, found: Sequence[DataSet]) -> str:
    """What tells two data sets of one task apart: their length and number of rows."""
    if sum(other.name == one.name for other in found) < 2:
        return ""
    rows = "not read" if one.rows is None else f"{one.rows:,} rows"
    return f" ({rows}, at most {inert(shown(one.task.get('max_length')))} tokens)"


def _table(rows: Sequence[tuple[str, Any]]) -> Iterator[str]:
    known_ = [[name, shown(value)] for name, value in rows if value is not None and value != ""]
    yield from (line for line in markdown_parts.table(grid("", ["", ""], known_)) if line)


def _source(one: DataSet, terms: Licence) -> Iterator[str]:
    task = one.task
    files = [PurePath(str(task[key])).name for key in ("data", "eval") if task.get(key)]
    yield from _table(
        [
            ("name", one.name),
            ("description", of_task(task, "description")),
            ("source", of_task(task, "source") or "not recorded"),
            ("licence", terms.text),
            ("data set on the Hub", data_id(task)),
            ("configuration", of_task(task, "subset")),
            ("split", of_task(task, "split") if data_id(task) else None),
            ("split for evaluation", of_task(task, "eval_split")),
            ("files", None if data_id(task) else ", ".join(dict.fromkeys(files)) or None),
            ("language", ", ".join(map(str, task.get("language") or ())) or "not recorded"),
            ("version of the library's entry", task.get("version") if task.get("name") else None),
            ("tokenized rows (SHA-256)", one.audit.get("fingerprint")),
        ]
    )


def _formatting(one: DataSet) -> Iterator[str]:
    task, form = one.task, one.format
    columns = task.get("columns")
    scored = "one label a row, by a classification head" if task.get("type") == "classification" else SCORED.get(form)
    if task.get("train_on_inputs"):
        scored = "prompts and answers"
    yield from _table(
        [
            ("format", form or "not recorded"),
            ("columns", ", ".join(f"{k}: {v}" for k, v in columns.items()) if isinstance(columns, Mapping) else None),
            (
                "prompt template",
                repr(plain_template(task.get("template"))) if task.get("template") else "the format's own",
            ),
            ("chat template", task.get("chat_template") if form in ("messages", "sharegpt") else None),
            ("system message", of_task(task, "system")),
            ("what is scored", scored or "not recorded"),
            ("longest row, tokens", task.get("max_length")),
        ]
    )


def plain_template(text: Any) -> str:
    """A template on one line, its line breaks as they are written in code."""
    return str(text).encode("utf-8", "replace").decode()


def _statistics(one: DataSet) -> Iterator[str]:
    if not one.audit or one.audit.get("status") == "failed":
        yield f"The rows were not read: {inert(one.audit.get('reason') or 'no audit was recorded')}."
        return
    task, tokens = one.task, one.audit.get("tokens") or {}
    split = "a file or split of its own" if task.get("eval") or task.get("eval_split") else "held out at random"
    rows: list[tuple[str, Any]] = [(name, one.audit.get(key)) for key, name in _COUNTS]
    rows += [
        ("evaluation rows are", split),
        ("share held out", task.get("eval_fraction") if split == "held out at random" else None),
        ("rows drawn before the split, at most", task.get("samples")),
        ("evaluation rows drawn, at most", task.get("eval_samples")),
        ("seed of drawing and splitting", task.get("split_seed")),
        ("tokens of a training row, mean", number(tokens.get("mean"))),
        ("tokens of a training row, 95th percentile", tokens.get("p95")),
        ("tokens of a training row, longest", tokens.get("max")),
        ("share of tokens that are scored", _share(one.audit.get("target_token_share"))),
    ]
    yield from _table(rows)


def _share(value: Any) -> str | None:
    found = number(value)
    return None if found is None else wording.fraction(found)


def _audit(one: DataSet) -> Iterator[str]:
    rows: list[tuple[str, Any]] = [(name, one.audit.get(key)) for key, name in _AUDIT]
    dropped = one.audit.get("dropped")
    if isinstance(dropped, Mapping):
        rows += [(f"left out: {plain(reason)}", n) for reason, n in sorted(dropped.items())]
        rows += [] if dropped else [("left out for another reason", 0)]
    if not any(value is not None for _, value in rows):
        yield "No audit was recorded."
        return
    yield from _table(rows)
    if isinstance(one.audit.get("overlap"), int) and one.audit["overlap"]:
        yield ""
        yield "**Some evaluation rows were trained on: figures on them look better than they are.**"


def _labels(one: DataSet) -> Iterator[str]:
    if one.audit.get("train_labels"):
        yield from _balance(one, "label")
        return
    named = [plain(label) for label in one.audit.get("labels") or ()]
    if not named:
        yield "The rows have no labels."
    else:
        yield f"{len(named)} labels: {inert(', '.join(named[:_MOST_LABELS]))}. How many rows have each is not recorded."


def _groups(one: DataSet) -> Iterator[str]:
    if not one.audit.get("eval_groups"):
        yield "No column of groups was named (`task.group`): nothing is known or measured by group."
        return
    yield from (f"The column {inert(one.task.get('group'))} says which group a row is of. No model sees it.", "")
    yield from _balance(one, "group")
    held = sum(one.audit["eval_groups"].values())
    if isinstance(one.audit.get("eval_rows"), int) and held < one.audit["eval_rows"]:
        yield f"{one.audit['eval_rows'] - held} evaluation rows name no group."


def _balance(one: DataSet, what: str) -> Iterator[str]:
    """Rows of each label or group in training and evaluation."""
    train, held = (one.audit.get(f"{part}_{what}s") or {} for part in ("train", "eval"))
    names = list(dict.fromkeys([*train, *held]))
    total, total_held = sum(train.values()), sum(held.values())
    rows = [[plain(n), *_counted(train.get(n, 0), total), *_counted(held.get(n, 0), total_held)] for n in names]
    heads = [what, "training rows", "share", "evaluation rows", "share"]
    most = wording.fraction(max(train.values()) / total) if total else ""
    note = f"The commonest {what} is in {most} of the training rows." if most else ""
    yield from markdown_parts.table(grid("", heads, rows[:_MOST_LABELS], note))
    if len(rows) > _MOST_LABELS:
        yield f"And {len(rows) - _MOST_LABELS} more {what}s."


def _counted(count: int, total: int) -> list[str]:
    return [f"{count:,}", wording.fraction(count / total) if total else wording.NONE]


def _biases(one: DataSet) -> Iterator[str]:
    text = of_task(one.task, "known_biases")
    yield inert(text) if text else "None are recorded, which does not mean that there are none."
