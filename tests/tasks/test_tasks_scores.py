from __future__ import annotations

import pytest
import torch

from conftest import make
from loracle.base.errors import ModelError
from loracle.spec.study import Task
from loracle.tasks.collate import collate, collate_prompts, pad_token_id
from loracle.tasks.metrics import (
    classification_scores,
    confusion_matrix,
    exact_match,
    label_accuracy,
    label_of,
    majority_accuracy,
    score_names,
    scores_of,
)
from loracle.tasks.rows import Row


def test_collate_pads_right_and_leaves_real_eos_scored() -> None:
    rows = [Row(0, [5, 6, 0], [-100, 6, 0]), Row(1, [7], [-100])]
    batch = collate(rows, pad_id=0, pad_to_multiple=4)
    assert batch.input_ids.tolist() == [[5, 6, 0, 0], [7, 0, 0, 0]]
    assert batch.labels.tolist() == [[-100, 6, 0, -100], [-100, -100, -100, -100]]
    assert batch.input_ids.dtype == batch.labels.dtype == torch.int64


def test_collate_prompts_pads_left() -> None:
    batch = collate_prompts([[5, 6, 7], [8]], pad_id=1)
    assert batch.input_ids.tolist() == [[5, 6, 7], [1, 1, 8]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 0, 0]]


def test_pad_token_is_pad_or_else_eos() -> None:
    assert pad_token_id(make()) == 2
    assert pad_token_id(make(pad_token=None)) == 0
    with pytest.raises(ModelError, match="neither a pad nor an eos token"):
        pad_token_id(object())


def test_exact_match_strips_white_space_only() -> None:
    assert exact_match(" Paris\n", "Paris")
    assert not exact_match("paris", "Paris")


@pytest.mark.parametrize(
    ("prediction", "label"),
    [
        (" card arrival", "card arrival"), ("Card_Arrival\nQuery: x", "card arrival"), ("card", "card"),
        ("card  arrivals", "card"), ("cards", None), ("the card arrival", None), ("", None), ("card.", "card"),
    ],
)  # fmt: skip
def test_the_longest_label_that_the_generation_begins_with(prediction: str, label: str | None) -> None:
    assert label_of(prediction, ["card", "card arrival", "age limit"]) == label


def test_label_accuracy_and_the_scores_of_a_task() -> None:
    assert label_accuracy(" card arrival, I think", "card_arrival", ["card arrival", "age limit"])
    assert not label_accuracy(" age limit", "card arrival", ["card arrival", "age limit"])
    assert score_names(Task(data="x", format="text_label")) == ("exact_match", "label_accuracy")
    assert score_names(Task(data="x"), "messages") == ("exact_match",)
    assert score_names(Task(data="x"), "squad") == ("exact_match", "f1")
    assert score_names(Task(data="x", type="classification", generate=False)) == ("accuracy",)
    assert score_names(Task(data="x", format="text")) == score_names(Task(data="x", generate=False), "alpaca") == ()


def test_the_scores_of_one_generation() -> None:
    row = Row(0, [1], [-100], [1], "card arrival", "card arrival")
    labels = ("card arrival", "age limit")
    assert scores_of("text_label", "card arrival, yes", row, labels) == {"exact_match": 0.0, "label_accuracy": 1.0}
    assert scores_of("text_label", " card arrival", row, labels) == {"exact_match": 1.0, "label_accuracy": 1.0}
    assert scores_of("alpaca", "Card arrival", row, ()) == {"exact_match": 0.0}
    for format in ("text_label", "alpaca"):
        assert tuple(scores_of(format, "x", row, labels)) == score_names(Task(data="x"), format)


def test_classification_scores_by_hand() -> None:
    # F1 of label 0: 1 of 2 found, none wrongly, 2/3; of 1: found, twice wrongly, 1/2; of 2: never there, 0; of 3: missed, 0
    predicted, true = [0, 1, 1, 1], [0, 0, 1, 3]
    assert confusion_matrix(predicted, true, 4) == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert classification_scores(predicted, true, 4) == {
        "accuracy": 0.5,
        "macro_f1": pytest.approx((2 / 3 + 1 / 2) / 4),
        "weighted_f1": pytest.approx((2 * 2 / 3 + 1 / 2) / 4),
    }
    assert majority_accuracy(true) == 0.5
    assert classification_scores([0, 1], [0, 1], 2) == {"accuracy": 1.0, "macro_f1": 1.0, "weighted_f1": 1.0}


def test_classification_scores_are_scikit_learns() -> None:
    import numpy as np
    from sklearn import metrics

    draw = np.random.default_rng(0)
    predicted, true = draw.integers(0, 7, 200).tolist(), draw.integers(0, 6, 200).tolist()
    assert confusion_matrix(predicted, true, 7) == metrics.confusion_matrix(true, predicted, labels=range(7)).tolist()
    found = classification_scores(predicted, true, 7)
    assert found["accuracy"] == metrics.accuracy_score(true, predicted)
    f1 = metrics.f1_score(true, predicted, labels=range(7), average=None, zero_division=0)
    assert found["macro_f1"] == pytest.approx(f1.mean(), abs=1e-12)


@pytest.mark.parametrize(("predicted", "true"), [([], []), ([1], [1, 0])])
def test_scores_of_nothing_are_an_error(predicted: list[int], true: list[int]) -> None:
    with pytest.raises(ValueError, match="as many, and at least one, are needed"):
        classification_scores(predicted, true, 2)
