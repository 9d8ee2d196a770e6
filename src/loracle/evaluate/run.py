"""The final evaluation of a cohort, as its adapters will be used: true quantized storage, evaluation mode."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loracle.adapters.alone import Alone
from loracle.adapters.forward import Answerer, Untrained
from loracle.adapters.trainee import Trainee
from loracle.evaluate.answers import Answers, generate_answers
from loracle.evaluate.classes import class_columns, class_metrics
from loracle.evaluate.loss import ItemLosses, final_losses, item_losses
from loracle.evaluate.reload import TOLERANCE, Recipe, Reloader, recipe
from loracle.models.load import LoadedBase, load_base
from loracle.models.precision import deploy
from loracle.spec.study import Cell
from loracle.tasks.collate import pad_token_id
from loracle.tasks.dataset import plain_text
from loracle.tasks.groups import group_columns
from loracle.tasks.rows import Tokenized


@dataclass
class Evaluation:
    """Everything measured on a cohort's adapters. ``plain``: loss on plain text (null for classifiers, which have no language
    model head); ``answers``: null where nothing is generated."""

    loaded: LoadedBase
    cell: Cell
    data: Tokenized
    pad_id: int
    how: Recipe
    losses: ItemLosses
    base_losses: ItemLosses
    plain: ItemLosses | None
    base_plain: ItemLosses | None
    answers: Answers | None
    vocab: int | None = None  # the tokenizer's length, added tokens included
    seconds: float = 0.0

    def metrics(self, k: int) -> dict[str, float]:
        """Member ``k``'s metrics (keys: docs/files.md)."""
        out = {"base_eval_loss": float(self.base_losses.mean[0])}
        if self.plain and self.base_plain:
            out["perplexity"] = _exp(self.losses.mean[k])
            out["plain_text_loss"] = float(self.plain.mean[k])
            out["base_plain_text_loss"] = float(self.base_plain.mean[0])
        if self.losses.predicted is not None:
            out |= class_metrics(self.losses.predicted[k], self.data)
        return out | (self.answers.metrics(k) if self.answers else {})

    def predictions(self, k: int) -> dict[str, list[Any]]:
        """Columns of member ``k``'s ``predictions.parquet``."""
        rows = self.data.eval
        columns: dict[str, list[Any]] = {
            "item": [row.item for row in rows],
            "loss": self.losses.sums[k].tolist(),
            "target_tokens": self.losses.tokens.tolist(),
            "base_loss": self.base_losses.sums[0].tolist(),
        }
        columns |= group_columns(rows)
        if self.losses.predicted is not None:
            columns |= class_columns(self.losses.predicted[k], self.data)
        return columns | (self.answers.columns(k, self.data) if self.answers else {})

    def reload_checks(
        self, adapters: Sequence[Path], items: int | None, say: Callable[..., None]
    ) -> list[dict[str, Any]]:
        """Each saved adapter under plain Transformers + PEFT: does it give the recorded loss, and the same predictions?"""
        rows = self.data.eval[:items]
        reloader = Reloader(self.loaded, self.cell, self.how, adapters, self.data.labels, self.pad_id, self.vocab)
        tolerance = TOLERANCE[self.loaded.compute_dtype]
        tokens = max(1, int(self.losses.tokens[: len(rows)].sum()))
        checks = []
        for k in range(len(adapters)):
            say("reload", step=k + 1, steps=len(adapters))
            plain = reloader.item_losses(k, rows, self.pad_id)
            recorded = float(self.losses.sums[k][: len(rows)].sum() / tokens)
            difference = abs(float(plain.sums.sum() / tokens) - recorded)
            check = {
                "passed": bool(difference <= tolerance),
                "eval_loss": float(plain.sums.sum() / tokens),
                "difference": difference,
                "tolerance": tolerance,
                "items": len(rows),
                "load": {**self.how.as_record(), "autocast": reloader.autocast},
            }
            if plain.predicted is not None and self.losses.predicted is not None:
                check["predictions_changed"] = int((plain.predicted[0] != self.losses.predicted[k][: len(rows)]).sum())
            checks.append(check)
        return checks


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def evaluate(
    loaded: LoadedBase, who: Trainee, cell: Cell, data: Tokenized, tokenizer: Any, say: Callable[..., None]
) -> Evaluation:
    """Losses, generations and scores of every member, and of the untrained base in the same precision."""
    started = time.monotonic()
    device, pad = loaded.device, pad_token_id(tokenizer)
    how = recipe(loaded, cell)
    deploy(loaded.model)
    if isinstance(who, Alone):
        who.as_used()
    say("evaluate", items=len(data.eval))
    base = untrained(loaded, who, cell, data, len(tokenizer))
    losses = final_losses(who, data.eval, pad, device)
    plain = base_plain = None
    if cell.task.classifies:
        base_losses = guessing(losses, len(data.labels))
    else:
        base_losses = item_losses(base, data.eval, pad, device, base=True)
        prose = plain_text(tokenizer, cell.task.max_length)
        plain, base_plain = final_losses(who, prose, pad, device), item_losses(base, prose, pad, device, base=True)
    answers = generate_answers(who, base, cell.task, data, tokenizer, device, say)
    out = Evaluation(loaded, cell, data, pad, how, losses, base_losses, plain, base_plain, answers, len(tokenizer))
    out.seconds = time.monotonic() - started
    return out


def untrained(loaded: LoadedBase, who: Trainee, cell: Cell, data: Tokenized, vocab: int) -> Answerer:
    """The base before training: the cohort's own with its adapters out of the way, or, where training changed it, loaded anew."""
    if who.keeps_base:
        return who
    fresh = load_base(loaded.source, cell, loaded.device, storage="quantized", labels=data.labels, vocab=vocab)
    return Untrained(deploy(fresh.model))


def guessing(losses: ItemLosses, labels: int) -> ItemLosses:
    """What a head that knows nothing loses: ln(labels) an item. An untrained classifier has no head to measure."""
    return ItemLosses(np.full((1, losses.sums.shape[1]), math.log(labels)), losses.tokens)
