"""What is judged and what comes back: an item, a verdict, and the key that ties the two to a judge."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loracle.store.files import digest

Message = dict[str, str]  # role, content
Identity = Mapping[str, Any]  # a judge's kind, model, settings; never a key or a password
ASPECTS = ("coherence", "relevance")
REFERENCE_FIRST, MODEL_FIRST, BOTH = "reference first", "model first", "both"


@dataclass(frozen=True, slots=True)
class Item:
    """An answer to judge: beside ``reference`` (then it is compared), or alone (then it is rated).

    ``item`` is the row number in the reference file, or in the answers' own where there is no reference.
    """

    item: int
    instruction: str
    answer: str
    reference: str | None = None

    @property
    def task(self) -> str:
        return "chat" if self.reference is None else "alpaca_eval"

    @property
    def sha256(self) -> str:
        """Of the instruction and the answers."""
        return digest([self.instruction, self.answer, self.reference])


@dataclass(frozen=True)
class Verdict:
    """A finished verdict. ``preference`` is from 1 (the reference is better) to 2 (the model's answer is), ``ratings`` is
    aspect → 1 to 5; without either, ``reason`` says why there is none.

    ``rejected`` are earlier replies that were no verdict; ``attempts`` counts requests sent, failed ones included.
    """

    prompt: Any
    order: str | None = None
    reply: Any = None
    preference: float | None = None
    ratings: dict[str, float] | None = None
    reason: str | None = None
    rejected: tuple[str, ...] = ()
    usage: dict[str, int] | None = None
    attempts: int = 0


@dataclass(frozen=True)
class Answers:
    """All items of one model; ``name`` and ``reference_name`` are AlpacaEval's generators, ``notes`` what to warn of."""

    name: str
    items: list[Item]
    reference_name: str | None = None
    notes: list[str] = field(default_factory=list)


def key(item: Item, judge: Identity) -> str:
    """SHA-256 over the item's number and texts, and the judge."""
    return digest([item.item, item.sha256, dict(judge)])


def line(item: Item, judge: Identity, verdict: Verdict) -> dict[str, Any]:
    """The verdict as a line of ``judgements.jsonl`` (docs/files.md)."""
    value = {"ratings": verdict.ratings} if item.reference is None else {"preference": verdict.preference}
    return {
        "key": key(item, judge),
        "task": item.task,
        "item": item.item,
        **value,
        "reason": verdict.reason,
        "order": verdict.order,
        "prompt": verdict.prompt,
        "reply": verdict.reply,
        "rejected": list(verdict.rejected),
        "usage": verdict.usage,
        "attempts": verdict.attempts,
        "answers": item.sha256,
        "judge": dict(judge),
    }


def model_first(seed: int, item: int) -> bool:
    """Whether the model's answer stands first: a coin for each item, the same at every call."""
    return hashlib.sha256(f"{seed}:{item}".encode()).digest()[0] % 2 == 1
