"""Scores of text generations, each 0 or 1 for one item. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from loracle.spec.study import Task


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


def score_names(task: Task, format: str | None = None) -> tuple[str, ...]:
    """The scores that a task's generations get; ``format`` is ``Tokenized.format``, for a task without one."""
    kind = task.format or format
    if not task.generate or kind in (None, "text"):
        return ()
    return ("exact_match", "label_accuracy") if kind == "text_label" else ("exact_match",)
