"""Rows longer than allowed that have a context: the context gives way, so that question and answer survive.

While training the answer is known, and the part of the context around it is kept. At evaluation nobody may look at the
answer: the context loses its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loracle.tasks.encode import Encoded
from loracle.tasks.rows import Example


@dataclass(frozen=True, slots=True)
class Fitted:
    """A row after its context gave way. ``answer_cut``: none of the right answers stands in what is left of it."""

    encoded: Encoded
    shortened: bool = False
    answer_cut: bool = False


def fit(
    tokenizer: Any, example: Example, encoded: Encoded, max_length: int, max_new_tokens: int, training: bool
) -> Fitted:
    """``encoded`` with as much of its context as fits. At evaluation prompt and row are cut alike: the prompt leaves room
    for ``max_new_tokens`` and for the right answer's tokens."""
    if encoded.context is None or encoded.prompt is None:
        return Fitted(encoded)
    start, stop = encoded.context
    answer = len(encoded.input_ids) - encoded.prompt
    over = encoded.prompt + (answer if training else max(answer, max_new_tokens)) - max_length
    if over <= 0:
        return Fitted(encoded)
    ids = encoded.input_ids[start:stop]
    keep = max(len(ids) - over, 0)
    begin = _around(_answer_span(tokenizer, example), keep, len(ids)) if training else 0
    gone = len(ids) - keep
    fitted = Encoded(
        [*encoded.input_ids[:start], *ids[begin : begin + keep], *encoded.input_ids[stop:]],
        [*encoded.labels[:start], *encoded.labels[start + begin : start + begin + keep], *encoded.labels[stop:]],
        encoded.prompt - gone,
        (start, start + keep),
    )
    return Fitted(fitted, True, not _holds(tokenizer, ids[begin : begin + keep], example.references or ()))


def _answer_span(tokenizer: Any, example: Example) -> tuple[int, int]:
    """The answer's place in the context, in tokens and give or take one; (0, 0) where it does not stand there."""
    context = next(segment.text for segment in example.segments if segment.context)
    if example.answer_at is None:
        return 0, 0
    begin, end = example.answer_at, example.answer_at + len(example.reference or "")
    before, through = tokenizer([context[:begin], context[:end]], add_special_tokens=False, verbose=False)["input_ids"]
    return len(before), len(through)


def _around(span: Sequence[int], keep: int, size: int) -> int:
    """The first of ``keep`` of ``size`` tokens with the span in their middle, or as far there as the ends allow."""
    first = (span[0] + span[1] - keep) // 2
    return min(max(first, 0), size - keep)


def _holds(tokenizer: Any, ids: list[int], answers: Sequence[str]) -> bool:
    text = _plain(tokenizer.decode(ids))
    return any(_plain(answer) in text for answer in answers)


def _plain(text: str) -> str:
    """Without white space and case, which a tokenizer need not give back as they were."""
    return "".join(text.split()).casefold()
