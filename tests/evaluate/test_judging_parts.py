"""A judge's parts: replies read strictly, orders drawn and undone, the store after a kill, answers from files and runs."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from loracle.base.errors import DataError, StoreError
from loracle.evaluate.judging import prompts
from loracle.evaluate.judging.answers import read_answers
from loracle.evaluate.judging.items import Item, Verdict, key, line, model_first
from loracle.evaluate.judging.scores import Prices, bill, scores
from loracle.evaluate.judging.store import Judgements
from tests.evaluate.judging_stub import shown

JUDGE = {"kind": "endpoint", "model": "m", "seed": 0}


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("A", "A"), (" B\n", "B"), ("**B**", "B"), ('"A".', "A"), ("(A)", "A"), ("<think>B, no…</think>\n\nA", "A"),
        ("I think A is better", None), ("A or B", None), ("AB", None), ("a", None), ("C", None), ("", None),
        ("Answer A", None), ("<think>A", None), ("A\nB", None), ("1", None),
    ],
)  # fmt: skip
def test_letters_are_read_strictly(reply, letter):
    assert prompts.letter(reply) == letter


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ('{"coherence": 4, "relevance": 5}', (4, 5)),
        ('{"relevance": 5, "coherence": 4}', (4, 5)),
        ('```json\n{"coherence": 1, "relevance": 2}\n```', (1, 2)),
        ("4, 5", (4, 5)), ("4 5\n", (4, 5)),
        ("4/5", None), ("4", None), ("4 5 3", None), ("0 5", None), ("6 1", None), ("4.5 5", None), ("45", None),
        ('{"coherence": 4}', None), ('{"coherence": 4, "relevance": "5"}', None), ('{"coherence": true, "relevance": 5}', None),
        ('{"coherence": 4, "relevance": 5, "style": 3}', None), ('{"coherence": 4, "relevance": 9}', None),
        ('{"coherence": 4, "relevance": 4.5}', None), ("[4, 5]", None), ("both are good: 4 5", None), ("[" * 100_000, None),
    ],
)  # fmt: skip
def test_ratings_are_read_strictly(reply, found):
    assert prompts.ratings(reply) == (None if found is None else {"coherence": found[0], "relevance": found[1]})


def test_prompts_show_both_answers_in_the_order_asked_for():
    item = Item(0, "Say hello.", "the model's", "the reference's")
    assert shown(prompts.compare(item, True)[1]["content"]) == ("the model's", "the reference's")
    assert shown(prompts.compare(item, False)[1]["content"]) == ("the reference's", "the model's")
    assert "Say hello." in prompts.rate(Item(0, "Say hello.", "Hello."))[1]["content"]
    again = prompts.again(prompts.compare(item, True), "both")
    assert [m["role"] for m in again] == ["system", "user", "assistant", "user"]
    assert again[-1]["content"] == "Reply with one letter and nothing else: A or B."


def test_orders_are_a_fair_coin_and_the_same_at_every_call():
    drawn = [model_first(0, i) for i in range(4000)]
    assert drawn == [model_first(0, i) for i in range(4000)]
    assert abs(sum(drawn) - 2000) < 4 * 1000**0.5  # four standard deviations
    agree = sum(a == model_first(1, i) for i, a in enumerate(drawn))
    assert abs(agree - 2000) < 4 * 1000**0.5


def test_the_key_follows_all_that_a_verdict_depends_on():
    item = Item(3, "i", "a", "r")
    others = [Item(4, "i", "a", "r"), Item(3, "j", "a", "r"), Item(3, "i", "b", "r"), Item(3, "i", "a", None)]
    keys = {key(one, JUDGE) for one in [item, *others]} | {key(item, {**JUDGE, "seed": 1})}
    assert len(keys) == 6


def stored(path, *items):
    with Judgements(path) as store:
        for item in items:
            store.append(line(item, JUDGE, Verdict([], preference=2.0)))


def test_a_half_written_last_line_is_cut_off(tmp_path):
    path = tmp_path / "judgements.jsonl"
    items = [Item(i, "i", "ä", "r") for i in range(3)]
    stored(path, *items)
    whole = path.read_bytes()
    two = whole[: whole.rindex(b"\n", 0, -1) + 1]
    for cut in range(len(two), len(whole), 9):
        path.write_bytes(whole[:cut])
        with Judgements(path) as store:
            assert len(store.lines) == 2
        assert path.read_bytes() == two
    stored(path, *items)
    assert path.read_bytes() == whole
    path.write_bytes(whole + b"\0\0\0\n")  # a block that a power cut left
    stored(path, *items)
    assert path.read_bytes() == whole


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "judgements.jsonl"
    stored(path, *[Item(i, "i", "a", "r") for i in range(3)])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"{nothing\n" + lines[2])
    with pytest.raises(StoreError, match=r"judgements.jsonl:2: not a verdict"):
        Judgements(path)
    assert path.read_bytes() == lines[0] + b"{nothing\n" + lines[2]


def test_a_verdict_is_kept_once(tmp_path):
    path, item = tmp_path / "judgements.jsonl", Item(0, "i", "a", "r")
    stored(path, item, item)
    stored(path, item)
    assert len(path.read_text().splitlines()) == 1
    path.write_text(path.read_text() * 2)  # two lines of one verdict count as one
    with Judgements(path) as store:
        assert len(store.lines) == 1


def test_cost():
    lines = [{"attempts": 2, "usage": {"prompt_tokens": 100, "completion_tokens": 1}} for _ in range(3)]
    drawn = {"attempts": 0, "usage": None}
    found = bill([*lines, drawn], Prices(2.0, 8.0), "endpoint")
    assert found["usage"] == {"prompt_tokens": 300, "completion_tokens": 3, "requests": 6}
    assert found["cost"] == pytest.approx((300 * 2 + 3 * 8) / 1e6)
    assert "no prices" in bill(lines, Prices(), "endpoint")["cost_reason"]
    unknown = bill([*lines, {"attempts": 1, "usage": None}], Prices(2.0, 8.0), "endpoint")
    assert (unknown["cost"], "1 of 4" in unknown["cost_reason"]) == (None, True)


def rows(*pairs, generator=None):
    return [{"instruction": i, "output": o} | ({"generator": generator} if generator else {}) for i, o in pairs]


@pytest.fixture
def files(tmp_path):
    reference = rows(("one", "r1"), ("two", "r2"), ("three", "r3"), generator="ref")
    (tmp_path / "reference.json").write_text(json.dumps(reference))

    def write(*pairs, **named):
        (tmp_path / "answers.json").write_text(json.dumps(rows(*pairs, **named)))
        return read_answers(tmp_path / "answers.json", tmp_path / "reference.json")

    return write


def test_answers_meet_their_references_by_instruction(files):
    found = files(("three", "a3"), ("one", "a1"), ("four", "a4"), generator="mine")
    assert (found.name, found.reference_name) == ("mine", "ref")
    assert found.items == [Item(0, "one", "a1", "r1"), Item(2, "three", "a3", "r3")]
    assert [note.split(" of ")[0] for note in found.notes] == ["1 answer(s) are to no instruction", "1 instruction(s)"]
    assert files(("one", "a1"), ("two", "a2"), ("three", "a3")).name == "answers"


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([("four", "x")], "no instruction of this file stands in"),
        ([("one", "x"), ("one", "y")], "'one' stands twice"),
        ([("one", None)], "0.output: is missing"),
        ([(1, "x")], "0.instruction: is not a text"),
    ],
)
def test_answers_that_cannot_be_matched(files, pairs, words):
    with pytest.raises(DataError, match=words):
        files(*pairs)


def test_answers_of_two_models_are_nobodys(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows(("i", "o"), generator="x") + rows(("j", "o"), generator="y")))
    with pytest.raises(DataError, match=r"2 models \(x, y\)"):
        read_answers(path, None)


def test_a_runs_predictions(tmp_path):
    reference = tmp_path / "reference.json"
    reference.write_text(json.dumps(rows(("Name  a\nriver.", "Rhine"), ("Count.", "1 2"), ("Sing.", "la"))))
    run = tmp_path / "nf4-r8-s42"
    run.mkdir()
    table = {
        "item": [2, 0, 1],
        "prompt": ["### Sing.\n", "### Name  a\nriver.\n", None],
        "prediction": ["do", "Elbe", None],
    }
    pd.DataFrame(table).to_parquet(run / "predictions.parquet", index=False)
    found = read_answers(run, reference)
    assert found.name == "nf4-r8-s42"
    assert found.items == [Item(2, "Sing.", "do", "la"), Item(0, "Name  a\nriver.", "Elbe", "Rhine")]
    assert found.notes == [f"1 instruction(s) of {reference} have no answer and are left out"]
    assert read_answers(run, None).items[0] == Item(2, "### Sing.\n", "do")
    reference.write_text(json.dumps(rows(("Count.", "1 2"), ("Sing.", "la"), ("Name a river.", "Rhine"))))
    with pytest.raises(DataError, match=r"item 2's prompt does not hold the instruction of row 2"):
        read_answers(run, reference)
    with pytest.raises(DataError, match="not a run's folder"):
        read_answers(tmp_path, None)


def test_scores_without_any_verdict_are_null_with_a_reason(files):
    answers = files(("one", "a1"))
    nothing = scores(answers, JUDGE, [{"preference": None, "attempts": 1, "usage": None}], Prices())
    assert (nothing["win_rate"], nothing["n"], nothing["nulls"], nothing["unfinished"]) == (None, 0, 1, 0)
    assert nothing["reason"]
