"""The column of groups: kept beside each row, counted, and never part of a row's identity where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loracle.base.errors import DataError
from loracle.spec.study import Task
from loracle.tasks import cache
from loracle.tasks.dataset import build
from loracle.tasks.groups import MOST, group_columns


def rows(path: Path, groups: list[Any], labels: tuple[str, ...] = ("yes", "no")) -> str:
    import json

    lines = [{"text": f"row {i}", "label": labels[i % len(labels)], "who": g} for i, g in enumerate(groups)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def task(path: str, **given: Any) -> Task:
    return Task(data=path, format="text_label", eval_fraction=0.5, max_length=64, max_new_tokens=4, **given)


def test_each_row_keeps_its_group(tokenizer: Any, tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", ["north", "  so\nuth ", None, 7] * 5)
    made = build(task(path, group="who"), tokenizer, "tok", tmp_path)
    wanted = {0: "north", 1: "so uth", 2: None, 3: "7"}
    assert all(row.group == wanted[row.item % 4] for row in [*made.train, *made.eval])
    assert group_columns(made.eval) == {"group": [row.group for row in made.eval]}
    audit = made.audit
    assert sum(audit["train_groups"].values()) + sum(audit["eval_groups"].values()) == 15
    assert sum(audit["train_labels"].values()) == audit["train_rows"]
    again = cache.load(tmp_path / made.key)
    assert again is not None
    assert (again.eval, again.audit) == (made.eval, audit)


def test_without_a_column_rows_are_what_they_were(tokenizer: Any, tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", ["north", "south"] * 5)
    plain = build(task(path), tokenizer, "tok", tmp_path)
    grouped = build(task(path, group="who"), tokenizer, "tok", tmp_path)
    assert group_columns(plain.eval) == {}
    assert not {"train_groups", "eval_groups"} & set(plain.audit)
    assert "group" not in task(path).model_dump()
    assert plain.key != grouped.key
    assert [row.input_ids for row in plain.eval] == [row.input_ids for row in grouped.eval]


@pytest.mark.parametrize(
    ("groups", "column", "problem"),
    [
        (["a", "b"] * 5, "whom", "no column 'whom' as task.group says"),
        ([None] * 10, "who", "is empty in every evaluation row"),
        ([f"row {i}" for i in range(4 * MOST)], "who", f"more than {MOST}"),
    ],
)
def test_a_column_that_cannot_be_one_is_an_error(
    tokenizer: Any, tmp_path: Path, groups: list[Any], column: str, problem: str
) -> None:
    path = rows(tmp_path / "a.jsonl", groups)
    with pytest.raises(DataError, match=problem):
        build(task(path, group=column), tokenizer, "tok", tmp_path)


def test_only_the_evaluated_file_needs_it(tokenizer: Any, tmp_path: Path) -> None:
    train = tmp_path / "train.jsonl"
    train.write_text('{"text": "a", "label": "yes"}\n{"text": "b", "label": "no"}\n')
    held = rows(tmp_path / "eval.jsonl", ["a", "b"])
    made = build(task(str(train), eval=held, group="who"), tokenizer, "tok", tmp_path)
    assert made.audit["train_groups"] == {}
    assert made.audit["eval_groups"] == {"a": 1, "b": 1}
    with pytest.raises(DataError, match="no column 'who'"):
        build(task(held, eval=str(train), group="who"), tokenizer, "tok", tmp_path)
