"""``loracle eval --judge`` as a user meets it: figures, files, resuming after a kill, and a key that stays where it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.evaluate.judging_stub import KEY, Http, longer, serving

N = 24


def write_json(path: Path, rows: list[dict]) -> None:
    path.write_text(json.dumps(rows))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Answers of which the model's is the longer in two of three."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    mine = [
        {"instruction": f"q{i}", "output": f"m{i}" + "x" * (9 if i % 3 else 1), "generator": "mine"} for i in range(N)
    ]
    ref = [{"instruction": f"q{i}", "output": f"r{i}yyyyy", "generator": "ref"} for i in range(N)]
    write_json(tmp_path / "answers.json", mine)
    write_json(tmp_path / "ref.json", ref)
    return tmp_path


def alpaca(stub, *more: str) -> list[str]:
    pair = ["answers.json", "--task", "alpaca_eval", "--reference", "ref.json"]
    return [*pair, "--judge", "endpoint", "--judge-url", stub.url, "--judge-model", "judge", *more]


def everything_under(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_win_rate(home, call, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    usage = {"prompt_tokens": 1000, "completion_tokens": 1}
    with serving(longer, usage) as stub:
        code, out, err = call(*alpaca(stub, "--price-in", "2", "--price-out", "8", "--json"))
        assert {headers["Authorization"] for _, headers, _ in stub.asked} == {f"Bearer {KEY}"}
        found = json.loads(out)
        text = call(*alpaca(stub))[1]
        assert len(stub.asked) == N
    assert code == 0
    assert found["win_rate"] == pytest.approx(200 / 3)
    assert (found["n"], found["nulls"], found["unfinished"]) == (N, 0, 0)
    assert found["cost"] == pytest.approx(N * (1000 * 2 + 8) / 1e6)
    assert found["judge"] == {
        "kind": "endpoint", "model": "judge", "url": stub.url, "seed": 0, "temperature": 0, "max_tokens": 64, "prompt": 1,
    }  # fmt: skip
    folder = Path(found["folder"])
    assert folder.parent == Path("judged")
    assert sorted(path.name for path in folder.iterdir()) == [
        "annotations.json", "judge.lock", "judgements.jsonl", "scores.json",
    ]  # fmt: skip
    assert f"win rate 66.6667%, standard error {found['standard_error']:.4f}%, {N} verdict(s)\n" in text
    assert text.splitlines()[-1] == str(folder / "scores.json")
    plain = json.loads(call("--task", "alpaca_eval", "--annotations", str(folder / "annotations.json"), "--json")[1])
    assert plain == {name: found[name] for name in ("win_rate", "standard_error", "n")}
    assert KEY.encode() not in everything_under(home)
    assert KEY not in out + err + text


def test_ratings_of_a_run(home, call):
    (home / "run").mkdir()
    table = {"item": [0, 1], "prompt": ["User: hi", "User: bye"], "prediction": ["hello", "so long"]}
    pd.DataFrame(table).to_parquet(home / "run" / "predictions.parquet", index=False)
    with serving(lambda q, _: "4 5" if "hello" in q else "2 5") as stub:
        asked = [
            "--task",
            "chat",
            "--judge",
            "endpoint",
            "--judge-url",
            stub.url,
            "--judge-model",
            "j",
            "--out",
            "kept",
        ]
        code, out, _ = call("run", *asked, "--json")
        text = call("run", *asked)[1]
    assert code == 0
    found = json.loads(out)
    assert found["coherence"] == {"mean": 3.0, "standard_error": pytest.approx(1.0), "n": 2}
    assert found["relevance"]["mean"] == 5.0
    assert found["cost"] is None
    assert "coherence 3.0000 of 5, standard error 1.0000, 2 verdict(s)\n" in text


def test_killed_in_the_middle_and_taken_up(home, call):
    """SIGKILL while verdicts come in: what was written is not asked for again, and nothing is missing or double."""
    store = home / "kept" / "judgements.jsonl"

    def slowly(question: str, before: int) -> str:
        time.sleep(0.1)
        return longer(question)

    with serving(slowly) as stub:
        arguments = alpaca(stub, "--out", "kept", "--concurrency", "2", "--judge-key-env", "JUDGE_KEY")
        command = [sys.executable, "-m", "loracle", "eval", *arguments]
        process = subprocess.Popen(command, env={**os.environ, "JUDGE_KEY": KEY}, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while not store.exists() or store.read_bytes().count(b"\n") < 6:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(0.3)  # requests under way come to their end
        kept = [json.loads(line) for line in store.read_text().splitlines() if line.endswith("}")]
        assert 6 <= len(kept) < N
        with open(store, "ab") as file:
            file.write(b'{"key": "half of a li')
        stub.asked.clear()
        os.environ["JUDGE_KEY"] = KEY
        try:
            code, out, err = call(*arguments, "--json")
        finally:
            del os.environ["JUDGE_KEY"]
        assert len(stub.asked) == N - len(kept)
    found = json.loads(out)
    assert (code, found["n"]) == (0, N)
    assert found["win_rate"] == pytest.approx(200 / 3)
    items = [json.loads(line)["item"] for line in store.read_text().splitlines()]
    assert sorted(items) == list(range(N))
    assert KEY.encode() not in everything_under(home)
    assert KEY not in out + err


def test_two_at_once_are_refused(home, call):
    from loracle.store.claims import claim

    with serving(longer) as stub, claim(home / "kept" / "judge.lock", "a test"):
        code, _, err = call(*alpaca(stub, "--out", "kept"))
    assert code == 1
    assert "kept is in use by process" in err
    assert stub.asked == []


def test_items_without_a_reply_are_said(home, call, monkeypatch):
    monkeypatch.setattr("loracle.evaluate.judging.endpoint.BACKOFF_S", 0.0)
    with serving(lambda q, _: Http(429, {"Retry-After": "9999"}) if "q5\n" in q else longer(q)) as stub:
        code, out, err = call(*alpaca(stub, "--json"))
    assert code == 3
    assert json.loads(out)["unfinished"] == 1
    assert "1 item(s) have no verdict (HTTP 429: as told; it asks to wait 9,999 s): the same command asks again" in err


def test_a_local_model(home, call):
    write_json(home / "few.json", json.loads((home / "answers.json").read_text())[:3])
    asked = ["few.json", "--task", "alpaca_eval", "--reference", "ref.json", "--judge", "local"]
    code, out, err = call(*asked, "--judge-model", "gpt2-demo", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["n"], found["judge"]["kind"], found["cost"]) == (3, "local", None)
    assert 0 < found["win_rate"] < 100
    assert "21 instruction(s) of ref.json have no answer and are left out" in err
    assert all(
        1 < row["preference"] < 2 for row in json.loads((Path(found["folder"]) / "annotations.json").read_text())
    )


ENDPOINT = ["--judge", "endpoint", "--judge-url", "http://127.0.0.1:9/v1", "--judge-model", "m"]
PAIR = ["answers.json", "--task", "alpaca_eval", "--reference", "ref.json"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--task", "chat"], 2, "--task chat: needs --judge"),
        (["answers.json", "--task", "alpaca_eval"], 2, "needs --judge"),
        (["--task", "alpaca_eval", "--annotations", "ref.json", "--judge-url", "http://h/v1"], 2, "--judge-url: needs --judge"),
        ([*PAIR, "--judge", "lokal"], 2, "did you mean 'local'?"),
        ([*PAIR, "--judge", "endpoint"], 2, "--judge endpoint needs --judge-url and --judge-model"),
        ([*PAIR, "--judge", "local"], 2, "--judge local needs --judge-model"),
        ([*PAIR, "--judge", "local", "--judge-model", "m", "--judge-url", "u"], 2, "--judge-url: not for --judge local"),
        ([*PAIR, *ENDPOINT, "--price-in", "1"], 2, "--price-in and --price-out are needed together"),
        ([*PAIR, *ENDPOINT, "--annotations", "ref.json"], 2, "--annotations: not with --judge"),
        ([*PAIR, *ENDPOINT, "--judge-key-env", "NO_SUCH_KEY"], 2, "NO_SUCH_KEY is not set"),
        ([*PAIR, *ENDPOINT, "--concurrency", "0"], 2, "--concurrency"),
        (["--task", "alpaca_eval", "--reference", "ref.json", *ENDPOINT], 2, "--judge needs the answers"),
        (["answers.json", "--task", "alpaca_eval", *ENDPOINT], 2, "needs --reference"),
        (["answers.json", "--task", "squad", *ENDPOINT], 2, "'squad' is not a task for a judge"),
        (["answers.json", "--task", "chat", "--reference", "ref.json", *ENDPOINT], 2, "--reference: not for --task chat"),
        (["answer.json", *PAIR[1:], *ENDPOINT], 1, "did you mean 'answers.json'"),
        ([".", *PAIR[1:], *ENDPOINT], 1, "not a run's folder"),
    ],
)  # fmt: skip
def test_errors_are_one_line(home, refused, arguments, code, words):
    refused(arguments, code, words)
    assert not (home / "judged").exists()


def test_judging_through_an_endpoint_loads_no_torch(home):
    code = """
import sys
from loracle.cli import main
try:
    main(['eval', *sys.argv[1:]])
except SystemExit as ended:
    assert not ended.code
print('HEAVY', sorted({'torch', 'transformers', 'peft', 'bitsandbytes', 'datasets'} & set(sys.modules)))
"""
    with serving(longer) as stub:
        command = [sys.executable, "-c", code, *alpaca(stub)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout


def test_the_real_alpaca_eval(shared, home, call):
    """805 answers of alpaca-7b against text_davinci_003, judged by length."""
    data = shared / "data" / "alpaca_eval"
    mine, ref = (data / name / "model_outputs.json" for name in ("alpaca-7b", "text_davinci_003"))
    rows = [(a["output"], b["output"]) for a, b in zip(*(json.loads(f.read_text()) for f in (mine, ref)), strict=True)]
    with serving(longer) as stub:
        asked = ["--reference", str(ref), "--judge", "endpoint", "--judge-url", stub.url, "--judge-model", "j"]
        code, out, _ = call(str(mine), "--task", "alpaca_eval", *asked, "--concurrency", "4", "--json")
        questions = len(stub.asked)
    found = json.loads(out)
    assert (code, found["n"], found["nulls"]) == (0, 805, 0)
    assert questions == sum(a != b for a, b in rows)
    untied = [(a, b) for a, b in rows if len(a) != len(b)]
    wins = sum(len(a) > len(b) for a, b in untied) + sum(a == b for a, b in rows) / 2
    ties = len(rows) - len(untied) - sum(a == b for a, b in rows)
    assert wins <= found["win_rate"] * 8.05 + 1e-6 <= wins + ties + 2e-6
    written = json.loads((Path(found["folder"]) / "annotations.json").read_text())
    assert [(row["output_2"], row["output_1"]) for row in written] == rows
    assert {row["generator_2"] for row in written} == {"alpaca-7b"}
