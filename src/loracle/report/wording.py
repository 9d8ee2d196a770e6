"""Figures as a reader sees them, and the interval of a mean over seeds. A figure that is not there is a dash."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from loracle.verdict import entries

NONE = "–"
MIN_SEEDS = 3
FRACTIONS = (
    "exact_match", "label_accuracy", "base_exact_match", "base_label_accuracy", "token_match", "accuracy", "macro_f1",
    "weighted_f1", "majority_accuracy", "f1", "base_f1",
)  # fmt: skip
METRIC_NAMES = {
    "eval_loss": "evaluation loss",
    "label_accuracy": "label accuracy",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "f1": "F1",
    "embedding_cosine": "embedding cosine",
    "exact_match": "exact match",
    "plain_text_loss": "plain-text loss",
    "perplexity": "perplexity",
}
QUESTION_NAMES = {
    "degradation": "Evaluation loss",
    "gain_kept": "Tuning gain kept",
    "mixed_precision": "Gap closed by mixed precision",
    "task_metric": "Task metric",
    "rank_threshold": "Smallest rank that absorbs quantization (r*)",
    "rank_enough": "Smallest rank that is as good as the largest",
    "similarity": "Likeness of the learned updates",
    "memory": "Peak memory",
    "speed": "Step time",
}


def mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def t_interval(values: Sequence[float], level: float = 0.95, fraction: bool = False) -> tuple[float, float] | None:
    """Student's interval of the mean over seeds; None below three. Fractions stay within 0 and 1."""
    from scipy import stats

    n = len(values)
    if n < MIN_SEEDS:
        return None
    centre = math.fsum(values) / n
    spread = math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (n - 1))
    half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * spread / math.sqrt(n)
    low, high = centre - half, centre + half
    return (max(0.0, low), min(1.0, high)) if fraction else (low, high)


def question(name: str) -> str:
    return QUESTION_NAMES.get(name, name.replace("_", " ").capitalize())


def metric(name: str) -> str:
    return METRIC_NAMES.get(name, name.replace("_", " "))


def headed(name: str) -> str:
    """A metric's name as a heading: ``Macro F1``."""
    words = metric(name)
    return words[:1].upper() + words[1:]


def loss(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


def fraction(value: float | None) -> str:
    """A rate as a percentage with one digit."""
    return NONE if value is None else f"{100 * value:.1f}%"


def by_metric(name: str, value: float | None) -> str:
    """A run's figure in the unit of its metric."""
    return fraction(value) if name in FRACTIONS else loss(value)


def with_interval(name: str, values: Sequence[float]) -> str:
    """``0.6421 (0.6300 to 0.6542)``; the bare mean below three seeds."""
    centre = mean(values)
    found = t_interval(values, fraction=name in FRACTIONS)
    text = by_metric(name, centre)
    return text if found is None else f"{text} ({by_metric(name, found[0])} to {by_metric(name, found[1])})"


def count(value: Any) -> str:
    """12,288; 26.39; other text as it is."""
    if value is None:
        return NONE
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def size(value: float | None) -> str:
    return NONE if value is None else entries.size(value)


def seconds(value: float | None) -> str:
    if value is None:
        return NONE
    if value < 60:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 3600 else f"{value / 3600:.1f} h"


def estimate(entry: entries.Entry) -> str:
    """A verdict's estimate in the unit of its metric."""
    value = entry["estimate"]
    if value is None:
        return ""
    name = str(entry["metric"] or "")
    if name.endswith("_log_ratio"):
        return entries.percent(value)
    if name in ("gain_kept", "gap_closed"):
        return entries.share(value)
    if entry["question"] == "task_metric":
        return f"{entries.points(value)} pt"
    if name == "rank":
        return f"r* {value:g}"
    return f"{value:.3f}"


def plural(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def change(log_ratio: float) -> str:
    """A log ratio as an unsigned percentage: 0.0488 -> ``5%``."""
    return f"{100 * abs(math.expm1(log_ratio)):.3g}%"
