"""The final evaluation of a cohort, as its adapters will be used: true quantized storage, evaluation mode."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from loracle.adapters.cohort import Cohort
from loracle.evaluate.generate import eos_token_ids, final_answers, greedy
from loracle.evaluate.loss import ItemLosses, final_losses, item_losses
from loracle.evaluate.reload import TOLERANCE, Recipe, Reloader, recipe
from loracle.models.load import LoadedBase
from loracle.models.precision import deploy
from loracle.spec.study import Cell
from loracle.tasks.collate import pad_token_id
from loracle.tasks.dataset import plain_text
from loracle.tasks.metrics import exact_match, label_accuracy
from loracle.tasks.rows import Tokenized

Answers = list[list[int]]


@dataclass
class Evaluation:
    """Everything measured on a cohort's adapters. ``answers[k][i]`` are generated ids for ``generated[i]`` (row numbers)."""

    loaded: LoadedBase
    cell: Cell
    data: Tokenized
    pad_id: int
    losses: ItemLosses
    base_losses: ItemLosses
    plain: ItemLosses
    base_plain: ItemLosses
    generated: list[int]
    answers: list[Answers]
    base_answers: Answers
    texts: list[list[str]]
    base_texts: list[str]
    prompts: list[str]
    how: Recipe
    seconds: float = 0.0
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    base_scores: dict[str, np.ndarray] = field(default_factory=dict)

    def metrics(self, k: int) -> dict[str, float]:
        """Member ``k``'s metrics (keys: docs/files.md)."""
        out = {
            "perplexity": _exp(self.losses.mean[k]),
            "base_eval_loss": float(self.base_losses.mean[0]),
            "plain_text_loss": float(self.plain.mean[k]),
            "base_plain_text_loss": float(self.base_plain.mean[0]),
        }
        for name, values in self.scores.items():
            out[name] = float(values[k].mean())
            out[f"base_{name}"] = float(self.base_scores[name].mean())
        return out

    def predictions(self, k: int) -> dict[str, list[Any]]:
        """Columns of member ``k``'s ``predictions.parquet``."""
        rows = self.data.eval
        columns: dict[str, list[Any]] = {
            "item": [row.item for row in rows],
            "loss": self.losses.sums[k].tolist(),
            "target_tokens": self.losses.tokens.tolist(),
            "base_loss": self.base_losses.sums[0].tolist(),
        }
        if not self.generated:
            return columns
        place = {row: i for i, row in enumerate(self.generated)}
        at = [place.get(i) for i in range(len(rows))]
        columns["prompt"] = [None if i is None else self.prompts[i] for i in at]
        columns["prediction"] = [None if i is None else self.texts[k][i] for i in at]
        columns["prediction_ids"] = [None if i is None else self.answers[k][i] for i in at]
        columns["reference"] = [None if i is None else rows[j].reference for j, i in enumerate(at)]
        for name, values in self.scores.items():
            columns[name] = [None if i is None else int(values[k][i]) for i in at]
        return columns

    def reload_checks(
        self, adapters: Sequence[Path], items: int | None, say: Callable[..., None]
    ) -> list[dict[str, Any]]:
        """Each saved adapter under plain Transformers + PEFT: does it give the recorded loss?"""
        rows = self.data.eval[:items]
        reloader = Reloader(self.loaded.source, self.cell, self.how, self.loaded.device, adapters)
        tolerance = TOLERANCE[self.loaded.compute_dtype]
        tokens = max(1, int(self.losses.tokens[: len(rows)].sum()))
        checks = []
        for k in range(len(adapters)):
            say("reload", step=k + 1, steps=len(adapters))
            plain = float(reloader.item_losses(k, rows, self.pad_id).sum() / tokens)
            recorded = float(self.losses.sums[k][: len(rows)].sum() / tokens)
            difference = abs(plain - recorded)
            checks.append(
                {
                    "passed": bool(difference <= tolerance),
                    "eval_loss": plain,
                    "difference": difference,
                    "tolerance": tolerance,
                    "items": len(rows),
                    "load": self.how.as_record(),
                }
            )
        return checks


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def evaluate(
    loaded: LoadedBase, cohort: Cohort, cell: Cell, data: Tokenized, tokenizer: Any, say: Callable[..., None]
) -> Evaluation:
    """Losses, generations and scores of every member, and of the untrained base in the same precision."""
    started = time.monotonic()
    model, device, pad = loaded.model, loaded.device, pad_token_id(tokenizer)
    how = recipe(loaded, cell)
    deploy(model)
    say("evaluate", items=len(data.eval))
    plain_rows = plain_text(tokenizer, cell.task.max_length)
    losses, plain = (final_losses(model, cohort, rows, pad, device) for rows in (data.eval, plain_rows))
    base_losses, base_plain = (
        item_losses(model, cohort, rows, pad, device, base=True) for rows in (data.eval, plain_rows)
    )
    chosen = rows_to_generate(data, cell)
    answers: list[Answers] = [[] for _ in cohort.members]
    base_answers: Answers = []
    if chosen:
        say("generate", items=len(chosen))
        prompts = [data.eval[i].prompt_ids or [] for i in chosen]
        ends = eos_token_ids(model, tokenizer)
        limits: dict[str, Any] = {
            "max_new_tokens": cell.task.max_new_tokens,
            "eos_ids": ends,
            "pad_id": pad,
            "device": device,
        }
        answers = final_answers(model, cohort, prompts, **limits)
        [base_answers] = greedy(model, cohort, prompts, **limits, base=True)
    texts = [_decode(tokenizer, each) for each in answers]
    base_texts = _decode(tokenizer, base_answers)
    prompt_texts = _decode(tokenizer, [data.eval[i].prompt_ids or [] for i in chosen])
    out = Evaluation(
        loaded,
        cell,
        data,
        pad,
        losses,
        base_losses,
        plain,
        base_plain,
        chosen,
        answers,
        base_answers,
        texts,
        base_texts,
        prompt_texts,
        how,
    )
    out.scores = score(texts, chosen, data)
    out.base_scores = score([base_texts], chosen, data)
    out.seconds = time.monotonic() - started
    return out


def rows_to_generate(data: Tokenized, cell: Cell) -> list[int]:
    """Row numbers of the evaluation prompts that are generated for."""
    if not cell.task.generate:
        return []
    return [i for i, row in enumerate(data.eval) if row.prompt_ids][: cell.task.generate_samples]


def score(texts: Sequence[Sequence[str]], chosen: Sequence[int], data: Tokenized) -> dict[str, np.ndarray]:
    """Score name → 0/1 ``[K, n]`` over the generated rows; empty where nothing was generated."""
    if not chosen:
        return {}
    rows = [data.eval[i] for i in chosen]
    out = {
        "exact_match": np.array(
            [[exact_match(t, r.reference or "") for t, r in zip(each, rows, strict=True)] for each in texts],
            dtype=float,
        )
    }
    if data.labels:
        out["label_accuracy"] = np.array(
            [
                [label_accuracy(t, r.label or "", data.labels) for t, r in zip(each, rows, strict=True)]
                for each in texts
            ],
            dtype=float,
        )
    return out


def _decode(tokenizer: Any, answers: Answers) -> list[str]:
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
