"""From a file's row to an ``Example``: what is prompt, what is answer. A row of no use is dropped with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from loracle.spec.study import Task
from loracle.tasks.columns import OPTIONAL, RESPONSE, Layout, fill
from loracle.tasks.groups import group_of
from loracle.tasks.metrics import label_words
from loracle.tasks.rows import Example, Segment

# The prompt of the first document; the input block is left out where a row has no input.
ALPACA = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
ALPACA_NO_INPUT = "### Instruction:\n{instruction}\n\n### Response:\n"
TEXT_LABEL = "Text: {text}\nLabel:"
TEXT = "{text}"  # what a classification head reads
PROMPT = "{prompt}"
SQUAD = "Context: {context}\nQuestion: {question}\nAnswer:"
DEFAULTS = {"text_label": TEXT_LABEL, "prompt_completion": PROMPT}  # alpaca's depends on the row

ROLES = {
    "system": "system", "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
}  # fmt: skip


class Drop(Exception):
    """This row is left out; the message is the reason that the audit counts."""


@dataclass
class Parsed:
    """The usable rows of a file as (item, example), and why the others were dropped."""

    examples: list[tuple[int, Example]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    read: int = 0


def parse(rows: Sequence[dict[str, Any]], shape: Layout, task: Task) -> Parsed:
    """Every row of a file as an example, or dropped."""
    out = Parsed(read=len(rows))
    for item, row in enumerate(rows):
        try:
            one = example(row, shape, task)
            out.examples.append((item, replace(one, group=group_of(row, task.group)) if task.group else one))
        except Drop as reason:
            out.dropped[str(reason)] += 1
    return out


def example(row: dict[str, Any], shape: Layout, task: Task) -> Example:
    """One row as an ``Example``; raises ``Drop``."""
    if shape.format in ("messages", "sharegpt"):
        return _conversation(row.get(next(iter(shape.columns.values()))), task.system)
    if shape.format == "text":
        text = _required(row, shape, "text")
        return Example(segments=(Segment(text, True, True),))
    if shape.format == "squad":
        return _question(row, shape)
    prompt = _prompt(row, shape, TEXT if task.classifies else DEFAULTS.get(shape.format))
    if shape.format == "text_label":
        label = _label(_required(row, shape, "label"), task)
        if task.classifies:
            return Example((Segment(prompt, False),), reference=label, label=label)
        return _answered(prompt, label, reference=label, label=label)
    answer = _required(row, shape, RESPONSE[shape.format])
    joined = shape.template is None and shape.format == "prompt_completion"
    return _answered(prompt, answer, reference=answer.strip(), raw=joined)


def _answered(prompt: str, answer: str, reference: str, label: str | None = None, raw: bool = False) -> Example:
    """Prompt and answer. White space between them belongs to the answer, so that generation starts where training did.

    Where a template ends in no white space the answer gets one space; ``raw`` (a bare prompt and completion) adds none.
    """
    head = prompt.rstrip(" ")
    gap = prompt[len(head) :]
    if not head.strip():
        raise Drop("prompt is empty")
    if not raw and not gap and not head[-1].isspace() and not answer[0].isspace():
        gap = " "
    return Example((Segment(head, False), Segment(gap + answer, True, True)), reference=reference, label=label)


def _question(row: dict[str, Any], shape: Layout) -> Example:
    """A SQuAD question: the first answer is learned, all of them are right. The context is a segment of its own."""
    answers = answer_texts(row.get(shape.columns["answers"]))
    if not answers:
        raise Drop("answers is empty")
    template = shape.template or SQUAD
    values = _values(row, shape)
    one = _answered(fill(template, values), answers[0][0], reference=answers[0][0])
    before, found, _ = template.partition("{context}")
    segments, answer_at = one.segments, None
    if found:
        segments, answer_at = _split(one.segments, fill(before, values), values["context"], answers[0])
    return replace(one, segments=segments, references=tuple(dict(answers)), answer_at=answer_at)


def _split(
    segments: tuple[Segment, ...], before: str, context: str, answer: tuple[str, int | None]
) -> tuple[tuple[Segment, ...], int | None]:
    """The prompt cut around its context, and where in that segment the answer begins. White space before the context
    goes with it, as that before an answer does."""
    prompt, text = segments[0].text, answer[0]
    start, stop = len(before.rstrip(" ")), len(before) + len(context)
    parts = (
        Segment(prompt[:start], False),
        Segment(prompt[start:stop], False, context=True),
        Segment(prompt[stop:], False),
    )
    given = answer[1]
    at = given if given is not None and context[given : given + len(text)] == text else context.find(text)
    return (*(part for part in parts if part.text), *segments[1:]), at + len(before) - start if at >= 0 else None


def answer_texts(value: Any) -> list[tuple[str, int | None]]:
    """(text, first character in the context or None) of each answer, without empty ones: from ``{text: [], answer_start:
    []}`` as the hub has it, from SQuAD's own ``[{text, answer_start}]``, and from bare texts."""
    if isinstance(value, dict):
        texts, starts = (_as_list(value.get(key)) for key in ("text", "answer_start"))
        starts += [None] * (len(texts) - len(starts))
    else:
        whole = [item if isinstance(item, dict) else {"text": item} for item in _as_list(value)]
        texts, starts = [item.get("text") for item in whole], [item.get("answer_start") for item in whole]
    pairs = zip((text_of(text, "an answer") for text in texts), starts, strict=False)
    return [
        (text.strip(), at + len(text) - len(text.lstrip()) if isinstance(at, int) else None)
        for text, at in pairs
        if text.strip()
    ]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _prompt(row: dict[str, Any], shape: Layout, default: str | None) -> str:
    template = shape.template or default
    values = _values(row, shape)
    if template is None:
        template = ALPACA if values.get("input", "").strip() else ALPACA_NO_INPUT
    return fill(template, values)


def _values(row: dict[str, Any], shape: Layout) -> dict[str, str]:
    """The texts that a template's fields stand for; raises ``Drop`` where one that is needed is empty."""
    optional = OPTIONAL.get(shape.format, set())
    values: dict[str, str] = {}
    for name in shape.columns:
        if name != RESPONSE[shape.format] and (shape.template is None or name in shape.template_fields):
            value = row.get(shape.columns[name])
            values[name] = text_of(value, name) if name in optional else _required(row, shape, name)
    for name, column in shape.template_fields.items():
        values.setdefault(name, text_of(row.get(column), name))
    return values


def _required(row: dict[str, Any], shape: Layout, ours: str) -> str:
    text = text_of(row.get(shape.columns[ours]), ours)
    if not text.strip():
        raise Drop(f"{ours} is empty")
    return text


def text_of(value: Any, name: str) -> str:
    """A value as text: numbers and booleans are written out, null is empty; lists and objects are no text."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, str):
        text = value
    elif isinstance(value, list | tuple | dict):
        raise Drop(f"{name} is {'an object' if isinstance(value, dict) else 'a list'}, not text")
    else:
        text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate from a JSON escape: no tokenizer takes it
        raise Drop(f"{name} is not valid Unicode") from None
    return text


def _label(text: str, task: Task) -> str:
    """A label in words. With ``task.labels`` it is that of the list where one fits but for case and closing punctuation
    (copies of a data set differ in those), and a number is the place of a label in that list."""
    words = label_words(text)
    if task.labels is None:
        return words
    known = [label_words(label) for label in task.labels]
    if words in known:
        return words
    if words.isdecimal() and int(words) < len(known):
        return known[int(words)]
    alike = [label for label in known if _bare(label) == _bare(words)]
    return alike[0] if len(alike) == 1 else words


def _bare(label: str) -> str:
    return label.casefold().rstrip("?!. ")


def _conversation(value: Any, system: str | None) -> Example:
    messages = _messages(value)
    if messages[0]["role"] != "system" and system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return Example(messages=tuple(messages), reference=messages[-1]["content"].strip())


def _messages(value: Any) -> list[dict[str, str]]:
    """``[{role, content}]`` or ``[{from, value}]`` with roles in our words: system?, then user and assistant in turns.

    Turns after the last answer are left out: nothing in them is scored.
    """
    if not isinstance(value, list | tuple) or not value:
        raise Drop(f"the conversation is {'not a list of messages' if value else 'empty'}")
    turns = [_message(turn) for turn in value]
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    if not turns:
        raise Drop("the conversation has no assistant turn")
    expected = "user"
    for turn in turns[1:] if turns[0]["role"] == "system" else turns:
        if turn["role"] != expected:
            raise Drop("the turns do not alternate between user and assistant, the user first")
        expected = "assistant" if expected == "user" else "user"
    return turns


def _message(turn: Any) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise Drop("a message is not an object")
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise Drop(f"a message has the role {str(role)[:24]!r}")
    text = text_of(content, "a message")
    if not text.strip():
        raise Drop("a message is empty")
    return {"role": ROLES[role.lower()], "content": text}
