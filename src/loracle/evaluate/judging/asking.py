"""A judge behind an endpoint: asks until a reply is a verdict, a few times at most."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from loracle.evaluate.judging import prompts
from loracle.evaluate.judging.endpoint import Endpoint, Refused
from loracle.evaluate.judging.items import MODEL_FIRST, REFERENCE_FIRST, Item, Message, Verdict, model_first
from loracle.store.provenance import without_credentials

T = TypeVar("T")
ASKS = 3  # times that a question is put before it counts as unanswered


class EndpointJudge:
    """Verdicts of the model behind an endpoint. Malformed replies are answered with the question again, and another seed."""

    def __init__(self, endpoint: Endpoint, *, seed: int = 0, max_tokens: int = 64, asks: int = ASKS) -> None:
        self.endpoint, self.seed, self.max_tokens, self.asks = endpoint, seed, max_tokens, asks

    @property
    def identity(self) -> dict[str, Any]:
        """What a verdict depends on besides the item."""
        return {
            "kind": "endpoint",
            "model": self.endpoint.model,
            "url": without_credentials(self.endpoint.url),
            "seed": self.seed,
            "temperature": 0,
            "max_tokens": self.max_tokens,
            "prompt": prompts.VERSION,
        }

    def __call__(self, item: Item) -> Verdict:
        """The item's verdict, without preference and ratings where no reply could be read. Raises as ``Endpoint.chat``."""
        if item.reference is None:
            ratings, verdict = self._asked(prompts.rate(item), prompts.ratings)
            return replace(verdict, ratings=ratings)
        if item.reference == item.answer:
            return draw()
        first = model_first(self.seed, item.item)
        letter, verdict = self._asked(prompts.compare(item, first), prompts.letter)
        order = MODEL_FIRST if first else REFERENCE_FIRST
        preference = None if letter is None else 2.0 if (letter == "A") == first else 1.0
        return replace(verdict, order=order, preference=preference)

    def refused(self, item: Item, error: Refused) -> Verdict:
        """The verdict on an item whose question the endpoint refuses."""
        if item.reference is None:
            return Verdict(prompts.rate(item), reason=str(error), attempts=error.attempts)
        first = model_first(self.seed, item.item)
        order = MODEL_FIRST if first else REFERENCE_FIRST
        return Verdict(prompts.compare(item, first), order, reason=str(error), attempts=error.attempts)

    def _asked(self, question: list[Message], read: Callable[[str], T | None]) -> tuple[T | None, Verdict]:
        """What ``read`` makes of the first reply that it can read, and the verdict around it."""
        messages, rejected = question, list[str]()
        attempts, usage = 0, None
        for ask in range(self.asks):
            reply = self.endpoint.chat(messages, max_tokens=self.max_tokens, seed=self.seed + ask)
            attempts += reply.attempts
            usage = reply.usage if ask == 0 else added(usage, reply.usage)
            found = read(reply.text) if reply.text is not None else None
            if found is not None:
                said = Verdict(question, reply=reply.text, rejected=tuple(rejected), usage=usage, attempts=attempts)
                return found, said
            rejected.append(reply.text if reply.text is not None else f"({reply.reason})")
            messages = prompts.again(question, reply.text) if reply.text is not None else question
        reason = reply.reason or "the reply is no verdict"
        last = Verdict(question, reply=reply.text, rejected=tuple(rejected[:-1]), usage=usage, attempts=attempts)
        return None, replace(last, reason=f"{reason} (asked {self.asks} times)")


def draw() -> Verdict:
    """Of two answers that are the same text no judge is asked, as in AlpacaEval."""
    return Verdict(None, preference=1.5, reason="identical answers: a draw, not asked")


def added(a: Mapping[str, int] | None, b: Mapping[str, int] | None) -> dict[str, int] | None:
    """Token counts of two requests; null where one of them is not known."""
    return None if a is None or b is None else {name: a[name] + b[name] for name in a}
