"""Examples to token ids and labels. Segments are tokenized one by one: a prompt's ids are a true prefix of its row's.

Labels are unshifted; -100 marks what is not scored. They come from the segments, never from the pad id: with pad = eos
the final eos stays scored. A bos stands in front only where the tokenizer puts one there by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from loracle.base.errors import ModelError
from loracle.tasks.rows import IGNORE, Example, Row, Segment

_CHUNK = 2048  # texts tokenized in one call


@dataclass(frozen=True, slots=True)
class Habits:
    """What a tokenizer does unasked: ids put in front (``prefix``), and whether it glues a space to a text's start."""

    prefix: tuple[int, ...]
    bos: int | None
    eos: int | None
    adds_space: bool


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example in full: ``input_ids`` and ``labels`` of one length; ``prompt`` tokens precede the last answer;
    ``context`` is where the tokens of the context segment begin and end."""

    input_ids: list[int]
    labels: list[int]
    prompt: int | None
    context: tuple[int, int] | None = None


def habits(tokenizer: Any) -> Habits:
    """Find a tokenizer's habits by trying them."""
    bare = _ids(tokenizer, ["a"])[0]
    full = list(tokenizer("a", add_special_tokens=True, verbose=False)["input_ids"])
    if not bare:
        raise ModelError("the tokenizer gives no tokens for 'a': its vocabulary is missing or damaged")
    start = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
    first = tokenizer.convert_ids_to_tokens(bare[0])
    return Habits(
        prefix=tuple(full[:start]),
        bos=tokenizer.bos_token_id,
        eos=tokenizer.eos_token_id,
        adds_space=str(first).startswith(("▁", "Ġ")),
    )


def encode(tokenizer: Any, examples: Sequence[Sequence[Segment]], rendered: bool = False) -> list[Encoded]:
    """Token ids and labels of each list of segments. ``rendered``: by a chat template, which has put its own bos."""
    habit = habits(tokenizer)
    texts: dict[tuple[str, bool], list[int]] = {}
    for segments in examples:
        texts.update({(segment.text, i > 0): [] for i, segment in enumerate(segments)})
    _fill(tokenizer, texts, habit)
    return [_join(segments, texts, habit, rendered) for segments in examples]


def _join(
    segments: Sequence[Segment], texts: dict[tuple[str, bool], list[int]], habit: Habits, rendered: bool
) -> Encoded:
    ids = [] if rendered else list(habit.prefix)
    labels = [IGNORE] * len(ids)
    prompt: int | None = None
    context: tuple[int, int] | None = None
    for i, (text, scored, end, is_context) in enumerate(segments):
        piece = texts[text, i > 0]
        if i == 0 and rendered:
            piece = _one_bos(piece, habit.bos)
        if end and habit.eos is not None:
            piece = [*piece, habit.eos]
        prompt = len(ids) if scored and i > 0 else prompt
        context = (len(ids), len(ids) + len(piece)) if is_context else context
        ids += piece
        labels += piece if scored else [IGNORE] * len(piece)
    if labels:
        labels[0] = IGNORE  # nothing comes before it that could predict it
    return Encoded(ids, labels, prompt, context)


def _one_bos(ids: list[int], bos: int | None) -> list[int]:
    """Leading bos tokens reduced to one: a template and its generation prompt may each have brought theirs."""
    start = 0
    while bos is not None and ids[start : start + 2] == [bos, bos]:
        start += 1
    return ids[start:]


def _fill(tokenizer: Any, texts: dict[tuple[str, bool], list[int]], habit: Habits) -> None:
    """Tokenize every (text, whether it continues another). A continuation is cut from behind an anchor where the
    tokenizer would otherwise glue a space to its start."""
    keys = list(texts)
    anchor = _ids(tokenizer, ["\n"])[0] if habit.adds_space else []
    for begin in range(0, len(keys), _CHUNK):
        chunk = keys[begin : begin + _CHUNK]
        anchored = [habit.adds_space and continues for _, continues in chunk]
        found = _ids(tokenizer, ["\n" + text if a else text for (text, _), a in zip(chunk, anchored, strict=True)])
        for key, behind, ids in zip(chunk, anchored, found, strict=True):
            if behind and ids[: len(anchor)] != anchor:
                ids, behind = _ids(tokenizer, [key[0]])[0], False
            texts[key] = ids[len(anchor) :] if behind else ids


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    return [list(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]


@dataclass(frozen=True, slots=True)
class Cut:
    """A row at its final length, and what was cut: the row at ``max_length``, the prompt so that an answer fits, the answer
    out of its context."""

    row: Row
    truncated: bool
    prompt_truncated: bool
    answer_cut: bool = False

    def after(self, answer_cut: bool) -> Cut:
        """This cut of a row whose context had given way before."""
        return replace(self, truncated=True, prompt_truncated=True, answer_cut=answer_cut)


def cut(
    item: int, example: Example, encoded: Encoded, max_length: int, max_new_tokens: int, prefix: Sequence[int]
) -> Cut:
    """The row of an example: ids cut on the right at ``max_length``; the prompt on the left (its bos kept) so that
    prompt + ``max_new_tokens`` fit in ``max_length``."""
    prompt_ids: list[int] | None = None
    short = False
    if encoded.prompt is not None and example.reference is not None:
        prompt_ids = encoded.input_ids[: encoded.prompt]
        room = max(max_length - max_new_tokens, len(prefix) + 1)
        short = len(prompt_ids) > room
        if short:
            head = prompt_ids[: len(prefix)] if prompt_ids[: len(prefix)] == list(prefix) else []
            prompt_ids = head + prompt_ids[len(prompt_ids) - room + len(head) :]
    row = Row(
        item=item,
        input_ids=encoded.input_ids[:max_length],
        labels=encoded.labels[:max_length],
        prompt_ids=prompt_ids,
        reference=example.reference,
        label=example.label,
        references=list(example.references) if example.references is not None else None,
        group=example.group,
    )
    return Cut(row, len(encoded.input_ids) > max_length, short)
