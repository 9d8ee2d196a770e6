"""Rows for a classification head: the text alone, a label number, and nothing that the other kinds of data would notice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from conftest import make
from loracle.base.errors import DataError, SpecError
from loracle.spec.load import tuples
from loracle.spec.study import Task
from loracle.tasks import cache
from loracle.tasks.dataset import build, labels_of
from loracle.tasks.library import load_task
from loracle.tasks.rows import IGNORE, Row

CSV = "text,category\nwhere is it?,card_arrival\nhow old?,age_limit\nhow young?,age_limit\n"


def classified(tokenizer: Any, tmp_path: Path, **settings: Any) -> Any:
    return build(Task(type="classification", **settings), tokenizer, "tok", tmp_path / "cache")


@pytest.mark.parametrize("bos", [False, True])
def test_golden(write: Any, tmp_path: Path, bos: bool) -> None:
    tokenizer = make(bos=bos)
    paths = {"data": write("a.csv", CSV), "eval": write("e.csv", "text,category\nwhere?,card_arrival\n")}
    made = classified(tokenizer, tmp_path, **paths)
    front = "<bos>" if bos else ""
    assert made.labels == ("age limit", "card arrival")
    assert [tokenizer.decode(row.input_ids) for row in made.train] == [
        f"{front}where is it?",
        f"{front}how old?",
        f"{front}how young?",
    ]
    assert [row.label_id for row in made.train] == [1, 0, 0]
    for row in (*made.train, *made.eval):
        assert row.labels == [IGNORE] * len(row.input_ids)
        assert (row.prompt_ids, row.references, row.target_tokens) == (None, None, 1)
        assert row.reference == row.label == made.labels[row.label_id]
        assert tokenizer.eos_token_id not in row.input_ids
    assert made.audit["examples"][0]["tokens"][-1] == ["?", 1]
    assert sum(scored for _, scored in made.audit["examples"][0]["tokens"]) == 1
    assert made.audit["target_token_share"] == 3 / sum(len(row.input_ids) for row in made.train)
    assert made.audit["zero_target_rows"] == 0


def test_a_long_text_is_cut_on_the_right_and_counted(tokenizer: Any, write: Any, tmp_path: Path) -> None:
    rows = [{"text": f"{word} " + "long " * 40, "label": word} for word in ("a", "b", "a", "b")]
    made = classified(tokenizer, tmp_path, data=write("a.jsonl", rows), max_length=8)  # below max_new_tokens: no answer
    assert made.audit["truncated"] == 4
    assert all(len(row.input_ids) == 8 and tokenizer.decode(row.input_ids)[0] == row.label for row in made.train)


def test_a_label_that_nothing_taught_is_left_out_and_counted(tokenizer: Any, write: Any, tmp_path: Path) -> None:
    evaluation = "text,category\nx,age_limit\ny,new\nz,newer\n,age_limit\n"
    made = classified(tokenizer, tmp_path, data=write("a.csv", CSV), eval=write("e.csv", evaluation))
    assert [row.item for row in made.eval] == [0]
    assert (made.audit["eval_rows"], made.audit["unknown_eval_labels"]) == (1, 2)
    assert made.audit["dropped"] == {"evaluation: text is empty": 1}
    with pytest.raises(DataError, match=r"none of the evaluation rows has a label that the training rows have"):
        classified(tokenizer, tmp_path, data=write("a.csv", CSV), eval=write("f.csv", "text,category\ny,new\n"))
    with pytest.raises(DataError, match=r"a classification needs two labels, the training rows have 1"):
        classified(tokenizer, tmp_path, data=write("b.csv", "text,label\nx,a\ny,a\nz,a\n"))


def test_numbers_are_labels_and_places_in_a_list_of_names(tokenizer: Any, write: Any, tmp_path: Path) -> None:
    rows = [{"review": f"t{i}", "stars": i % 2} for i in range(6)]
    settings = {"data": write("a.jsonl", rows), "columns": {"text": "review", "label": "stars"}}
    bare = classified(tokenizer, tmp_path, **settings)
    assert bare.labels == ("0", "1")
    named = classified(tokenizer, tmp_path, **settings, labels=("very_bad", "good"))
    assert named.labels == ("very bad", "good")
    for row in (*bare.train, *bare.eval, *named.train, *named.eval):
        assert row.label_id == row.item % 2


def test_the_order_of_labels_stands_in_meta_json(tokenizer: Any, write: Any, tmp_path: Path) -> None:
    made = classified(tokenizer, tmp_path, data=write("a.csv", CSV))
    folder = tmp_path / "cache" / made.key
    assert (
        json.loads((folder / "meta.json").read_text())["labels"] == list(made.labels) == ["age limit", "card arrival"]
    )
    again = classified(tokenizer, tmp_path, data=write("a.csv", CSV))
    assert again == made
    assert [row.label_id for row in again.train] == [row.label_id for row in made.train]
    cache.write_rows(folder / "train.parquet", [])
    assert cache.load(folder) is None


def test_a_template_of_the_users_is_what_the_head_reads(tokenizer: Any, write: Any, tmp_path: Path) -> None:
    made = classified(tokenizer, tmp_path, data=write("a.csv", CSV), template="Film: {text}")
    assert tokenizer.decode(made.train[0].input_ids).startswith("Film: ")
    with pytest.raises(SpecError, match=r"task\.train_on_inputs: a classification scores no tokens"):
        classified(tokenizer, tmp_path, data=write("a.csv", CSV), train_on_inputs=True)
    with pytest.raises(SpecError, match=r"task\.template"):
        classified(tokenizer, tmp_path, data=write("a.csv", CSV), template="Film: {txt}")


def test_rows_without_the_new_fields_keep_their_fingerprint(tmp_path: Path) -> None:
    """Frozen: the figure is that of the first version, which knew neither label_id nor references."""
    rows = [Row(0, [5, 6, 0], [IGNORE, 6, 0], [5], "a", None), Row(3, [7, 8], [IGNORE, 8])]
    old = "79c9208c93a4de369230849bb10abe2e8906c5a2f1622078b2156c825409ac96"
    assert cache.fingerprint(rows, rows[:1]) == old
    numbered = [Row(0, [5, 6, 0], [IGNORE, 6, 0], [5], "a", None, label_id=0), rows[1]]
    assert cache.fingerprint(numbered, rows[:1]) != cache.fingerprint(rows, rows[:1])
    cache.write_rows(tmp_path / "new.parquet", numbered)
    assert cache.read_rows(tmp_path / "new.parquet") == numbered
    whole = pq.read_table(tmp_path / "new.parquet")
    pq.write_table(whole.drop_columns(["label_id", "references"]), tmp_path / "old.parquet")
    assert cache.read_rows(tmp_path / "old.parquet") == rows


def test_keys_of_data_made_before_do_not_change(tokenizer: Any, write: Any, tmp_path: Path) -> None:
    paths = {"data": write("a.csv", CSV)}
    keys = [
        build(Task(**paths, **settings), tokenizer, "tok", tmp_path).key
        for settings in (
            {},
            {"type": "generation", "train_on_inputs": False},
            {"latency_samples": 3},
            {"train_on_inputs": True},
            {"type": "classification"},
        )
    ]
    assert keys[0] == keys[1] == keys[2] == "856fef78218e62275ea00d32e40e5390"
    assert len(set(keys)) == 3


@pytest.mark.parametrize("name", ["banking77", "sst2"])
def test_the_library_classifies_unless_said_otherwise(name: str) -> None:
    task = load_task(Task(name=name))
    assert (task.type, task.template) == ("classification", None)
    answering = load_task(Task(name=name, type="generation"))
    assert answering.template is not None
    assert answering.template.endswith((":", "\nIntent:"))
    assert load_task(Task(name=name, template="It: {text}")).template == "It: {text}"


def test_the_packaged_task_answers_unless_said_otherwise(tokenizer: Any, tmp_path: Path) -> None:
    assert load_task(Task(name="banking77-10")).type == "generation"
    made = build(Task(name="banking77-10", type="classification"), tokenizer, "tok", tmp_path)
    assert (len(made.train), len(made.eval), len(made.labels)) == (1260, 400, 10)
    assert made.labels[0] == "card arrival"  # as task.labels has them
    assert tokenizer.decode(made.train[0].input_ids) == "I am still waiting on my card?"


@pytest.mark.parametrize("kind", ["generation", "classification"])
def test_the_type_survives_a_dump(kind: str) -> None:
    """A dump leaves out what stands at its default, and the library's entry must not put its own in that place."""
    once = load_task(Task(name="banking77", type=kind))
    again = Task.model_validate(tuples(json.loads(json.dumps(once.model_dump(mode="json")))))
    assert load_task(again) == once
    assert load_task(once) == once
    other = "classification" if kind == "generation" else "generation"
    varied = Task.model_validate(tuples({**once.model_dump(mode="json"), "type": other}))
    assert load_task(varied) == load_task(Task(name="banking77", type=other))


def test_banking77_knows_its_labels_however_a_copy_writes_them(tokenizer: Any, write: Any, tmp_path: Path) -> None:
    labels = load_task(Task(name="banking77")).labels or ()
    assert (len(set(labels)), labels[11], labels[53]) == (77, "card_arrival", "reverted_card_payment?")
    written = [
        "refund_not_showing_up",
        "Refund not showing up",
        "reverted_card_payment",
        "Reverted card payment?",
        "11",
        "nothing",
    ]
    rows = [{"text": f"t{i}", "label": label} for i, label in enumerate(written)]
    data = write("a.jsonl", rows)
    made = build(Task(name="banking77", data=data, eval=data), tokenizer, "tok", tmp_path / "cache")
    assert [row.label_id for row in made.train] == [51, 51, 53, 53, 11]
    assert made.audit["dropped"]["label is not one of task.labels"] == 1
    assert len(made.labels) == 77


def test_labels_that_only_case_tells_apart_stay_apart(tokenizer: Any, write: Any, tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": label} for i, label in enumerate(["us", "US", "Us"])]
    data = write("a.jsonl", rows)
    made = classified(tokenizer, tmp_path, data=data, eval=data, labels=("us", "US"))
    assert [row.label_id for row in made.train] == [0, 1]


def test_class_labels_of_the_hub_are_their_names(tokenizer: Any, tmp_path: Path, monkeypatch: Any) -> None:
    import datasets

    def load(name: str, subset: str | None, split: str) -> Any:
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["lost_card", "age_limit", "other"])}
        )
        rows = {"train": [0, 1, 1, 0], "test": [1, -1, 2]}[split]
        return datasets.Dataset.from_dict({"text": [f"t{i}" for i in rows], "label": rows}, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load)
    made = build(Task(name="banking77", labels=None), tokenizer, "tok", tmp_path)
    assert made.labels == ("age limit", "lost card")
    assert [row.label_id for row in made.train] == [1, 0, 0, 1]
    assert [tokenizer.decode(row.input_ids) for row in made.train] == ["t0", "t1", "t1", "t0"]
    assert [row.label for row in made.eval] == ["age limit"]
    assert made.audit["unknown_eval_labels"] == 1  # "other"
    assert made.audit["dropped"] == {"evaluation: label is empty": 1}  # -1: hidden


def test_labels_are_known_without_a_tokenizer(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    file.write_text("text,label\n" + "".join(f"query {i},{'abc'[i % 3]}_x\n" for i in range(30)))
    assert labels_of(Task(data=str(file), type="classification")) == ("a x", "b x", "c x")
    assert len(labels_of(Task(name="banking77"))) == 77
    with pytest.raises(DataError):
        labels_of(Task(data="nobody/such-a-data-set", type="classification"))
