"""AlpacaEval's win rate and standard error, on made-up verdicts and against the published leaderboards."""

from __future__ import annotations

import csv
import json
import math

import pytest

from loracle.base.errors import DataError
from loracle.tasks.alpaca_eval import read_preferences, win_rate


def annotations(*preferences: object, **named: object) -> list[dict]:
    return [{"generator_2": "mine", "annotator": "judge", "preference": p, **named} for p in preferences]


def written(tmp_path, rows: object, name: str = "annotations.json"):
    path = tmp_path / name
    path.write_text(json.dumps(rows))
    return path


def test_the_formula():
    # wins 1, 0, 1/2, 1/2: mean 1/2, sample variance (1/4 + 1/4) / 3 = 1/6, over 4 verdicts
    assert win_rate([2, 1, 1.5, 0]) == {
        "win_rate": 50.0,
        "standard_error": pytest.approx(100 * math.sqrt(1 / 24), abs=1e-12),
        "n": 4,
    }
    # wins 0.9, 0.2, 0.4: mean 1/2, squares 0.16 + 0.09 + 0.01 = 0.26, variance 0.13
    weighted = win_rate([1.9, 1.2, 1.4])
    assert weighted["win_rate"] == pytest.approx(50.0, abs=1e-12)
    assert weighted["standard_error"] == pytest.approx(100 * math.sqrt(0.13 / 3), abs=1e-12)


def test_all_alike_and_one_alone():
    assert win_rate([0, 1.5, 0]) == {"win_rate": 50.0, "standard_error": 0.0, "n": 3}
    alone = win_rate([2])
    assert (alone["win_rate"], alone["standard_error"], alone["n"]) == (100.0, None, 1)
    assert alone["standard_error_reason"]
    with pytest.raises(DataError, match="no preferences"):
        win_rate([])


def test_nulls_are_dropped_and_draws_are_not(tmp_path):
    path = written(tmp_path, annotations(2, None, 0, 1.5, 1, float("nan"), 1.25))
    assert read_preferences(path) == [2, 0, 1.5, 1, 1.25]
    assert win_rate(read_preferences(path))["n"] == 5


def test_json_lines_and_rows_of_a_preference_alone(tmp_path):
    path = tmp_path / "annotations.jsonl"
    path.write_text('{"preference": 2}\n\n{"preference": null}\n{"preference": 1}\n')
    assert read_preferences(path) == [2, 1]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (annotations(2, 3), ": 1.preference: a number from 1 to 2, 0 or null is needed, this is '3'"),
        (annotations(0.5), ": 0.preference: a number from 1 to 2"),
        (annotations(-1), ": 0.preference: a number from 1 to 2"),
        (annotations(float("inf")), ": 0.preference: a number from 1 to 2"),
        (annotations(2, True), ": 1.preference: a number from 1 to 2"),
        (annotations("2"), ": 0.preference: a number from 1 to 2"),
        ([*annotations(2), {"generator_2": "mine"}], ": 1.preference: is missing"),
        (annotations(None, None), ": no row has a preference"),
        (annotations(2) + annotations(1, generator_2="other"), ": generator_2: holds 2 models (mine, other)"),
        (annotations(2) + annotations(1, annotator="other"), ": annotator: holds 2 judges (judge, other)"),
        ([], "holds no rows"),
        ({"preference": 2}, "a list of objects is needed"),
        ([2, 1], "a row must be a JSON object"),
    ],
)
def test_a_wrong_file_is_one_line_with_its_place(tmp_path, rows, words):
    path = written(tmp_path, rows)
    with pytest.raises(DataError) as caught:
        read_preferences(path)
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_every_published_row_with_annotations(shared):
    """All columns that an annotations file can answer for, in every leaderboard that is there."""
    folder = shared / "data" / "alpaca_eval"
    compared, without_row = set(), set()
    for path in sorted(folder.glob("*/*.annotations.json")):
        model, judge = path.parent.name, path.name.removesuffix(".annotations.json")
        with open(folder / f"{judge}_leaderboard.csv", encoding="utf-8", newline="") as handle:
            row = next((row for row in csv.DictReader(handle) if row[""] == model), None)
        found = win_rate(read_preferences(path))
        if row is None:
            without_row.add((model, judge))
            continue
        compared.add((model, judge))
        assert found["win_rate"] == pytest.approx(float(row["win_rate"]), abs=1e-4)
        assert found["standard_error"] == pytest.approx(float(row["standard_error"]), abs=1e-4)
        assert found["n"] == int(row["n_total"])
    assert compared == {
        ("alpaca-7b", "alpaca_eval_gpt4"),
        ("alpaca-7b", "weighted_alpaca_eval_gpt4_turbo"),
        ("gpt4", "alpaca_eval_gpt4"),
    }
    assert without_row == {("text_davinci_003", "weighted_alpaca_eval_gpt4_turbo")}  # never on that leaderboard
