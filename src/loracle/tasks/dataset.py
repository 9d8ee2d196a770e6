"""From a task to tokenized rows: read, drop, draw, split, encode, audit, cache. ``build`` reads from top to bottom.

Not covered: reading (``sources``, ``readers``, ``hub``), what a row means (``columns``, ``formats``), tokens (``chat``,
``encode``, ``context``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loracle.base.errors import DataError, SpecError
from loracle.spec.study import Task
from loracle.store.files import digest
from loracle.tasks import audit, cache
from loracle.tasks.chat import plain_segments, template_segments, uses_template
from loracle.tasks.columns import Layout, layout
from loracle.tasks.context import fit
from loracle.tasks.encode import Cut, cut, encode, habits
from loracle.tasks.formats import Drop, Parsed, parse
from loracle.tasks.groups import check_column, counted, label_counts
from loracle.tasks.library import LIBRARY, load_task
from loracle.tasks.metrics import label_words
from loracle.tasks.readers import read_jsonl
from loracle.tasks.rows import Example, Row, Segment, Tokenized
from loracle.tasks.sources import Source, sources
from loracle.tasks.split import draw, split

VERSION = 1  # bump when the same task and tokenizer may give other rows

# Settings that change rows. Paths and hub names are not among them: contents are.
_SETTINGS = (
    "format", "columns", "labels", "template", "chat_template", "system", "samples", "eval_samples", "eval_fraction",
    "max_length", "split_seed", "generate", "max_new_tokens",
)  # fmt: skip
# Later ones, dumped only away from their default (``Task.later``): data made without them keep their key.
_LATER_SETTINGS = ("type", "train_on_inputs", "group")

Items = list[tuple[int, Example]]


def build(task: Task, tokenizer: Any, tokenizer_fingerprint: str, cache_root: Path) -> Tokenized:
    """Tokenized training and evaluation rows of ``task``, from ``cache_root/KEY`` where they have been made before.

    Raises ``SpecError`` for settings that cannot work and ``DataError`` for data that cannot: both one line.
    """
    task = load_task(task)
    _check(task)
    train_source, eval_source = sources(task)
    key = _key(task, train_source, eval_source, tokenizer_fingerprint)
    cached = cache.load(cache_root / key)
    if cached is not None:
        return cached

    shape, parsed, parsed_eval = _parse(task, train_source, eval_source)
    train, evaluation, notes = _select(task, parsed, parsed_eval)
    train_cuts, lost = _encode(train, task, tokenizer, notes, training=True)
    eval_cuts, lost_eval = _encode(evaluation, task, tokenizer, notes, training=False)
    _check_targets(train_cuts, eval_cuts, lost, lost_eval, task)
    rows, eval_rows = [c.row for c in train_cuts], [c.row for c in eval_cuts]
    labels = _labels(task, rows) if shape.format == "text_label" else ()
    unknown = sum(row.label not in labels for row in eval_rows) if labels else 0
    if task.classifies:
        rows, eval_rows = _classes(task, labels, rows), _classes(task, labels, eval_rows)
    cuts = (*train_cuts, *lost, *eval_cuts, *lost_eval)
    notes |= {
        "train_rows": len(rows),
        "eval_rows": len(eval_rows),
        "truncated": sum(c.truncated for c in cuts),
        "truncated_prompts": sum(c.prompt_truncated for c in eval_cuts),
        "zero_target_rows": len(lost) + len(lost_eval),
        "unknown_eval_labels": unknown,
        **({"answers_cut": sum(c.answer_cut for c in cuts)} if shape.format == "squad" else {}),
        "format": shape.format,
        **label_counts(rows, eval_rows),
        **counted(rows, eval_rows, task.group),
        **audit.token_counts(rows),
        "examples": audit.examples(tokenizer, rows),
    }
    made = Tokenized(key, cache.fingerprint(rows, eval_rows), shape.format, rows, eval_rows, notes, labels)
    cache.save(cache_root / key, made)
    return made


def labels_of(task: Task) -> tuple[str, ...]:
    """The labels of a classification task, read without a tokenizer: those that ``build`` gives.

    Raises as ``build`` does.
    """
    task = load_task(task)
    if task.labels is None:
        _check(task)
        _, parsed, parsed_eval = _parse(task, *sources(task))
        train, _, _ = _select(task, parsed, parsed_eval)
        return _labels(task, [example for _, example in train])
    return _labels(task, [])


def plain_text(tokenizer: Any, max_length: int) -> list[Row]:
    """The package's public-domain prose as rows of at most ``max_length`` tokens, for what was forgotten."""
    texts = [str(row["text"]) for row in read_jsonl(LIBRARY / "plain-text.jsonl")]
    found = encode(tokenizer, [(Segment(text, True, False),) for text in texts])
    return [
        Row(item=item, input_ids=one.input_ids[:max_length], labels=one.labels[:max_length])
        for item, one in enumerate(found)
    ]


def _check(task: Task) -> None:
    if task.data is None:
        raise SpecError("name a file or a hub data set", "task.data")
    if task.classifies and task.train_on_inputs:
        raise SpecError("a classification scores no tokens: it is for generation", "task.train_on_inputs")
    if task.latency_samples and (task.classifies or task.format == "text" or not task.generate):
        raise SpecError("there are no answers to time: it is for tasks that generate", "task.latency_samples")
    answers = task.generate and task.format != "text" and not task.classifies
    if answers and task.max_new_tokens >= task.max_length:
        problem = f"must be below task.max_length ({task.max_length}): prompt and answer share it"
        raise SpecError(problem, "task.max_new_tokens")


def _key(task: Task, train: Source, evaluation: Source | None, tokenizer_fingerprint: str) -> str:
    parts = [
        [source.sha256, source.path.suffix.lower() if source.path else "hub"] if source else None
        for source in (train, evaluation)
    ]
    dumped = task.model_dump(mode="json")
    settings = {name: dumped[name] for name in _SETTINGS}
    settings |= {name: dumped[name] for name in _LATER_SETTINGS if name in dumped}
    return digest({"version": VERSION, "data": parts, "tokenizer": tokenizer_fingerprint, "settings": settings})[:32]


def _parse(task: Task, train: Source, evaluation: Source | None) -> tuple[Layout, Parsed, Parsed | None]:
    """Both files' rows as examples; labels outside of ``task.labels`` are dropped."""
    table = train.read()
    shape = layout(task, table.columns, table.name)
    parsed = _declared(parse(table.rows, shape, task), shape, task)
    _check_rows(parsed, table.name, task)
    if evaluation is None:
        check_column(task.group, table)
        return shape, parsed, None
    table = evaluation.read()
    check_column(task.group, table)
    parsed_eval = _declared(parse(table.rows, layout(task, table.columns, table.name, shape.format), task), shape, task)
    _check_rows(parsed_eval, table.name, task)
    return shape, parsed, parsed_eval


def _declared(parsed: Parsed, shape: Layout, task: Task) -> Parsed:
    if task.labels is None or shape.format != "text_label":
        return parsed
    known = {label_words(label) for label in task.labels}
    kept = [(item, one) for item, one in parsed.examples if one.label in known]
    if len(kept) < len(parsed.examples):
        parsed.dropped["label is not one of task.labels"] += len(parsed.examples) - len(kept)
    parsed.examples = kept
    return parsed


def _check_rows(parsed: Parsed, name: str, task: Task) -> None:
    if not parsed.examples:
        raise DataError(f"no rows are left: of {parsed.read} read, {_reasons(parsed.dropped)}", name)


def _reasons(dropped: Counter[str]) -> str:
    return "; ".join(f"{count} dropped because {reason}" for reason, count in dropped.most_common(3))


def _select(task: Task, parsed: Parsed, parsed_eval: Parsed | None) -> tuple[Items, Items, dict[str, Any]]:
    """Drawn and split examples, and the first part of the audit."""
    drawn = draw(parsed.examples, task.samples, task.split_seed, 0)
    dropped = Counter(parsed.dropped)
    if parsed_eval is not None:
        train, evaluation = drawn, parsed_eval.examples
        dropped.update({f"evaluation: {reason}": count for reason, count in parsed_eval.dropped.items()})
    elif len(drawn) < 2:
        problem = f"only {len(drawn)} row to use: at least 2 are needed to train and evaluate, or give task.eval"
        raise DataError(problem, task.data or "")
    else:
        train, evaluation = split(drawn, task.eval_fraction, task.split_seed)
    evaluation = draw(evaluation, task.eval_samples, task.split_seed, 2)
    trained, evaluated = [e for _, e in train], [e for _, e in evaluation]
    notes = {
        "rows_read": parsed.read + (parsed_eval.read if parsed_eval else 0),
        "dropped": dict(sorted(dropped.items())),
        "duplicates": audit.repeats(trained) + audit.repeats(evaluated),
        "train_rows": len(train),
        "eval_rows": len(evaluation),
        "overlap": audit.overlap(trained, evaluated),
    }
    return train, evaluation, notes


def _encode(
    items: Items, task: Task, tokenizer: Any, notes: dict[str, Any], training: bool
) -> tuple[list[Cut], list[Cut]]:
    """(rows with scored tokens, rows that the cut left none). Conversations that a template refuses are dropped."""
    templated = any(one.messages for _, one in items) and uses_template(tokenizer, task.chat_template)
    kept: Items = []
    segments: list[Sequence[Segment]] = []
    for item, one in items:
        try:
            segments.append(_segments(one, tokenizer, templated, task.train_on_inputs))
            kept.append((item, one))
        except Drop as reason:
            notes["dropped"][str(reason)] = notes["dropped"].get(str(reason), 0) + 1
    if not kept:
        raise DataError(f"no rows are left: {_reasons(Counter(notes['dropped']))}")
    habit = habits(tokenizer)
    prefix = (habit.bos,) if templated and habit.bos is not None else habit.prefix
    new = task.max_new_tokens if task.generate else 0
    cuts = []
    for (item, one), whole in zip(kept, encode(tokenizer, segments, rendered=templated), strict=True):
        fitted = fit(tokenizer, one, whole, task.max_length, new, training)
        made = cut(item, one, fitted.encoded, task.max_length, new, prefix)
        cuts.append(made if not fitted.shortened else made.after(fitted.answer_cut))
    learned = [bool(c.row.input_ids) if task.classifies else c.row.target_tokens > 0 for c in cuts]
    pairs = list(zip(cuts, learned, strict=True))
    return [c for c, useful in pairs if useful], [c for c, useful in pairs if not useful]


def _segments(one: Example, tokenizer: Any, templated: bool, score_all: bool = False) -> Sequence[Segment]:
    """The example in segments; ``score_all``: prompts are scored like answers (``task.train_on_inputs``)."""
    found: Sequence[Segment] = one.segments
    if one.messages:
        found = template_segments(tokenizer, one.messages) if templated else plain_segments(one.messages)
    return [segment._replace(scored=True) for segment in found] if score_all else found


def _classes(task: Task, labels: tuple[str, ...], rows: Sequence[Row]) -> list[Row]:
    """Rows with their label's number; those whose label nothing can have taught are left out (evaluation only)."""
    if len(labels) < 2:
        raise DataError(f"a classification needs two labels, the training rows have {len(labels)}", task.data or "")
    numbers = {label: number for number, label in enumerate(labels)}
    known = [row for row in rows if row.label in numbers]
    if not known:
        raise DataError(
            "none of the evaluation rows has a label that the training rows have", task.eval or task.data or ""
        )
    return [replace(row, label_id=numbers[row.label or ""]) for row in known]


def _check_targets(train: list[Cut], evaluation: list[Cut], lost: list[Cut], lost_eval: list[Cut], task: Task) -> None:
    for name, kept, gone in (("training", train, lost), ("evaluation", evaluation, lost_eval)):
        if not kept:
            cause = f"their prompts alone fill task.max_length = {task.max_length}: raise it or shorten the prompts"
            if not any(c.truncated for c in gone):
                cause = "their answers give no tokens"
            where = task.eval if name == "evaluation" and task.eval else task.data
            raise DataError(f"none of the {len(gone)} {name} rows has a token to learn from, {cause}", where or "")


def _labels(task: Task, rows: Sequence[Row] | Sequence[Example]) -> tuple[str, ...]:
    """The label set in words: ``task.labels`` as given, else those of the training rows, sorted."""
    if task.labels is not None:
        return tuple(dict.fromkeys(label_words(label) for label in task.labels))
    return tuple(sorted({row.label for row in rows if row.label is not None}))
