"""The evaluate job: load one model, give it a task's evaluation rows or the harness's tasks, score it. Contract: docs/jobs.md."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from loracle.base.errors import SpecError
from loracle.evaluate.answers import Answers, rows_to_generate, score
from loracle.evaluate.classes import class_columns, class_metrics, true_classes
from loracle.evaluate.generate import eos_token_ids, final_answers
from loracle.evaluate.harness import run_harness
from loracle.evaluate.intervals import METHOD, Statistic, f1_of, item_interval, mean_of, perplexity_of, ratio_of
from loracle.evaluate.loss import ItemLosses, final_losses
from loracle.evaluate.target import Target, load_target
from loracle.models.load import device_name, pick_device
from loracle.models.source import Source, find, fingerprint, load_config, load_tokenizer, tokenizer_fingerprint
from loracle.spec.factors import cell_from_config, precision_label
from loracle.spec.study import Cell
from loracle.store.files import read_json, replacing
from loracle.tasks import cache
from loracle.tasks.collate import pad_token_id
from loracle.tasks.dataset import build
from loracle.tasks.groups import group_columns
from loracle.tasks.rows import Tokenized
from loracle.tasks.split import draw

PREDICTIONS = "predictions.parquet"


def score_job(folder: Path, job: dict[str, Any], say: Callable[..., None], stop: Any) -> dict[str, Any]:
    """``scores`` as docs/evaluation.md describes them; predictions lie in ``folder`` where they were asked for."""
    stop.now()  # nothing here is worth keeping half done
    return ScoreJob(folder, job, say).run()


class ScoreJob:
    """One model from its job file to its figures. ``run`` is the main path."""

    def __init__(self, folder: Path, job: dict[str, Any], say: Callable[..., None]) -> None:
        self.folder, self.job, self.say = folder, job, say
        self.cell: Cell = cell_from_config(job["cell"])
        self.adapter = Path(job["adapter"]) if job["adapter"] else None
        self.source = find(self.cell.base.model, self.cell.base.revision)
        self.vocabulary = find(job["tokenizer"]) if job["tokenizer"] else self.source
        self.tokenizer = load_tokenizer(self.vocabulary, self.cell.base.add_tokens)
        self.device = pick_device(job["device"])
        self.notes = other_base(self.source, job["fingerprint"])

    def run(self) -> dict[str, Any]:
        """The harness's figures or the task's."""
        found = self.harness() if self.job["harness"] else self.task()
        return {"status": "done", "reason": None, "scores": {**found, **self.about(), "notes": self.notes}}

    def about(self) -> dict[str, Any]:
        """What was evaluated, and where."""
        return {
            "model": self.job["model"],
            "base": self.source.name,
            "precision": precision_label(self.cell.precision),
            "device": device_name(self.device),
        }

    def target(self, labels: tuple[str, ...] = ()) -> Target:
        """The loaded model."""
        self.say("load", base=self.source.name)
        vocab = len(self.tokenizer) if self.cell.base.add_tokens else None
        return load_target(self.source, self.cell, self.adapter, self.device, labels, vocab)

    def harness(self) -> dict[str, Any]:
        """lm-evaluation-harness on the model."""
        asked = dict(self.job["harness"])
        include = asked.pop("include_path")
        whole = self.target().whole
        self.say("harness")
        return run_harness(whole, self.tokenizer, include_path=Path(include) if include else None, **asked)

    def task(self) -> dict[str, Any]:
        """Loss and scores on the task's evaluation rows, each with its interval."""
        data = self.data()
        target = self.target(data.labels if self.cell.task.classifies else ())
        self.say("evaluate", items=len(data.eval))
        losses = final_losses(target.who, data.eval, pad_token_id(self.tokenizer), self.device)
        answers = self.answers(target, data)
        scores = Scores(self.cell, data, losses, answers)
        if self.job["predictions"]:
            with replacing(self.folder / PREDICTIONS) as temporary:
                pd.DataFrame(scores.predictions()).to_parquet(temporary, index=False)
        return scores.record()

    def data(self) -> Tokenized:
        """Evaluation rows: those that the run's study tokenized, else made anew; drawn as ``task.eval_samples`` draws."""
        task = self.cell.task
        limit = getattr(load_config(self.source), "max_position_embeddings", None)
        if limit and task.max_length > limit:
            raise SpecError(
                f"{task.max_length} tokens, but {self.source.name} has {limit} positions", "task.max_length"
            )
        self.say("tokenize", task=task.name or task.data)
        made = cache.load(Path(self.job["data"])) if self.job["data"] else None
        if made is None:
            if task.classifies:
                task = task.model_copy(update={"labels": self.head_labels()})
            identity = tokenizer_fingerprint(self.vocabulary, self.cell.base.add_tokens)
            made = build(task, self.tokenizer, identity, self.folder / "data")
        return replace(made, eval=draw(made.eval, self.job["samples"], task.split_seed, 2))

    def head_labels(self) -> tuple[str, ...]:
        """The labels of the model's own head, in the order of its outputs; a model without a head is refused."""
        if self.cell.task.labels:
            return self.cell.task.labels
        beside = self.adapter / "config.json" if self.adapter else None
        if beside and beside.is_file():
            named = read_json(beside).get("id2label") or {}
        elif self.adapter is None and is_classifier(load_config(self.source)):
            named = load_config(self.source).id2label
        else:
            problem = (
                "the model has no classification head: score the answers it writes with --set task.type=generation"
            )
            raise SpecError(problem, "task.type")
        if all(str(name).startswith("LABEL_") for name in named.values()):
            raise SpecError("config.json does not name the head's labels: give them in its order", "task.labels")
        return tuple(named[key] for key in sorted(named, key=int))

    def answers(self, target: Target, data: Tokenized) -> Answers | None:
        """Greedy answers to the task's prompts, scored; no base to compare with."""
        rows = rows_to_generate(data, self.cell.task) if not self.cell.task.classifies else []
        if not rows:
            return None
        self.say("generate", items=len(rows))
        prompts = [data.eval[i].prompt_ids or [] for i in rows]
        [ids] = final_answers(
            target.who,
            prompts,
            max_new_tokens=self.cell.task.max_new_tokens,
            eos_ids=eos_token_ids(target.who.model, self.tokenizer),
            pad_id=pad_token_id(self.tokenizer),
            device=self.device,
        )
        texts, shown = self.decoded(ids), self.decoded(prompts)
        return Answers(rows, shown, [ids], [texts], score([texts], rows, data), {})

    def decoded(self, ids: list[list[int]]) -> list[str]:
        """Text without special tokens."""
        return [self.tokenizer.decode(one, skip_special_tokens=True) for one in ids]


def is_classifier(config: Any) -> bool:
    """Whether a model's folder holds a trained classification head."""
    return any(str(name).endswith("ForSequenceClassification") for name in config.architectures or ())


def other_base(source: Source, recorded: str | None) -> list[str]:
    """A warning where the base that was named is not the run's own."""
    if recorded is None or fingerprint(source)[0] == recorded:
        return []
    return [f"{source.name} is not the base that the run was trained on (its fingerprint is another)"]


@dataclass(frozen=True)
class Scores:
    """One model's figures on a task: ``losses`` of all rows, ``answers`` of those that were generated for."""

    cell: Cell
    data: Tokenized
    losses: ItemLosses
    answers: Answers | None

    def record(self) -> dict[str, Any]:
        """``task, n, eval_loss, metrics, intervals`` and what the intervals are."""
        statistics = self.statistics()
        figures = {name: item_interval(items, statistic) for name, (items, statistic) in statistics.items()}
        return {
            "task": self.cell.task.name or Path(self.cell.task.data or "").name,
            "n": len(self.data.eval),
            "generated": len(self.answers.rows) if self.answers else 0,
            "eval_loss": float(self.losses.mean[0]),
            "metrics": self.metrics(),
            "intervals": {name: list(found) if found else None for name, (found, _) in figures.items()},
            "interval": METHOD,
            "interval_reasons": {name: why for name, (_, why) in figures.items() if why},
        }

    def metrics(self) -> dict[str, float]:
        """Fractions of 1, and the perplexity of a language model."""
        if self.losses.predicted is not None:
            return class_metrics(self.losses.predicted[0], self.data)
        loss = float(self.losses.mean[0])
        scores = self.answers.scores if self.answers else {}
        return {"perplexity": math.exp(loss) if loss < 700 else math.inf} | {
            name: float(values[0].mean()) for name, values in scores.items()
        }

    def statistics(self) -> dict[str, tuple[int, Statistic]]:
        """Figure → (how many items it is over, how it comes from them)."""
        n, sums, tokens = len(self.data.eval), self.losses.sums[0], self.losses.tokens
        out: dict[str, tuple[int, Statistic]] = {"eval_loss": (n, ratio_of(sums, tokens))}
        if self.losses.predicted is not None:
            guess, labels, true = self.losses.predicted[0], len(self.data.labels), np.array(true_classes(self.data))
            out["accuracy"] = (n, mean_of(guess == true))
            out["macro_f1"] = (n, f1_of(guess, true, labels, weighted=False))
            out["weighted_f1"] = (n, f1_of(guess, true, labels, weighted=True))
            return out
        out["perplexity"] = (n, perplexity_of(sums, tokens))
        scores = self.answers.scores if self.answers else {}
        return out | {name: (values.shape[1], mean_of(values[0])) for name, values in scores.items()}

    def predictions(self) -> dict[str, list[Any]]:
        """Columns as in a run's ``predictions.parquet``, without the base's."""
        rows = self.data.eval
        columns: dict[str, list[Any]] = {
            "item": [row.item for row in rows],
            "loss": self.losses.sums[0].tolist(),
            "target_tokens": self.losses.tokens.tolist(),
        }
        columns |= group_columns(rows)
        if self.losses.predicted is not None:
            columns |= class_columns(self.losses.predicted[0], self.data)
        return columns | (self.answers.columns(0, self.data) if self.answers else {})
