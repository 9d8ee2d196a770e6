"""The measured results of a card's cell: means over seeds with their interval, and the one adapter's own figures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from loracle.report import wording
from loracle.report.cards.subject import Subject
from loracle.report.evidence import RunData, StudyData

# Our metric -> the metric's name on the Hub.
HUB_METRICS = {
    "eval_loss": "loss",
    "perplexity": "perplexity",
    "accuracy": "accuracy",
    "macro_f1": "f1",
    "weighted_f1": "f1",
    "label_accuracy": "accuracy",
    "exact_match": "exact_match",
    "f1": "f1",
    "embedding_cosine": "embedding_cosine",
    "plain_text_loss": "loss",
}
UNITS = {"eval_loss": "nats per scored token", "plain_text_loss": "nats per token"}


@dataclass(frozen=True)
class Result:
    """One metric of one cell. ``values`` by seed, ``own`` that of the card's adapter, ``before`` the untrained base's."""

    name: str
    values: list[float]
    own: float | None
    before: float | None
    items: int | None

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / len(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95% over seeds; None below three."""
        return wording.t_interval(self.values, fraction=self.name in wording.FRACTIONS)

    @property
    def label(self) -> str:
        unit = UNITS.get(self.name)
        return wording.metric(self.name) + (f", {unit}" if unit else "")


def results(data: StudyData, subject: Subject) -> Iterator[Result]:
    """Every metric that the cell's finished runs have. Perplexity is left out where the answers are labels."""
    if subject.cell is None or subject.run is None:
        return
    free_text = data.task_metric() is None  # what exact match there is, no answer reaches
    for name in HUB_METRICS:
        if name == "exact_match" and free_text:
            continue
        values = [v for v in data.values(subject.cell.id, name) if math.isfinite(v)]
        if values and not (name == "perplexity" and answers_are_labels(subject)):
            before = subject.run.metric(f"base_{name}")
            yield Result(name, values, subject.run.metric(name), before, _items(subject.run, name))


def answers_are_labels(subject: Subject) -> bool:
    """Whether what is scored are labels of a fixed set: a perplexity of those says little."""
    return subject.classifies or subject.section("task").get("format") == "text_label"


def _items(run: RunData, name: str) -> int | None:
    """How many evaluation items a figure is over, where predictions.parquet tells."""
    if run.predictions is None or name == "plain_text_loss":
        return None
    scores = run.predictions.scores.get(name)
    return len(run.predictions.items) if scores is None else int(np.isfinite(scores).sum())


def spread(result: Result) -> dict[str, Any]:
    """What stands beside a mean in the metadata: n, the interval or why there is none, and the range."""
    found: dict[str, Any] = {"seeds": len(result.values)}
    interval = result.interval
    if interval is not None:
        found["interval_95_over_seeds"] = list(interval)
    else:
        found["interval"] = f"none below {wording.MIN_SEEDS} seeds"
    return found | {"lowest": min(result.values), "highest": max(result.values)}
