"""Judging through an endpoint that fails in every way: no verdict lost, none counted twice, the key in the header alone."""

from __future__ import annotations

import email.utils
import json
import socket
import time

import pytest

from loracle.base.errors import SpecError
from loracle.evaluate.judging.asking import EndpointJudge
from loracle.evaluate.judging.collect import Stopped
from loracle.evaluate.judging.endpoint import Endpoint, JudgeError, Refused, Unavailable, checked, key_from
from loracle.evaluate.judging.items import Answers, Item, model_first
from loracle.evaluate.judging.scores import Prices
from loracle.evaluate.judging.session import ask_all, write_scores
from loracle.tasks.alpaca_eval import read_preferences, win_rate
from tests.evaluate.judging_stub import KEY, Http, Slow, Torn, longer, serving, shown

ASK = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]


def pairs(n: int) -> Answers:
    """``n`` pairs; in two of three the model's answer is the longer one."""
    items = [Item(i, f"q{i}", f"m{i}" + "x" * (9 if i % 3 else 1), f"r{i}" + "y" * 5) for i in range(n)]
    return Answers("mine", items, "ref")


def quick(stub, **named) -> Endpoint:
    return Endpoint(stub.url, "judge", KEY, **{"timeout_s": 5.0, "backoff_s": 0.01, **named})


def judged(folder, stub, answers, judge=None, **named):
    judge = judge or EndpointJudge(quick(stub))
    problem = ask_all(folder, answers, judge, 4, lambda *_, **__: None)
    return write_scores(folder, answers, judge.identity, Prices(**named)), problem


def lines(folder) -> list[dict]:
    return [json.loads(text) for text in (folder / "judgements.jsonl").read_text().splitlines()]


def chat(stub, **named):
    return quick(stub, **named).chat(ASK, max_tokens=8, seed=3)


FAULTS = {
    "429": Http(429, {"Retry-After": "0"}),
    "500": Http(500),
    "503 without JSON": Http(503, body=b"<html>busy</html>"),
    "torn": Torn(),
    "no JSON": Http(200, body=b'{"choices": [{"message": {"con'),
    "a list": Http(200, body=b"[]"),
    "408": Http(408),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_what_may_pass_is_tried_again(fault):
    with serving(lambda _, before: fault if before < 2 else "A", {"prompt_tokens": 9, "completion_tokens": 1}) as stub:
        reply = chat(stub)
    assert (reply.text, reply.attempts) == ("A", 3)
    assert reply.usage == {"prompt_tokens": 9, "completion_tokens": 1}
    _, headers, body = stub.asked[0]
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert body == {"model": "judge", "messages": ASK, "temperature": 0, "max_tokens": 8, "seed": 3}


def test_time_outs_are_tried_again():
    with serving(lambda _, before: Slow(1.0) if before == 0 else "B") as stub:
        assert chat(stub, timeout_s=0.2).text == "B"
        stub.asked.clear()
        with pytest.raises(Unavailable, match=r"no reply within 0.2 s \(1 tries\)"):
            chat(stub, timeout_s=0.2, tries=1)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(form):
    after = "1" if form == "seconds" else email.utils.formatdate(time.time() + 2, usegmt=True)
    with serving(lambda _, before: Http(429, {"Retry-After": after}) if before == 0 else "A") as stub:
        began = time.monotonic()
        assert chat(stub).text == "A"
        assert time.monotonic() - began > 0.9


def test_a_wait_of_hours_is_not_waited_for():
    with serving(lambda *_: Http(429, {"Retry-After": "7200"})) as stub:
        with pytest.raises(Unavailable, match=r"HTTP 429: as told; it asks to wait 7,200 s"):
            chat(stub)
        assert len(stub.asked) == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, Refused), (413, Refused), (401, JudgeError), (403, JudgeError), (404, JudgeError), (402, JudgeError)],
)
def test_other_refusals_are_not_tried_again(status, error):
    with serving(lambda *_: Http(status)) as stub:
        with pytest.raises(error, match=f"HTTP {status}: as told"):
            chat(stub)
        assert len(stub.asked) == 1


def test_without_a_key_a_401_says_how_to_give_one():
    with serving(lambda *_: Http(401)) as stub, pytest.raises(JudgeError, match="--judge-key-env"):
        Endpoint(stub.url, "judge").chat(ASK, max_tokens=8, seed=0)
    assert "Authorization" not in stub.asked[0][1]


def test_the_key_follows_no_redirect_and_no_error_message():
    with serving(lambda *_: "A") as other:
        moved = Http(307, {"Location": f"{other.url}/chat/completions"}, b"")
        with serving(lambda *_: moved) as stub, pytest.raises(JudgeError, match="redirects"):
            chat(stub)
        assert other.asked == []
    echo = Http(404, body=json.dumps({"error": {"message": f"no model for {KEY}"}}).encode())
    with serving(lambda *_: echo) as stub, pytest.raises(JudgeError) as raised:
        chat(stub)
    assert "no model for [key]" in str(raised.value)
    with serving(lambda *_: f"your key is {KEY}") as stub:
        assert chat(stub).text == "your key is [key]"


def test_an_address_without_a_server():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = Endpoint(f"http://127.0.0.1:{port}/v1", "judge", backoff_s=0.001)
    with pytest.raises(Unavailable, match=r"the connection failed \(Connection refused\) \(6 tries\)"):
        endpoint.chat(ASK, max_tokens=1, seed=0)


def test_addresses():
    assert checked("https://host/v1/") == checked("https://host/v1/chat/completions") == "https://host/v1"
    for url in ("host/v1", "file:///etc/passwd", "https://", "http://h:x/v1", "http://a b/v1", "http://[::1/v1"):
        with pytest.raises(SpecError, match="not an address"):
            checked(url)
    for url in ("https://user:secret@host/v1", "https://host/v1?key=secret", "https://host/v1#secret"):
        with pytest.raises(SpecError, match="must hold no user") as raised:
            checked(url)
        assert "secret" not in str(raised.value)
    assert Endpoint("http://far.example/v1", "m", KEY).in_the_open
    assert not Endpoint("http://far.example/v1", "m").in_the_open
    assert not Endpoint("http://localhost:8000/v1", "m", KEY).in_the_open
    assert not Endpoint("https://far.example/v1", "m", KEY).in_the_open


def test_keys(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", f"  {KEY}\n")
    assert key_from("JUDGE_KEY", True) == KEY
    monkeypatch.setenv("JUDGE_KEY", "two words\nhere")
    with pytest.raises(SpecError, match="JUDGE_KEY") as raised:
        key_from("JUDGE_KEY", True)
    assert "words" not in str(raised.value)
    monkeypatch.delenv("JUDGE_KEY")
    assert key_from("JUDGE_KEY", False) is None
    with pytest.raises(SpecError, match="JUDGE_KEY is not set"):
        key_from("JUDGE_KEY", True)


def test_the_longer_answer_wins_whatever_the_order(tmp_path):
    answers = pairs(30)
    with serving(longer) as stub:
        found, problem = judged(tmp_path, stub, answers)
    assert problem is None
    assert {model_first(0, i) for i in range(30)} == {True, False}
    assert found["win_rate"] == pytest.approx(100 * 20 / 30)
    assert (found["n"], found["nulls"], found["unfinished"]) == (30, 0, 0)
    for line in lines(tmp_path):
        a, b = shown(line["prompt"][1]["content"])
        first, second = ("m", "r") if line["order"] == "model first" else ("r", "m")
        assert (a[0], b[0]) == (first, second)
    written = json.loads((tmp_path / "annotations.json").read_text())
    assert [(row["output_1"][0], row["output_2"][0]) for row in written] == [("r", "m")] * 30
    assert win_rate(read_preferences(tmp_path / "annotations.json"))["win_rate"] == found["win_rate"]
    assert {(r["generator_1"], r["generator_2"], r["annotator"]) for r in written} == {
        ("ref", "mine", "loracle-endpoint-judge")
    }


def test_a_judge_that_always_says_a_gives_about_half(tmp_path):
    with serving(lambda *_: "A") as stub:
        found, _ = judged(tmp_path, stub, pairs(200))
    assert found["win_rate"] == pytest.approx(100 * sum(model_first(0, i) for i in range(200)) / 200)
    assert abs(found["win_rate"] - 50) < 3 * found["standard_error"]


def test_failures_of_all_kinds_lose_and_double_nothing(tmp_path):
    answers, faults = pairs(40), list(FAULTS.values())

    def answer(question: str, before: int):
        number = int(shown(question)[0].strip("xy")[1:])
        if before < number % 4:
            return faults[(number + before) % len(faults)]
        return "I think A is better." if number == 7 else "" if number == 8 else longer(question)

    with serving(answer, {"prompt_tokens": 100, "completion_tokens": 2}) as stub:
        found, problem = judged(tmp_path, stub, answers, prompt=1.0, completion=10.0)
        requests = len(stub.asked)
        again, _ = judged(tmp_path, stub, answers, prompt=1.0, completion=10.0)
        assert len(stub.asked) == requests  # finished work is not asked for again
    assert problem is None
    assert (found["n"], found["nulls"]) == (38, 2)
    wins = sum(i % 3 != 0 for i in range(40) if i not in (7, 8))
    assert found["win_rate"] == pytest.approx(100 * wins / 38)
    kept = {line["item"]: line for line in lines(tmp_path)}
    assert len(lines(tmp_path)) == len(kept) == 40
    assert kept[7]["reason"] == "the reply is no verdict (asked 3 times)"
    assert (kept[7]["reply"], kept[7]["rejected"]) == ("I think A is better.", ["I think A is better."] * 2)
    assert kept[8]["reason"] == "the reply has no text (finish_reason 'stop') (asked 3 times)"
    assert sum(line["attempts"] for line in kept.values()) == requests == found["usage"]["requests"]
    assert found["usage"]["prompt_tokens"] == 100 * (38 + 2 * 3)
    assert found["cost"] == pytest.approx((100 * 44 * 1.0 + 2 * 44 * 10.0) / 1e6)
    assert again == found


def test_a_malformed_reply_is_asked_about_again_with_another_seed(tmp_path):
    replies = [Http(200, body=b'{"choices": []}'), "well, A", "B"]
    with serving(lambda _, before: replies[before]) as stub:
        found, _ = judged(tmp_path, stub, pairs(1))
    assert found["n"] == 1
    assert [body["seed"] for _, _, body in stub.asked] == [0, 1, 2]
    assert [len(body["messages"]) for _, _, body in stub.asked] == [2, 2, 4]
    assert lines(tmp_path)[0]["rejected"] == ["(the reply has no choices)", "well, A"]
    assert found["cost"] is None


def test_identical_answers_are_a_draw_that_nobody_is_asked_about(tmp_path):
    answers = Answers("mine", [Item(0, "q", "same", "same"), Item(1, "q", "long one", "short")], "ref")
    with serving(longer) as stub:
        found, _ = judged(tmp_path, stub, answers)
        assert len(stub.asked) == 1
    assert (found["win_rate"], found["n"]) == (75.0, 2)


def test_a_refused_question_is_null_where_others_are_answered(tmp_path):
    with serving(lambda q, _: Http(400) if "q3\n" in q else longer(q)) as stub:
        found, problem = judged(tmp_path, stub, pairs(12))
    assert (found["n"], found["nulls"], problem) == (11, 1, None)
    assert next(line for line in lines(tmp_path) if line["item"] == 3)["reason"] == "HTTP 400: as told"


def test_an_endpoint_that_refuses_all_writes_no_verdict(tmp_path):
    for n in (1, 12):
        with (
            serving(lambda *_: Http(400)) as stub,
            pytest.raises(JudgeError, match=r"refuses every question: HTTP 400"),
        ):
            judged(tmp_path, stub, pairs(n))
        assert lines(tmp_path) == []


def test_a_wrong_key_stops_at_once(tmp_path):
    with serving(lambda *_: Http(401)) as stub, pytest.raises(JudgeError, match="HTTP 401"):
        judged(tmp_path, stub, pairs(50))
    assert len(stub.asked) <= 12
    assert lines(tmp_path) == []


def test_an_endpoint_that_goes_down_is_taken_up_where_it_stopped(tmp_path):
    answers = pairs(40)
    with serving(lambda q, _: Http(503) if int(shown(q)[0].strip("xy")[1:]) >= 20 else longer(q)) as stub:
        with pytest.raises(Stopped, match=r"does not answer: HTTP 503.*the same command goes on") as raised:
            judged(tmp_path, stub, answers)
        assert raised.value.exit_code == 3
        assert sorted(line["item"] for line in lines(tmp_path)) == list(range(20))
        stub.answer = longer
        stub.asked.clear()
        found, _ = judged(tmp_path, stub, answers)
        assert len(stub.asked) == 20
    assert found["n"] == 40
    assert sorted(line["item"] for line in lines(tmp_path)) == list(range(40))


def test_one_item_without_a_reply_is_unfinished_not_null(tmp_path):
    with serving(lambda q, _: Http(500) if "q3\n" in q else longer(q)) as stub:
        judge = EndpointJudge(quick(stub, tries=2))
        found, problem = judged(tmp_path, stub, pairs(9), judge)
        assert (found["n"], found["nulls"], found["unfinished"]) == (8, 0, 1)
        assert problem == "HTTP 500: as told (2 tries)"
        stub.answer = longer
        found, problem = judged(tmp_path, stub, pairs(9))
    assert (found["n"], found["unfinished"], problem) == (9, 0, None)


def test_only_changed_answers_are_judged_again(tmp_path):
    answers = pairs(10)
    changed = Answers("mine", [Item(0, "q0", "m0" + "x" * 50, "r0yyyyy"), *answers.items[1:]], "ref")
    with serving(longer) as stub:
        before, _ = judged(tmp_path, stub, answers)
        after, _ = judged(tmp_path, stub, changed)
        assert len(stub.asked) == 11
    assert after["win_rate"] == pytest.approx(before["win_rate"] + 10)
    assert after["n"] == 10


def test_ratings(tmp_path):
    answers = Answers("mine", [Item(i, f"q{i}", f"a{i}") for i in range(3)])
    said = {"a0": '{"coherence": 4, "relevance": 5}', "a1": "2 5", "a2": "fine"}
    with serving(lambda q, _: said[q.partition("<answer>\n")[2][:2]]) as stub:
        found, _ = judged(tmp_path, stub, answers)
    assert found["coherence"] == {"mean": 3.0, "standard_error": pytest.approx(1.0), "n": 2}
    assert found["relevance"] == {"mean": 5.0, "standard_error": 0.0, "n": 2}
    assert found["nulls"] == 1
    assert not (tmp_path / "annotations.json").exists()
    assert lines(tmp_path)[0].keys() >= {"ratings", "prompt", "reply", "judge", "answers"}
