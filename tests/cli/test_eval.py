"""``loracle eval`` as a user meets it: figures on standard output, one line for each thing that is wrong."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SQUAD = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": "The cat sat.",
                    "qas": [
                        {"id": "1", "question": "Who?", "answers": [{"text": "the cat"}, {"text": "cat"}]},
                        {"id": "2", "question": "What?", "answers": [{"text": "sat down"}]},
                        {"id": "3", "question": "Why?", "answers": [{"text": "tired"}]},
                    ],
                }
            ]
        }
    ]
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    (tmp_path / "dev.json").write_text(json.dumps(SQUAD))
    (tmp_path / "predictions.json").write_text(json.dumps({"1": "A cat!", "2": "sat", "9": "else"}))
    (tmp_path / "annotations.json").write_text(json.dumps([{"preference": p} for p in (2, 1, 1.5, 0, None)]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


SQUAD_FILES = ("--data", "dev.json", "--predictions", "predictions.json")


def test_squad(home, call):
    code, out, err = call("--task", "squad", *SQUAD_FILES, "--json")
    assert code == 0
    assert json.loads(out) == {
        "exact_match": pytest.approx(100 / 3),
        "f1": pytest.approx(100 * (1 + 2 / 3) / 3),
        "n": 3,
        "missing": 1,
    }
    assert err.splitlines() == [
        "warning: 1 question(s) have no prediction and score 0",
        "warning: 1 prediction(s) are for no question of dev.json and are left out",
    ]
    assert call("--task", "squad", *SQUAD_FILES)[1] == "exact match 33.3333%, F1 55.5556%, 3 questions\n"


def test_alpaca_eval(home, call):
    code, out, err = call("--task", "alpaca_eval", "--annotations", "annotations.json", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"win_rate": 50.0, "standard_error": pytest.approx(20.412414523), "n": 4}
    out = call("--task", "alpaca_eval", "--annotations", "annotations.json")[1]
    assert out == "win rate 50.0000%, standard error 20.4124%, 4 verdict(s)\n"


def test_one_verdict_has_no_standard_error(home, call):
    (home / "one.jsonl").write_text('{"preference": 2}\n')
    found = json.loads(call("--task", "alpaca_eval", "--annotations", "one.jsonl", "--json")[1])
    assert found["standard_error"] is None
    assert found["standard_error_reason"]
    out = call("--task", "alpaca_eval", "--annotations", "one.jsonl")[1]
    assert out == "win rate 100.0000%, one verdict alone has no standard error, 1 verdict(s)\n"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "Missing option '--task'"),
        (["--task", "squd"], 2, "did you mean 'squad'?"),
        (["--task", "mmlu"], 2, "known: alpaca_eval, squad"),
        (["--task", "squad"], 2, "--task squad needs --data and --predictions"),
        (["--task", "squad", "--data", "dev.json"], 2, "--task squad needs --predictions too"),
        (
            ["--task", "squad", *SQUAD_FILES, "--annotations", "annotations.json"],
            2,
            "--annotations: not for --task squad",
        ),
        (["--task", "alpaca_eval"], 2, "--task alpaca_eval needs --annotations"),
        (["--task", "alpaca_eval", "--data", "dev.json"], 2, "--data: not for --task alpaca_eval"),
        (["--task", "squad", "--wrong"], 2, "--wrong"),
        (["--task", "squad", "--data", "none.json", "--predictions", "predictions.json"], 1, "none.json: no such file"),
        (["--task", "squad", "--data", "predictions.json", "--predictions", "dev.json"], 1, "not a SQuAD file"),
        (["--task", "squad", "--data", "dev.json", "--predictions", "annotations.json"], 1, "this is a list"),
        (["--task", "alpaca_eval", "--annotations", "annotation.json"], 1, "did you mean 'annotations.json'"),
        (["--task", "alpaca_eval", "--annotations", "predictions.json"], 1, "a list of objects is needed"),
        (["--task", "alpaca_eval", "--annotations", "."], 1, "is a folder"),
    ],
)
def test_errors_are_one_line(home, refused, arguments, code, words):
    refused(arguments, code, words)


def test_eval_loads_nothing_heavy(home):
    code = """
import sys
from loracle.cli import main
for arguments in (['--task', 'squad', '--data', 'dev.json', '--predictions', 'predictions.json'],
                  ['--task', 'alpaca_eval', '--annotations', 'annotations.json']):
    try:
        main(['eval', *arguments])
    except SystemExit as ended:
        assert not ended.code
heavy = {'torch', 'transformers', 'peft', 'bitsandbytes', 'datasets', 'numpy', 'scipy', 'pandas', 'pyarrow'}
print('HEAVY', sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout


def test_published_figures(shared, call):
    data = shared / "data"
    for system, exact, score in (("bert_ensemble", 86.2062, 92.1956), ("logistic_regression", 40.1419, 50.9815)):
        predictions = data / "squad" / "predictions" / f"{system}_dev_predictions.json"
        dev = data / "squad" / "dev-v1.1.reconstructed.json"
        found = json.loads(call("--task", "squad", "--data", str(dev), "--predictions", str(predictions), "--json")[1])
        assert found["exact_match"] == pytest.approx(exact, abs=1e-4)
        assert found["f1"] == pytest.approx(score, abs=1e-4)
        assert found["n"] == 10_570
    annotations = data / "alpaca_eval" / "alpaca-7b" / "alpaca_eval_gpt4.annotations.json"
    found = json.loads(call("--task", "alpaca_eval", "--annotations", str(annotations), "--json")[1])
    assert found["win_rate"] == pytest.approx(26.4596, abs=1e-4)
    assert found["n"] == 805
