"""A hypothesis in parts: each part with its own verdict and figures, and what they come to together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loracle.verdict.entries import Entry, entry, shown

SUPPORTED = "supported"
PARTLY = "partially supported"
REJECTED = "rejected"
UNDECIDED = "undecided"
CONFOUNDED = "confounded"
NOT_ASKED = "not asked"


@dataclass(frozen=True)
class Part:
    """One part of a hypothesis. ``given``: figures of the entry (estimate, interval, n, level …); ``scope``: what it is of."""

    name: str
    claim: str
    verdict: str
    statement: str
    metric: str | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    records: Sequence[str] = ()
    confounds: Sequence[str] = ()
    scope: Mapping[str, Any] = field(default_factory=dict)

    def entry(self, hypothesis: str) -> Entry:
        """As verdicts.json has it; hypotheses are exploratory."""
        return entry(
            question=hypothesis,
            scope={"part": self.name, **self.scope},
            claim=self.claim,
            verdict=self.verdict,
            statement=self.statement,
            metric=self.metric,
            exploratory=True,
            records=self.records,
            confounds=self.confounds,
            **self.given,
        )


def whole(hypothesis: str, claim: str, verdict: str, words: str, parts: Sequence[Part] = ()) -> Entry:
    """The hypothesis as a whole; its figures are its parts'."""
    named = [f"{part.name}{_of(part)}: {part.verdict}" for part in parts]
    text = f"{verdict.capitalize()} ({'; '.join(named)}). {words}" if parts else words
    levels = {part.given.get("level") for part in parts} - {None}
    return entry(
        question=hypothesis,
        scope={"part": "whole"},
        claim=claim,
        verdict=verdict,
        statement=text,
        exploratory=True,
        n=min((int(part.given.get("n") or 0) for part in parts if part.verdict != NOT_ASKED), default=0),
        level=levels.pop() if len(levels) == 1 else None,
        records=list(dict.fromkeys(r for part in parts for r in part.records)),
        confounds=list(dict.fromkeys(x for part in parts for x in part.confounds)),
    )


def combine(states: Sequence[str]) -> str:
    """A claim that all its parts hold: what was not asked leaves it to the others, one rejected part rejects it."""
    told = [state for state in states if state != NOT_ASKED]
    if not told:
        return NOT_ASKED
    if set(told) == {SUPPORTED}:
        return SUPPORTED
    if SUPPORTED in told or PARTLY in told:
        return PARTLY
    if REJECTED in told:
        return REJECTED
    return CONFOUNDED if set(told) == {CONFOUNDED} else UNDECIDED


def _of(part: Part) -> str:
    itself = ("precision", "codec", "method", "targets", "base", "task")  # values that say what they are values of
    of = [(k, v) for k, v in part.scope.items() if (k, v) != ("method", "lora")]
    named = [shown(v) if k in itself else f"{k} {shown(v)}" for k, v in of]
    return f" ({', '.join(named)})" if named else ""
