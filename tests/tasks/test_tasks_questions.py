"""SQuAD as training and evaluation data: both forms of the file, all references, contexts that are too long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import make, tokens
from loracle.spec.study import Task
from loracle.tasks.columns import guess_format
from loracle.tasks.dataset import build
from loracle.tasks.formats import Drop, answer_texts
from loracle.tasks.library import load_task
from loracle.tasks.metrics import score_names, scores_of
from loracle.tasks.rows import IGNORE, Row

CONTEXT = "The capital of France is Paris."
FLAT = {
    "id": "q0",
    "title": "France",
    "context": CONTEXT,
    "question": "What is the capital?",
    "answers": {"text": ["Paris", "is Paris", "Paris"], "answer_start": [25, 22, 25]},
}


def nested(*rows: dict[str, Any]) -> dict[str, Any]:
    def entry(row: dict[str, Any]) -> dict[str, Any]:
        pairs = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
        answers = [{"text": text, "answer_start": at} for text, at in pairs]
        return {"context": row["context"], "qas": [{"id": row["id"], "question": row["question"], "answers": answers}]}

    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [entry(row) for row in rows]}]}


def numbered(row: dict[str, Any], count: int = 4) -> list[dict[str, Any]]:
    return [{**row, "id": f"q{i}"} for i in range(count)]


@pytest.mark.parametrize("form", ["nested", "jsonl", "parquet"])
def test_golden(tokenizer: Any, write: Any, tmp_path: Path, form: str) -> None:
    rows = numbered(FLAT)
    if form == "nested":
        data = write("a.json", nested(*rows))
    elif form == "jsonl":
        data = write("a.jsonl", rows)
    else:
        data = str(tmp_path / "a.parquet")
        pq.write_table(pa.Table.from_pylist(rows), data)
    made = build(Task(data=data, eval_fraction=0.5), tokenizer, "tok", tmp_path / "c")
    assert (made.format, made.audit["answers_cut"], made.audit["truncated"]) == ("squad", 0, 0)
    assert sorted(row.item for row in (*made.train, *made.eval)) == [0, 1, 2, 3]
    for row in (*made.train, *made.eval):
        assert tokens(tokenizer, row) == [
            (f"Context: {CONTEXT}\nQuestion: What is the capital?\nAnswer:", False),
            (" Paris<eos>", True),
        ]
        assert row.input_ids[: len(row.prompt_ids or [])] == row.prompt_ids
        assert (row.reference, row.references) == ("Paris", ["Paris", "is Paris"])
    assert build(Task(data=data, eval_fraction=0.5), tokenizer, "tok", tmp_path / "c") == made


def long_rows(before: int, after: int) -> list[dict[str, Any]]:
    context = "far away " * before + "the answer is Paris. " + "and so on " * after
    return numbered(
        {**FLAT, "context": context, "answers": {"text": ["Paris"], "answer_start": [context.index("Paris")]}}
    )


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(("before", "after"), [(0, 80), (80, 0), (40, 40), (79, 1)])
def test_training_keeps_the_context_around_the_answer(
    write: Any, tmp_path: Path, before: int, after: int, bos: bool
) -> None:
    tokenizer = make(bos=bos)
    task = Task(data=write("a.jsonl", long_rows(before, after)), max_length=120, max_new_tokens=16)
    made = build(task, tokenizer, "tok", tmp_path)
    for row in made.train:
        assert len(row.input_ids) == 120
        (text, scored), answer = tokens(tokenizer, row)
        assert (scored, answer) == (False, (" Paris<eos>", True))
        assert "Paris" in text
        assert text.startswith("<bos>Context:" if bos else "Context:")
        assert text.endswith("\nQuestion: What is the capital?\nAnswer:")
    assert made.audit["truncated"] == 4


def test_evaluation_never_looks_at_where_the_answer_is(tokenizer: Any, write: Any, tmp_path: Path) -> None:
    task = Task(
        data=write("a.jsonl", numbered(FLAT)),
        eval=write("e.jsonl", [*long_rows(0, 80)[:1], *long_rows(80, 0)[:2]]),
        max_length=120,
        max_new_tokens=16,
    )
    made = build(task, tokenizer, "tok", tmp_path)
    assert (made.audit["truncated"], made.audit["truncated_prompts"], made.audit["answers_cut"]) == (3, 3, 2)
    for row in made.eval:
        assert row.prompt_ids is not None
        assert len(row.prompt_ids) == 120 - 16
        assert row.input_ids[: len(row.prompt_ids)] == row.prompt_ids
        text = tokenizer.decode(row.prompt_ids)
        assert text.endswith("\nQuestion: What is the capital?\nAnswer:")
        assert text.startswith("Context: the answer is Paris." if row.item == 0 else "Context: far away far")
        assert tokens(tokenizer, row)[-1] == (" Paris<eos>", True)


def test_an_answer_longer_than_what_is_generated_still_fits(tokenizer: Any, write: Any, tmp_path: Path) -> None:
    answer = "one two three four five six seven eight nine ten"
    long = {**FLAT, "context": "far away " * 80 + answer, "answers": {"text": [answer], "answer_start": [720]}}
    task = Task(data=write("a.jsonl", numbered(long)), max_length=120, max_new_tokens=2)
    made = build(task, tokenizer, "tok", tmp_path)
    for row in (*made.train, *made.eval):
        assert tokens(tokenizer, row)[-1] == (f" {answer}<eos>", True)
        assert len(row.input_ids) == 120
    assert made.audit["answers_cut"] == len(made.eval) == 1


def test_a_question_that_fills_the_row_is_cut_as_any_other_row(tokenizer: Any, write: Any, tmp_path: Path) -> None:
    rows = [*numbered(FLAT), {**FLAT, "id": "long", "question": "why " * 60}]
    made = build(
        Task(data=write("a.jsonl", rows), eval=write("e.jsonl", rows), max_length=64), tokenizer, "t", tmp_path
    )
    assert made.audit["zero_target_rows"] == 2  # nothing is left of their answers, in training and in evaluation
    assert [row.item for row in made.train] == [0, 1, 2, 3]


def test_a_template_may_say_it_otherwise(tokenizer: Any, write: Any, tmp_path: Path) -> None:
    rows = numbered({**FLAT, "question": "Who?"})
    for number, (template, prompt) in enumerate(
        {
            "{title}: {question}\n{context} ": f"France: Who?\n{CONTEXT}",
            "{context}\n{question}": f"{CONTEXT}\nWho?",
            "{question}": "Who?",
        }.items()
    ):
        task = Task(data=write("a.jsonl", rows), template=template)
        row = build(task, tokenizer, "tok", tmp_path / str(number)).train[0]
        assert tokens(tokenizer, row) == [(prompt, False), (" Paris<eos>", True)]


def test_all_words_are_scored_with_train_on_inputs(tokenizer: Any, write: Any, tmp_path: Path) -> None:
    task = Task(data=write("a.jsonl", numbered(FLAT)), train_on_inputs=True)
    row = build(task, tokenizer, "tok", tmp_path).eval[0]
    assert row.labels == [IGNORE, *row.input_ids[1:]]
    assert tokenizer.decode(row.prompt_ids or []).endswith("Answer:")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"text": [" Paris", ""], "answer_start": [24, 0]}, [("Paris", 25)]),
        ({"text": ["a", "b"], "answer_start": [3]}, [("a", 3), ("b", None)]),
        ({"text": "a", "answer_start": 3}, [("a", 3)]),
        ([{"text": "a", "answer_start": 3}, {"text": "b"}], [("a", 3), ("b", None)]),
        (["a", 5], [("a", None), ("5", None)]),
        ("a", [("a", None)]),
        ({"text": [], "answer_start": []}, []),
        ({}, []), ([], []), (None, []), ({"text": None}, []),
    ],
)  # fmt: skip
def test_answers_are_read_in_every_form(value: Any, found: Any) -> None:
    assert answer_texts(value) == found


def test_an_answer_that_is_no_text_drops_the_row() -> None:
    with pytest.raises(Drop, match="an answer is a list, not text"):
        answer_texts({"text": [["a"]]})


def test_questions_without_an_answer_are_dropped(tokenizer: Any, write: Any, tmp_path: Path) -> None:
    rows = [*numbered(FLAT), {**FLAT, "answers": {"text": [], "answer_start": []}}, {**FLAT, "context": None}]
    made = build(Task(data=write("a.jsonl", rows)), tokenizer, "tok", tmp_path)
    assert made.audit["dropped"] == {"answers is empty": 1, "context is empty": 1}


def test_the_format_is_guessed_last() -> None:
    assert guess_format(["id", "title", "context", "question", "answers"], {}, "x") == "squad"
    assert guess_format(["context", "question", "answers", "text"], {}, "x") == "text"


def test_scores_are_the_official_ones_over_all_references() -> None:
    row = Row(0, [1], [IGNORE], [1], "the Denver Broncos", references=["the Denver Broncos", "Broncos"])
    assert scores_of("squad", " Broncos.", row, ()) == {"exact_match": 1.0, "f1": 1.0}
    assert scores_of("squad", "Denver", row, ()) == {"exact_match": 0.0, "f1": pytest.approx(2 / 3)}
    assert tuple(scores_of("squad", "", row, ())) == score_names(Task(name="squad", format="squad"))


def test_the_library_has_it() -> None:
    task = load_task(Task(name="squad"))
    assert (task.format, task.type, task.max_new_tokens, task.licence) == ("squad", "generation", 32, "CC BY-SA 4.0")


def test_the_real_file(tokenizer: Any, shared: Path, tmp_path: Path) -> None:
    data = str(shared / "data" / "squad" / "dev-v1.1.reconstructed.json")
    made = build(Task(name="squad", data=data, samples=300), tokenizer, "tok", tmp_path)
    assert (made.audit["rows_read"], len(made.train), len(made.eval)) == (10_570, 270, 30)
    assert made.audit["dropped"] == {}
    for row in made.train:  # all answers of the training rows survive, however long their context
        answer = "".join((row.reference or "").split())
        prompt = row.input_ids[: row.labels.index(next(label for label in row.labels if label != IGNORE))]
        assert answer in "".join(tokenizer.decode(prompt).split())
        assert len(row.input_ids) <= 512


def test_the_hubs_rows(tokenizer: Any, tmp_path: Path, monkeypatch: Any) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda name, subset, split: datasets.Dataset.from_list([FLAT] * 3))
    made = build(Task(name="squad"), tokenizer, "tok", tmp_path)
    assert (len(made.train), len(made.eval), made.format) == (3, 3, "squad")
    assert made.eval[0].references == ["Paris", "is Paris"]
