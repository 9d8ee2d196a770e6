"""The nouns of this room: a segment, an example (before the tokenizer), a row (after it), and all rows of a task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

IGNORE = -100  # the label of a token that is not scored


class Segment(NamedTuple):
    """A stretch of text. ``scored``: the loss counts its tokens; ``end``: an eos token (scored alike) follows it;
    ``context``: what is cut first where a row is too long."""

    text: str
    scored: bool
    end: bool = False
    context: bool = False


@dataclass(frozen=True, slots=True)
class Example:
    """One row as text: ``segments`` in order, or ``messages`` (``{role, content}``) that a chat template renders.

    ``reference`` is what a generation is compared with (null for plain text), ``label`` the right label, if any.
    ``references`` are all right answers of a SQuAD question, the first one being ``reference``; ``answer_at`` says at
    which character of the context segment that one begins. ``group`` is what ``task.group``'s column says.
    """

    segments: tuple[Segment, ...] = ()
    messages: tuple[dict[str, str], ...] = ()
    reference: str | None = None
    label: str | None = None
    references: tuple[str, ...] | None = None
    answer_at: int | None = None
    group: str | None = None

    @property
    def content(self) -> tuple[Any, ...]:
        """What makes two examples the same example."""
        return self.segments, tuple((m["role"], m["content"]) for m in self.messages), self.label


@dataclass(frozen=True, slots=True)
class Row:
    """One tokenized row.

    ``input_ids`` and ``labels`` are of one length ``[T]``; labels are unshifted, -100 where not scored, and -100 at
    position 0, which nothing predicts. ``prompt_ids [P]`` is what generation starts from (null for plain text).
    ``item`` is the row's number in its file, from 0. A row of a classification has ``label_id``, the place of its label
    in ``Tokenized.labels``; its ``labels`` are all -100, and a head reads the label at its last token.
    """

    item: int
    input_ids: list[int]
    labels: list[int]
    prompt_ids: list[int] | None = None
    reference: str | None = None
    label: str | None = None
    label_id: int | None = None
    references: list[str] | None = None
    group: str | None = None

    @property
    def target_tokens(self) -> int:
        """Number of scored tokens; for a classification the one position at which the head reads the label."""
        return 1 if self.label_id is not None else sum(label != IGNORE for label in self.labels)


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
