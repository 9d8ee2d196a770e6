"""Scores of text generations, item by item, and of classifications. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from loracle.spec.study import Task
from loracle.tasks import squad
from loracle.tasks.rows import Row


def label_words(label: str) -> str:
    """A label as it is written out and read back: ``card_arrival`` is ``card arrival``."""
    return " ".join(label.replace("_", " ").split())


def _plain(text: str) -> str:
    return label_words(text).casefold()


def exact_match(prediction: str, reference: str) -> bool:
    """Whether the generation equals the reference after stripping white space at both ends."""
    return prediction.strip() == reference.strip()


def label_of(prediction: str, labels: Sequence[str]) -> str | None:
    """The label that the generation begins with (the longest that fits, as whole words), or None.

    Case, runs of white space and underscores do not matter.
    """
    text = _plain(prediction)
    best: str | None = None
    for label in labels:
        words = _plain(label)
        fits = bool(words) and text.startswith(words) and not text[len(words) : len(words) + 1].isalnum()
        if fits and (best is None or len(words) > len(_plain(best))):
            best = label
    return best


def label_accuracy(prediction: str, label: str, labels: Sequence[str]) -> bool:
    """Whether the generation, read as the label that it begins with, is the right label."""
    found = label_of(prediction, labels)
    return found is not None and _plain(found) == _plain(label)


def scores_of(format: str, text: str, row: Row, labels: Sequence[str]) -> dict[str, float]:
    """Every score of one generation (names and order: ``score_names``), each between 0 and 1.

    ``format`` and ``labels`` are those of ``Tokenized``. A SQuAD answer is held against all of the row's references, as
    the official script does; other formats against the one reference, letter by letter.
    """
    if format == "squad":
        answers = row.references or [row.reference or ""]
        return {"exact_match": float(squad.exact_match(text, answers)), "f1": squad.f1(text, answers)}
    found = {"exact_match": float(exact_match(text, row.reference or ""))}
    if format == "text_label":
        found["label_accuracy"] = float(label_accuracy(text, row.label or "", labels))
    return found


def score_names(task: Task, format: str | None = None) -> tuple[str, ...]:
    """The scores that a task's items get; ``format`` is ``Tokenized.format``, for a task without one."""
    kind = task.format or format
    if task.classifies:
        return ("accuracy",)
    if not task.generate or kind in (None, "text"):
        return ()
    return ("exact_match", *{"text_label": ("label_accuracy",), "squad": ("f1",)}.get(str(kind), ()))


def classification_scores(predicted: Sequence[int], true: Sequence[int], labels: int) -> dict[str, float]:
    """``accuracy``, ``macro_f1`` and ``weighted_f1`` of label numbers below ``labels``, fractions of 1.

    F1 is that of scikit-learn over all labels; a label that is neither predicted nor true counts 0 in the macro mean.
    """
    from sklearn.metrics import f1_score

    _check_numbers(predicted, true)
    every: dict[str, Any] = {"labels": range(labels), "zero_division": 0}
    return {
        "accuracy": sum(p == t for p, t in zip(predicted, true, strict=True)) / len(true),
        "macro_f1": float(f1_score(true, predicted, average="macro", **every)),
        "weighted_f1": float(f1_score(true, predicted, average="weighted", **every)),
    }


def confusion_matrix(predicted: Sequence[int], true: Sequence[int], labels: int) -> list[list[int]]:
    """``[C][C]`` counts: row the true label, column the predicted one."""
    _check_numbers(predicted, true)
    counts = Counter(zip(true, predicted, strict=True))
    return [[counts[row, column] for column in range(labels)] for row in range(labels)]


def majority_accuracy(true: Sequence[int]) -> float:
    """The share of the commonest label: what answering nothing else would score."""
    _check_numbers(true, true)
    return Counter(true).most_common(1)[0][1] / len(true)


def _check_numbers(predicted: Sequence[int], true: Sequence[int]) -> None:
    if not len(true) or len(predicted) != len(true):
        raise ValueError(f"{len(predicted)} predictions for {len(true)} labels: as many, and at least one, are needed")
