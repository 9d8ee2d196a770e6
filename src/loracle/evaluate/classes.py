"""What a classifier's guesses come to: its scores, and its columns of ``predictions.parquet``."""

from __future__ import annotations

from typing import Any

import numpy as np

from loracle.tasks.metrics import classification_scores, majority_accuracy
from loracle.tasks.rows import Tokenized


def true_classes(data: Tokenized) -> list[int]:
    """Each evaluation row's class."""
    return [row.label_id or 0 for row in data.eval]


def class_metrics(guesses: np.ndarray, data: Tokenized) -> dict[str, float]:
    """Scores of ``guesses [n]``, and that of always guessing the commonest label (keys: docs/files.md)."""
    true = true_classes(data)
    scores = classification_scores(guesses.tolist(), true, len(data.labels))
    return scores | {"majority_accuracy": majority_accuracy(true)}


def class_columns(guesses: np.ndarray, data: Tokenized) -> dict[str, list[Any]]:
    """``prediction``, ``reference`` (labels in words) and ``accuracy`` (0 or 1) of ``guesses [n]``."""
    return {
        "prediction": [data.labels[i] for i in guesses.tolist()],
        "reference": [row.reference for row in data.eval],
        "accuracy": [int(i == row.label_id) for i, row in zip(guesses.tolist(), data.eval, strict=True)],
    }
