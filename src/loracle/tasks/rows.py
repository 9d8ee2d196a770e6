"""The nouns of this room: a segment, an example (before the tokenizer), a row (after it), and all rows of a task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

IGNORE = -100  # the label of a token that is not scored


class Segment(NamedTuple):
    """A stretch of text. ``scored``: the loss counts its tokens; ``end``: an eos token (scored alike) follows it."""

    text: str
    scored: bool
    end: bool = False


@dataclass(frozen=True, slots=True)
class Example:
    """One row as text: ``segments`` in order, or ``messages`` (``{role, content}``) that a chat template renders.

    ``reference`` is what a generation is compared with (null for plain text), ``label`` the right label, if any.
    """

    segments: tuple[Segment, ...] = ()
    messages: tuple[dict[str, str], ...] = ()
    reference: str | None = None
    label: str | None = None

    @property
    def content(self) -> tuple[Any, ...]:
        """What makes two examples the same example."""
        return self.segments, tuple((m["role"], m["content"]) for m in self.messages)


@dataclass(frozen=True, slots=True)
class Row:
    """One tokenized row.

    ``input_ids`` and ``labels`` are of one length ``[T]``; labels are unshifted, -100 where not scored, and -100 at
    position 0, which nothing predicts. ``prompt_ids [P]`` is what generation starts from (null for plain text).
    ``item`` is the row's number in its file, from 0.
    """

    item: int
    input_ids: list[int]
    labels: list[int]
    prompt_ids: list[int] | None = None
    reference: str | None = None
    label: str | None = None

    @property
    def target_tokens(self) -> int:
        """Number of scored tokens."""
        return sum(label != IGNORE for label in self.labels)


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A task's rows. ``key`` names the cache folder; ``fingerprint`` is the SHA-256 of the rows themselves."""

    key: str
    fingerprint: str
    format: str
    train: list[Row]
    eval: list[Row]
    audit: dict[str, Any]
    labels: tuple[str, ...] = field(default=())
