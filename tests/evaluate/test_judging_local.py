"""A local model as judge: its figures are the model's own log-probabilities, in both orders, and need no reply."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from loracle.base.errors import ModelError
from loracle.evaluate.judging import prompts
from loracle.evaluate.judging.items import Item
from loracle.evaluate.judging.local import LocalJudge, judge_job
from loracle.models.source import find, fingerprint, load_tokenizer
from loracle.store.layout import StudyFolder
from tests.tasks.conftest import CHATML

PAIR = Item(0, "Where is my card?", "It is on its way.", "Cards take a week, please wait a little longer.")


@pytest.fixture(scope="module")
def judge() -> LocalJudge:
    return LocalJudge.load("gpt2-demo", "cpu")


def log_prob(judge: LocalJudge, prompt: str, option: str) -> float:
    """The option's log-probability from one pass over the whole text."""
    start = judge.tokenizer(prompt)["input_ids"]
    tokens = judge.tokenizer(option, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        scores = judge.model(torch.tensor([start + tokens])).logits[0].log_softmax(-1)
    return sum(float(scores[len(start) - 1 + i, token]) for i, token in enumerate(tokens))


def test_the_preference_is_that_of_both_orders(judge):
    verdict, wins = judge(PAIR), []
    for model_is_a, letter in ((False, "B"), (True, "A")):
        text = "\n\n".join(m["content"] for m in prompts.compare(PAIR, model_is_a)) + "\n\nAnswer:"
        a, b = (log_prob(judge, text, f" {x}") for x in "AB")
        wins.append(1 / (1 + math.exp((b if letter == "A" else a) - (a if letter == "A" else b))))
    assert verdict.preference == pytest.approx(1 + sum(wins) / 2, abs=1e-5)
    assert verdict.order == "both"
    assert wins[0] != pytest.approx(wins[1], abs=1e-3)  # the demo model does mind the order


def test_swapped_answers_give_the_opposite(judge):
    swapped = replace(PAIR, answer=PAIR.reference, reference=PAIR.answer)
    assert judge(PAIR).preference + judge(swapped).preference == pytest.approx(3, abs=1e-6)
    assert judge(PAIR).preference != pytest.approx(1.5, abs=1e-6)
    assert judge(replace(PAIR, reference=PAIR.answer)).preference == 1.5


def test_ratings_are_expected_values(judge):
    verdict = judge(Item(0, "Where is my card?", "It is on its way."))
    assert verdict.ratings.keys() == {"coherence", "relevance"}
    for aspect, rating in verdict.ratings.items():
        item = Item(0, "Where is my card?", "It is on its way.")
        text = "\n\n".join(m["content"] for m in prompts.rate(item, (aspect,))) + "\n\nAnswer:"
        weights = [math.exp(log_prob(judge, text, f" {digit}")) for digit in range(1, 6)]
        assert rating == pytest.approx(sum(d * w for d, w in enumerate(weights, 1)) / sum(weights), abs=1e-4)


def test_options_of_several_tokens(judge):
    words = ("card", "transfer money abroad")
    found = judge._log_probs("Query: where is my\nIntent:", words)
    for word in words:
        assert found[word] == pytest.approx(log_prob(judge, "Query: where is my\nIntent:", f" {word}"), abs=1e-4)


def test_a_chat_template_is_used_where_there_is_one(judge):
    tokenizer = load_tokenizer(find("gpt2-demo"))
    tokenizer.chat_template = CHATML
    chatty = LocalJudge(judge.model, tokenizer, {**judge.identity, "template": True})
    verdict = chatty(PAIR)
    assert all(text.startswith("<|im_start|>user\n") for text in verdict.prompt.values())
    assert all(text.endswith("<|im_start|>assistant\n") for text in verdict.prompt.values())
    assert 1 < verdict.preference < 2


def test_a_prompt_that_is_too_long_is_null(judge):
    verdict = judge(replace(PAIR, answer="card " * 600))
    assert verdict.preference is None
    assert "tokens, the model takes 512" in verdict.reason


def test_the_identity_is_the_model_not_its_path(judge):
    assert judge.identity["model"] == "gpt2-demo"
    assert judge.identity["fingerprint"] == fingerprint(find("gpt2-demo"))[0]
    assert not any("/" in str(value) for value in judge.identity.values())


def test_a_job_goes_on_where_it_stopped(tmp_path, judge, monkeypatch):
    monkeypatch.setattr(LocalJudge, "load", classmethod(lambda *_: judge))
    items = [{"item": i, "instruction": f"q{i}", "answer": f"a{i}", "reference": "r"} for i in range(4)]
    job, looks = {"model": "gpt2-demo", "device": "cpu", "items": items}, []

    def stop() -> bool:
        looks.append(0)
        return len(looks) == 3

    first = judge_job(StudyFolder(tmp_path), job, lambda *_, **__: None, stop)
    assert (first["status"], first["reason"]) == ("interrupted", "stopped after 2 of 4 items")
    half = (tmp_path / "judgements.jsonl").read_text()
    assert len(half.splitlines()) == 2
    second = judge_job(StudyFolder(tmp_path), job, lambda *_, **__: None, stop)
    assert second == {"status": "done", "reason": None, "judge": judge.identity}
    whole = (tmp_path / "judgements.jsonl").read_text()
    assert whole.startswith(half)
    assert [json.loads(line)["item"] for line in whole.splitlines()] == [0, 1, 2, 3]


def test_models_that_are_none(tmp_path):
    with pytest.raises(ModelError, match=r"--judge-model: no such folder"):
        LocalJudge.load("./nowhere")
