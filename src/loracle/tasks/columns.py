"""Which column is which: the format guessed from the columns, the user's mapping, templates with {column} fields."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loracle.base.errors import DataError, SpecError
from loracle.base.names import suggest
from loracle.spec.study import Task

# Format -> {our column: other names it often has}. "input" of alpaca may be missing.
COLUMNS: dict[str, dict[str, tuple[str, ...]]] = {
    "messages": {"messages": ("conversation", "conversations", "dialog", "dialogue", "turns")},
    "sharegpt": {"conversations": ("conversation", "messages")},
    "alpaca": {"instruction": (), "input": ("context",), "output": ("response", "answer")},
    "prompt_completion": {
        "prompt": ("question", "query", "input", "source"),
        "completion": ("response", "answer", "output", "target"),
    },
    "text_label": {
        "text": ("sentence", "content", "query", "question", "utterance", "review", "document"),
        "label": ("category", "intent", "sentiment", "class", "label_text", "labels"),
    },
    "text": {"text": ("content", "document", "body")},
    "squad": {"context": ("passage", "paragraph"), "question": (), "answers": ()},
}
OPTIONAL = {"alpaca": {"input"}}
RESPONSE = {"alpaca": "output", "prompt_completion": "completion", "text_label": "label", "squad": "answers"}

_FIELD = re.compile(r"\{([A-Za-z_][\w .-]*)\}")


@dataclass(frozen=True, slots=True)
class Layout:
    """How a file's rows read: the format and, for each of our columns, the file's."""

    format: str
    columns: dict[str, str]
    template: str | None

    @property
    def template_fields(self) -> dict[str, str]:
        """Field of the template -> column of the file."""
        fields = _FIELD.findall(self.template) if self.template else []
        return {name: self.columns.get(name, name) for name in fields}


def layout(task: Task, have: Sequence[str], where: str, format: str | None = None) -> Layout:
    """The layout of a file with columns ``have``. ``format`` is the training file's, when this one is for evaluation.

    Raises ``DataError`` for missing columns and for columns that fit no format, ``SpecError`` for a wrong template.
    """
    kind = task.format or format or ("text_label" if task.classifies else guess_format(have, task.columns, where))
    _check_mapping(task, kind)
    lenient = format is not None
    found = {ours: _find(ours, others, task.columns, have, lenient) for ours, others in COLUMNS[kind].items()}
    columns = {ours: name for ours, name in found.items() if name is not None}
    result = Layout(kind, columns, _template(task, kind))
    needed = {*COLUMNS[kind]} - OPTIONAL.get(kind, set())
    if result.template is not None:
        needed = {RESPONSE[kind]} | (needed & set(_FIELD.findall(result.template)))
    missing = [ours for ours in COLUMNS[kind] if ours in needed and ours not in columns]
    if missing:
        raise DataError(_missing(missing, kind, task, have), where)
    for name, column in result.template_fields.items():
        if column not in have and name not in OPTIONAL.get(kind, set()):
            near = suggest(name, [*have, *columns])
            raise SpecError(f"{{{name}}} is not a column of {where}, {near}", "task.template")
    return result


def guess_format(have: Sequence[str], mapping: Mapping[str, str], where: str) -> str:
    """The format whose columns are all there, by our names first and by other usual names second."""
    named = {*have, *(ours for ours, theirs in mapping.items() if theirs in have)}
    order = ("messages", "sharegpt", "alpaca", "prompt_completion", "text_label", "text", "squad")
    for loose in (False, True):
        for kind in order:
            needed = {k: v for k, v in COLUMNS[kind].items() if k not in OPTIONAL.get(kind, set())}
            if all(ours in named or (loose and named & set(others)) for ours, others in needed.items()):
                # A bare text column beside something that may be a label is more likely text_label.
                if kind == "text" and not loose and named & set(COLUMNS["text_label"]["label"]):
                    continue
                return kind
    raise DataError(
        f"the columns ({_listing(have)}) fit no format: set task.format and map them, "
        "for instance task.columns: {prompt: QUESTION, completion: ANSWER}",
        where,
    )


def _check_mapping(task: Task, kind: str) -> None:
    for ours in task.columns:
        if ours not in COLUMNS[kind]:
            near = suggest(ours, COLUMNS[kind])
            raise SpecError(f"format {kind} has no column '{ours}', {near}", f"task.columns.{ours}")


def _find(
    ours: str, others: Sequence[str], mapping: Mapping[str, str], have: Sequence[str], lenient: bool
) -> str | None:
    """The file's column for ``ours``; an evaluation file (``lenient``) may use another usual name than the mapped."""
    if ours in mapping:
        if mapping[ours] in have:
            return mapping[ours]
        if not lenient:
            return None
    return next((name for name in (ours, *others) if name in have), None)


def _missing(missing: list[str], kind: str, task: Task, have: Sequence[str]) -> str:
    wanted = task.columns.get(missing[0], missing[0])
    names = ", ".join(f"'{task.columns.get(ours, ours)}'" for ours in missing)
    return (
        f"no column {names} for format {kind} (there are {_listing(have)}), {suggest(wanted, have)}; "
        f"map it with task.columns: {{{missing[0]}: NAME}}"
    )


def _listing(have: Sequence[str]) -> str:
    shown = ", ".join(have[:12])
    return shown + (f" and {len(have) - 12} more" if len(have) > 12 else "") if have else "none"


def _template(task: Task, kind: str) -> str | None:
    if task.template is None:
        return None
    if kind not in RESPONSE:
        raise SpecError(f"format {kind} takes no prompt template ({', '.join(RESPONSE)} do)", "task.template")
    if not _FIELD.search(task.template):
        raise SpecError("names no {column}, so every prompt would be the same", "task.template")
    return task.template


def fill(template: str, values: Mapping[str, str]) -> str:
    """``template`` with each ``{name}`` in ``values`` replaced once; other braces stay as they are."""
    return _FIELD.sub(lambda found: values.get(found.group(1), found.group(0)), template)
