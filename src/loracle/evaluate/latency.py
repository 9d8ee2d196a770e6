"""How long an answer takes: prompts answered one at a time, as a person would wait for them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loracle.adapters.forward import Answerer
from loracle.evaluate.generate import greedy


@dataclass(frozen=True)
class Timing:
    """Seconds of each answer, seconds to its first token, and its words."""

    seconds: list[float]
    first: list[float]
    words: list[int]

    def metrics(self) -> dict[str, float]:
        """Mean, median and 95th percentile of both, and mean words (keys: docs/files.md)."""
        out: dict[str, float] = {}
        for name, values in (("latency", self.seconds), ("first_token", self.first)):
            out[f"{name}_mean_s"] = float(np.mean(values))
            out[f"{name}_median_s"] = float(np.median(values))
            out[f"{name}_p95_s"] = float(np.percentile(values, 95))
        out["answer_words_mean"] = float(np.mean(self.words))
        return out


def timed_answers(
    who: Answerer, member: int, prompts: Sequence[Sequence[int]], tokenizer: Any, limits: Mapping[str, Any]
) -> Timing:
    """Member ``member``'s answers, one prompt at a time, greedy, after one that is not counted. The time to the first token is
    that of an answer of one token. On a GPU each clock waits for the device, as reading the tokens does."""
    greedy(who, [prompts[0]], **limits, alone=member)
    seconds, first, words = [], [], []
    for prompt in prompts:
        begin = time.perf_counter()
        greedy(who, [prompt], **{**limits, "max_new_tokens": 1}, alone=member)
        first.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        [[answer]] = greedy(who, [prompt], **limits, alone=member)
        seconds.append(time.perf_counter() - begin)
        words.append(len(tokenizer.decode(answer, skip_special_tokens=True).split()))
    return Timing(seconds, first, words)
