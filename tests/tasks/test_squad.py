"""SQuAD's own scores: normalisation to the letter, all reference answers, files that are not what they should be."""

from __future__ import annotations

import json

import pytest

from loracle.base.errors import DataError
from loracle.tasks.squad import (
    Question,
    exact_match,
    f1,
    normalise,
    read_predictions,
    read_squad,
    score_predictions,
)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The  cat's, THE\that!", "cats hat"),
        ("a.n. apple", "apple"),  # punctuation goes first: 'an' is an article by then
        ("a-the theatre", "athe theatre"),
        ("U.S.", "us"),
        ("São\u00a0Paulo — the city", "são paulo — city"),  # white space of any kind; only ASCII punctuation goes
        ("the—end", "—end"),
        ("“The” end", "“ ” end"),
        ("ÀÉÎ ẞ", "àéî ß"),
        ("$1,000.50", "100050"),
        ("東京", "東京"),
        ("The", ""),
        ("?!", ""),
        ("", ""),
    ],
)
def test_normalisation(text, plain):
    assert normalise(text) == plain


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "score"),
    [
        ("the Broncos.", ["Denver Broncos", "Broncos"], True, 1.0),
        ("the big cat sat", ["cat", "a big cat"], False, 0.8),  # 2/3 precise and complete against the second
        ("cat cat", ["cat"], False, 2 / 3),  # a word counts as often as it stands there
        ("cat sat", ["sat cat"], False, 1.0),  # order does not matter to F1
        ("dog", ["cat"], False, 0.0),
        ("", ["cat"], False, 0.0),
        ("", ["the"], True, 0.0),  # the official script: equal, and no word in common
        ("The", [""], True, 0.0),
        ("CAFÉ", ["café"], True, 1.0),
    ],
)
def test_one_answer(prediction, answers, exact, score):
    assert exact_match(prediction, answers) is exact
    assert f1(prediction, answers) == pytest.approx(score, abs=1e-12)


def question(*answers: str) -> Question:
    return Question("context", "question", answers)


def test_missing_predictions_score_nothing_and_others_are_ignored():
    questions = {"a": question("cat"), "b": question("big cat"), "c": question("dog"), "d": question("the end")}
    scores = score_predictions(questions, {"a": "The cat", "b": "cat", "c": "", "x": "dog"})
    assert scores == {"exact_match": 25.0, "f1": pytest.approx(100 * (1 + 2 / 3) / 4), "n": 4, "missing": 1}
    assert score_predictions(questions, {}) == {"exact_match": 0.0, "f1": 0.0, "n": 4, "missing": 4}
    with pytest.raises(DataError, match="no questions"):
        score_predictions({}, {"a": "cat"})


def squad(*qas: object) -> dict:
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": "Ein Käse.", "qas": list(qas)}]}]}


def entry(**changes: object) -> dict:
    whole = {"id": "q1", "question": "Was?", "answers": [{"text": "Käse", "answer_start": 4}, {"text": "Ein Käse"}]}
    return {key: value for key, value in {**whole, **changes}.items() if value is not ...}


def test_reading(tmp_path):
    path = tmp_path / "dev.json"
    path.write_text("\ufeff" + json.dumps(squad(entry(), entry(id="q2")), ensure_ascii=False), encoding="utf-8")
    found = read_squad(path)
    assert list(found) == ["q1", "q2"]
    assert found["q1"] == ("Ein Käse.", "Was?", ("Käse", "Ein Käse"))
    path = tmp_path / "predictions"
    path.write_text('{"q1": "", "q2": "\\u6771\\u4eac"}')
    assert read_predictions(path) == {"q1": "", "q2": "東京"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1], ': not a SQuAD file: an object with a list under "data" is needed'),
        ({"data": {}}, "not a SQuAD file"),
        ({"data": []}, ": holds no questions"),
        ({"data": [{"title": "t"}]}, ": data.0.paragraphs: is missing"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, ": data.0.paragraphs.0.context: is missing"),
        ({"data": ["x"]}, ": data.0: an object is needed, this is a string"),
        (squad(entry(id=...)), ": data.0.paragraphs.0.qas.0.id: is missing"),
        (squad(entry(), entry(id=7)), ": data.0.paragraphs.0.qas.1.id: a string is needed, this is a number"),
        (squad(entry(), entry()), ": data.0.paragraphs.0.qas.1.id: 'q1' stands twice in the file"),
        (squad(entry(question=None)), ".qas.0.question: a string is needed, this is null"),
        (squad(entry(answers="Käse")), ".qas.0.answers: a list is needed, this is a string"),
        (squad(entry(answers=[])), ".qas.0.answers: holds no answer"),
        (squad(entry(answers=[{"text": "a"}, {}])), ".qas.0.answers.1.text: is missing"),
    ],
)
def test_a_wrong_data_file_is_one_line_with_its_place(tmp_path, content, words):
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        read_squad(path)
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[]", ": an object of question id and answer is needed, this is a list"),
        (b'{"q1": 3}', ": q1: an answer must be a string, this is a number"),
        (b'{"q1": null}', ": q1: an answer must be a string, this is null"),
        (b'{"q1": "a", "q1": "b"}', ": q1: stands twice in the file"),
        (b'{"q1":\n "a"', ":2: not valid JSON (Expecting ',' delimiter"),
        (b"", ":1: not valid JSON"),
        (b'{"q1": "\xff"}', ": not UTF-8 text"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"q1": ' + b"1" * 5000 + b"}", "a number too long"),
    ],
)
def test_a_wrong_predictions_file_is_one_line_with_its_place(tmp_path, content, words):
    path = tmp_path / "predictions.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_predictions(path)
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_squad(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_predictions(tmp_path)


@pytest.mark.parametrize(
    ("system", "exact", "score", "missing"),
    [("bert_ensemble", 86.2062, 92.1956, 0), ("logistic_regression", 40.1419, 50.9815, 13)],
)
def test_published_systems_get_their_official_scores(shared, system, exact, score, missing):
    questions = read_squad(shared / "data" / "squad" / "dev-v1.1.reconstructed.json")
    predictions = read_predictions(shared / "data" / "squad" / "predictions" / f"{system}_dev_predictions.json")
    scores = score_predictions(questions, predictions)
    assert scores["exact_match"] == pytest.approx(exact, abs=1e-4)
    assert scores["f1"] == pytest.approx(score, abs=1e-4)
    assert (scores["n"], scores["missing"]) == (10_570, missing)
