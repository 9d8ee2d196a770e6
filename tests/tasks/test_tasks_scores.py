from __future__ import annotations

import pytest
import torch

from conftest import make
from loracle.base.errors import ModelError
from loracle.spec.study import Task
from loracle.tasks.collate import collate, collate_prompts, pad_token_id
from loracle.tasks.metrics import exact_match, label_accuracy, label_of, score_names
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
    assert score_names(Task(data="x", format="text")) == score_names(Task(data="x", generate=False), "alpaca") == ()
