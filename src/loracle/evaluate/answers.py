"""Generated answers of every member and of the untrained base, and what they score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from loracle.adapters.forward import Answerer
from loracle.evaluate.embedding import base_encoder, cosines
from loracle.evaluate.generate import eos_token_ids, final_answers, greedy
from loracle.evaluate.latency import Timing, timed_answers
from loracle.spec.study import Task
from loracle.tasks.collate import pad_token_id
from loracle.tasks.metrics import scores_of
from loracle.tasks.rows import Tokenized

Ids = list[list[int]]
Scores = dict[str, np.ndarray]


@dataclass
class Answers:
    """``ids[k][i]`` and ``texts[k][i]``: member k's answer to evaluation row ``rows[i]``; ``scores`` name → ``[K, n]``.

    ``timings[k]``: its answers one at a time, where latency was asked for.
    """

    rows: list[int]
    prompts: list[str]
    ids: list[Ids]
    texts: list[list[str]]
    scores: Scores
    base_scores: Scores
    timings: list[Timing] = field(default_factory=list)

    def metrics(self, k: int) -> dict[str, float]:
        """Member ``k``'s means, and the base's as ``base_…``."""
        out: dict[str, float] = {}
        for name, values in self.scores.items():
            out[name] = float(values[k].mean())
            out[f"base_{name}"] = float(self.base_scores[name].mean())
        return out | (self.timings[k].metrics() if self.timings else {})

    def columns(self, k: int, data: Tokenized) -> dict[str, list[Any]]:
        """Member ``k``'s columns of ``predictions.parquet``; null in rows that were not generated for."""
        place = {row: i for i, row in enumerate(self.rows)}
        at = [place.get(i) for i in range(len(data.eval))]

        def spread(values: Sequence[Any]) -> list[Any]:
            return [None if i is None else values[i] for i in at]

        references = [data.eval[row].reference for row in self.rows]
        out = {
            "prompt": spread(self.prompts),
            "prediction": spread(self.texts[k]),
            "prediction_ids": spread(self.ids[k]),
            "reference": spread(references),
        }
        if data.format == "squad":
            out["references"] = spread([data.eval[row].references for row in self.rows])
        for name, values in self.scores.items():
            out[name] = spread([_number(value) for value in values[k]])
        return out


def _number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else float(value)


def rows_to_generate(data: Tokenized, task: Task) -> list[int]:
    """Row numbers of the evaluation prompts that are generated for."""
    if not task.generate:
        return []
    return [i for i, row in enumerate(data.eval) if row.prompt_ids][: task.generate_samples]


def generate_answers(
    who: Answerer,
    base: Answerer,
    task: Task,
    data: Tokenized,
    tokenizer: Any,
    device: torch.device,
    say: Callable[..., None],
) -> Answers | None:
    """Greedy answers of ``who``'s members and of the untrained ``base``; None where the task has nothing to generate."""
    rows = rows_to_generate(data, task)
    if not rows:
        return None
    say("generate", items=len(rows))
    prompts = [data.eval[i].prompt_ids or [] for i in rows]
    limits: dict[str, Any] = {
        "max_new_tokens": task.max_new_tokens,
        "eos_ids": eos_token_ids(who.model, tokenizer),
        "pad_id": pad_token_id(tokenizer),
        "device": device,
    }
    ids = final_answers(who, prompts, **limits)
    [base_ids] = greedy(base, prompts, **limits, base=True)
    texts, base_texts = [_decode(tokenizer, each) for each in ids], _decode(tokenizer, base_ids)
    scores, base_scores = score(texts, rows, data), score([base_texts], rows, data)
    references = [data.eval[i].reference or "" for i in rows]
    with base.answering(base=True):
        likeness = cosines(base_encoder(base.model, tokenizer, device), [*texts, base_texts], references)
    scores["embedding_cosine"], base_scores["embedding_cosine"] = likeness[:-1], likeness[-1:]
    timings = []
    if task.latency_samples:
        chosen = prompts[: task.latency_samples]
        timings = [timed_answers(who, k, chosen, tokenizer, limits) for k in range(who.size)]
    return Answers(rows, _decode(tokenizer, prompts), ids, texts, scores, base_scores, timings)


def score(texts: Sequence[Sequence[str]], rows: Sequence[int], data: Tokenized) -> Scores:
    """Score name → ``[K, n]`` over the generated rows."""
    found: list[list[Mapping[str, float]]] = [
        [scores_of(data.format, text, data.eval[i], data.labels) for text, i in zip(each, rows, strict=True)]
        for each in texts
    ]
    return {name: np.array([[one[name] for one in each] for each in found]) for name in found[0][0]}


def _decode(tokenizer: Any, answers: Ids) -> list[str]:
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
