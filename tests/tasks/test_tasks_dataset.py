from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conftest import CHATML, make, tokens
from loracle.base.errors import DataError, SpecError
from loracle.spec.study import Task
from loracle.tasks import cache, dataset
from loracle.tasks.dataset import build
from loracle.tasks.split import draw, order, split

ROWS = [{"prompt": f"question {i}:", "completion": f" answer {i}"} for i in range(40)]


def test_a_second_build_only_reads(tokenizer: Any, write: Any, tmp_path: Path, monkeypatch: Any) -> None:
    task = Task(data=write("a.jsonl", ROWS), samples=20)
    first = build(task, tokenizer, "tok", tmp_path / "cache")
    assert sorted(p.name for p in (tmp_path / "cache" / first.key).iterdir()) == [
        "eval.parquet",
        "meta.json",
        "train.parquet",
    ]
    monkeypatch.setattr(dataset, "_parse", lambda *_: pytest.fail("read the data again"))
    assert build(task, tokenizer, "tok", tmp_path / "cache") == first


def test_the_key_follows_contents_and_settings_not_paths(tokenizer: Any, write: Any, tmp_path: Path) -> None:
    one = build(Task(data=write("a.jsonl", ROWS)), tokenizer, "tok", tmp_path / "c")
    same = build(Task(data=write("b.jsonl", ROWS), source="elsewhere"), tokenizer, "tok", tmp_path / "c2")
    assert (one.key, one.fingerprint) == (same.key, same.fingerprint)
    keys = {one.key}
    for task, fingerprint in (
        (Task(data=write("a.jsonl", ROWS), split_seed=1), "tok"),
        (Task(data=write("a.jsonl", ROWS), max_length=100), "tok"),
        (Task(data=write("a.jsonl", ROWS)), "other"),
        (Task(data=write("c.jsonl", ROWS[1:])), "tok"),
    ):
        keys.add(build(task, tokenizer, fingerprint, tmp_path / "c").key)
    assert len(keys) == 5


def test_a_damaged_cache_is_made_anew(tokenizer: Any, write: Any, tmp_path: Path) -> None:
    task = Task(data=write("a.jsonl", ROWS))
    first = build(task, tokenizer, "tok", tmp_path)
    (tmp_path / first.key / "train.parquet").write_bytes(b"torn")
    assert build(task, tokenizer, "tok", tmp_path) == first
    cache.write_rows(tmp_path / first.key / "eval.parquet", first.eval[1:])
    assert build(task, tokenizer, "tok", tmp_path) == first
    (tmp_path / first.key / "meta.json").unlink()
    assert build(task, tokenizer, "tok", tmp_path) == first


def test_drawing_is_by_the_seed_alone() -> None:
    assert order(8, 0, 0) == [3, 2, 1, 6, 0, 7, 4, 5]  # frozen: another value means other splits for everyone
    assert draw(range(100), 5, 3, 0) == [20, 28, 74, 76, 89]
    assert set(draw(range(100), 5, 3, 0)) < set(draw(range(100), 20, 3, 0))
    assert draw(range(100), 5, 3, 0) != draw(range(100), 5, 4, 0)
    train, held = split(range(10), 0.2, 0)
    assert len(held) == 2
    assert sorted([*train, *held]) == list(range(10))
    assert [len(part) for part in split(range(2), 0.01, 0)] == [1, 1]
    assert [len(part) for part in split(range(2), 0.99, 0)] == [1, 1]


def test_samples_are_drawn_before_the_split(tokenizer: Any, write: Any, tmp_path: Path) -> None:
    made = build(Task(data=write("a.jsonl", ROWS), samples=20, eval_fraction=0.25), tokenizer, "tok", tmp_path)
    assert (len(made.train), len(made.eval)) == (15, 5)
    assert not {r.item for r in made.train} & {r.item for r in made.eval}
    for row in (*made.train, *made.eval):
        assert row.reference == f"answer {row.item}"


def test_audit_counts_drops_repeats_leaks_and_cuts(tokenizer: Any, write: Any, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        *({"prompt": "p", "completion": "same"} for _ in range(3)),
        {"prompt": "p", "completion": ""},
        {"prompt": None, "completion": "x"},
        {"prompt": "long " * 50, "completion": "never seen"},
        {"prompt": "p", "completion": "long " * 50},
    ]
    evaluation = [{"prompt": "p", "completion": "same"}, {"prompt": "q", "completion": "other"}, {"prompt": "q"}]
    task = Task(data=write("a.jsonl", rows), eval=write("e.jsonl", evaluation), max_length=40, max_new_tokens=8)
    audit = build(task, tokenizer, "tok", tmp_path).audit
    expected = {
        "rows_read": 10,
        "dropped": {"completion is empty": 1, "evaluation: completion is empty": 1, "prompt is empty": 1},
        "duplicates": 2,
        "train_rows": 4,
        "eval_rows": 2,
        "overlap": 1,
        "truncated": 2,
        "zero_target_rows": 1,
        "format": "prompt_completion",
    }
    assert {key: audit[key] for key in expected} == expected
    assert audit["tokens"]["max"] == 40
    assert 0 < audit["target_token_share"] < 1
    assert audit["examples"][0]["tokens"][0] == ["p", 0]
    assert audit["examples"][0]["tokens"][-1] == ["<eos>", 1]


def test_labels_are_those_declared_or_seen_in_training(tokenizer: Any, write: Any, tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": label} for i, label in enumerate(["b_b", "a", "a", "c"])]
    evaluation = [{"text": "x", "label": "a"}, {"text": "y", "label": "new"}]
    paths = {"data": write("a.jsonl", rows), "eval": write("e.jsonl", evaluation)}
    seen = build(Task(**paths), tokenizer, "tok", tmp_path)
    assert seen.labels == ("a", "b b", "c")
    assert (len(seen.eval), seen.audit["unknown_eval_labels"]) == (2, 1)
    declared = build(Task(**paths, labels=("b_b", "a")), tokenizer, "tok", tmp_path)
    assert declared.labels == ("b b", "a")
    assert [row.label for row in declared.train] == ["b b", "a", "a"]
    assert declared.audit["dropped"] == {
        "evaluation: label is not one of task.labels": 1,
        "label is not one of task.labels": 1,
    }


def test_an_evaluation_file_may_name_its_text_column_otherwise(tokenizer: Any, write: Any, tmp_path: Path) -> None:
    task = Task(
        data=write("a.tsv", "label\tsentence\n0\tbad\n1\tgood\n"),
        eval=write("e.tsv", "label\tcontent\n1\tfine\n"),
        columns={"text": "sentence", "label": "label"},
        labels=("negative", "positive"),
    )
    made = build(task, tokenizer, "tok", tmp_path)
    assert [row.label for row in (*made.train, *made.eval)] == ["negative", "positive", "positive"]


def test_alpaca_evals_outputs_are_evaluation_data(tokenizer: Any, write: Any, tmp_path: Path) -> None:
    """No input column, further columns, and some models gave no answer: nothing to score, so those are left out."""
    trained = [{"instruction": f"Say {i}.", "input": "x" if i % 2 else "", "output": "yes"} for i in range(4)]
    answers = [
        {"instruction": "Who?", "output": "Me.", "generator": "gpt4", "dataset": "helpful_base"},
        {"instruction": "What?", "output": "", "generator": "gpt4", "dataset": "vicuna"},
    ]
    task = Task(
        name="alpaca",
        data=write("a.json", trained),
        eval=write("model_outputs.json", answers),
        columns={
            "instruction": "instruction",
            "input": "input",
            "output": "output",
        },  # the library's, for the hub's data
    )
    made = build(task, tokenizer, "tok", tmp_path)
    assert [tokens(tokenizer, row) for row in made.eval] == [
        [("### Instruction:\nWho?\n\n### Response:\n", False), ("Me.<eos>", True)]
    ]
    assert made.audit["dropped"] == {"evaluation: output is empty": 1}


@pytest.mark.parametrize(("model", "rows"), [("alpaca-7b", 805), ("gpt4", 805), ("text_davinci_003", 803)])
def test_the_real_alpaca_eval_files(
    tokenizer: Any, write: Any, shared: Path, tmp_path: Path, model: str, rows: int
) -> None:
    trained = [{"instruction": f"Say {i}.", "input": "", "output": "yes"} for i in range(4)]
    file = shared / "data" / "alpaca_eval" / model / "model_outputs.json"
    task = Task(name="alpaca", data=write("a.json", trained), eval=str(file), max_length=4096)
    audit = build(task, tokenizer, "tok", tmp_path).audit
    assert (audit["rows_read"], audit["eval_rows"]) == (809, rows)


@pytest.mark.parametrize(
    ("rows", "settings", "error", "message"),
    [
        ([{"prompt": "", "completion": "x"}] * 3, {}, DataError, r"a\.jsonl: no rows are left: of 3 read, 3 dropped"),
        (ROWS[:1], {}, DataError, r"only 1 row to use"),
        (
            [{"prompt": "long " * 60, "completion": "x"}] * 4,
            {"max_length": 40},
            DataError,
            r"none of the 3 training rows has a token to learn from, their prompts alone fill task\.max_length",
        ),
        (ROWS, {"max_length": 32}, SpecError, r"task\.max_new_tokens: must be below task\.max_length"),
        (ROWS, {"eval_split": "test"}, SpecError, r"task\.eval_split: is for hub data sets"),
        (ROWS, {"eval": "nowhere.jsonl"}, DataError, r"nowhere\.jsonl: no such file"),
        (ROWS, {"eval": "what is this"}, DataError, r"task\.eval: 'what is this' is neither a file"),
        ([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 3,
         {"chat_template": "tokenizer"}, SpecError, r"task\.chat_template: the base's tokenizer has no chat template"),
    ],
)  # fmt: skip
def test_what_cannot_work_says_why(
    tokenizer: Any, write: Any, tmp_path: Path, rows: Any, settings: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        build(Task(data=write("a.jsonl", rows), **settings), tokenizer, "tok", tmp_path / "c")
    assert not list((tmp_path / "c").glob("*"))


def test_a_cut_template_prompt_keeps_its_bos(write: Any, tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "go " * n}, {"role": "assistant", "content": "b"}]} for n in (9, 99)
    ]
    tokenizer = make(bos=True, chat_template="<bos>" + CHATML)
    task = Task(data=write("a.jsonl", rows[:1] * 2), eval=write("e.jsonl", rows), max_length=64, max_new_tokens=8)
    made = build(task, tokenizer, "tok", tmp_path)
    assert (made.audit["truncated_prompts"], made.audit["zero_target_rows"]) == (0, 1)
    task = task.model_copy(update={"max_length": 128, "max_new_tokens": 100})
    prompts = [row.prompt_ids or [] for row in build(task, tokenizer, "tok", tmp_path).eval]
    assert [len(prompt) for prompt in prompts] == [28]
    assert all(prompt.count(tokenizer.bos_token_id) == 1 == prompt[0] for prompt in prompts)


def test_conversations_that_the_template_refuses_are_dropped(write: Any, tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"messages": turns}] * 6 + [{"messages": [{"role": "system", "content": "s"}, *turns]}] * 6
    made = build(Task(data=write("a.jsonl", rows), eval_fraction=0.4), make(chat_template=template), "tok", tmp_path)
    assert made.audit["dropped"] == {"the chat template refuses the conversation (no system role)": 6}
    assert made.audit["train_rows"] + made.audit["eval_rows"] == 6


def test_the_packaged_task_builds_whole(tokenizer: Any, tmp_path: Path) -> None:
    made = build(Task(name="banking77-10", max_length=512), tokenizer, "tok", tmp_path)
    assert (len(made.train), len(made.eval), len(made.labels)) == (1260, 400, 10)
    assert {row.label for row in made.eval} == set(made.labels)
    assert made.audit["overlap"] == made.audit["unknown_eval_labels"] == made.audit["zero_target_rows"] == 0
