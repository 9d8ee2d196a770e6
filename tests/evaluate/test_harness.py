"""lm-evaluation-harness in memory and offline, its figures against the same counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from loracle.base.errors import DataError, SpecError
from loracle.evaluate.harness import plain, run_harness
from loracle.models.source import find, load_tokenizer

harness = pytest.importorskip(
    "lm_eval", reason="lm-evaluation-harness is not installed: pip install 'loracle[lm-eval]'"
)

ROWS = [
    ("I lost my card, what now?", ["lost or stolen card", "exchange rate"], 0),
    ("How many euros do I get for a dollar?", ["card arrival", "exchange rate"], 1),
    ("My new card has not come yet.", ["card arrival", "top up failed"], 0),
    ("I cannot add money to my account.", ["exchange rate", "top up failed"], 1),
    ("Someone took my card.", ["lost or stolen card", "card arrival"], 0),
    ("The top up was declined.", ["card arrival", "top up failed"], 1),
]
CHOICE = """
task: intents
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "Query: {{question}}\\nIntent:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 3}
"""
WRITTEN = """
task: intents_written
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "Query: {{question}}\\nIntent:"
doc_to_target: " {{choices[label]}}"
generation_kwargs: {until: ["\\n"], do_sample: false, max_gen_toks: 5}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    """The built-in base as plain Transformers loads it."""
    from transformers import AutoModelForCausalLM

    source = find("gpt2-demo")
    model = AutoModelForCausalLM.from_pretrained(source.resolved, dtype=torch.float32)
    return model.eval(), load_tokenizer(source)


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "intents.yaml").write_text(CHOICE)
    (folder / "written.yaml").write_text(WRITTEN)
    rows = [{"question": q, "choices": c, "label": a} for q, c, a in ROWS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@torch.no_grad()
def log_likelihood(model: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    """Of ``answer`` after ``prompt``, summed over its tokens."""
    context = tokenizer(prompt)["input_ids"]
    ids = tokenizer(prompt + answer)["input_ids"]
    logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logs[i - 1, ids[i]]) for i in range(len(context), len(ids)))


def picked(model: Any, tokenizer: Any) -> list[bool]:
    out = []
    for question, choices, label in ROWS:
        prompt = f"Query: {question}\nIntent:"
        values = [log_likelihood(model, tokenizer, prompt, f" {choice}") for choice in choices]
        out.append(values.index(max(values)) == label)
    return out


def test_multiple_choice_as_counted_by_hand(demo: tuple[Any, Any], tasks: Path) -> None:
    model, tokenizer = demo
    found = run_harness(model, tokenizer, [str(tasks / "intents.yaml")], batch_size=4)
    right = picked(model, tokenizer)
    share = sum(right) / 6
    assert found["results"]["intents"]["acc"] == pytest.approx(share, abs=1e-12)
    assert found["results"]["intents"]["acc_stderr"] == pytest.approx((share * (1 - share) / 5) ** 0.5, abs=1e-9)
    assert found["versions"] == {"intents": 3}
    assert found["samples"] == {"intents": {"original": 6, "effective": 6}}
    assert found["higher_is_better"] == {"intents": {"acc": True}}
    assert found["lm_eval"] == harness.__version__
    assert json.loads(json.dumps(found)) == found


def test_an_adapter_changes_the_answers_as_counted_by_hand(demo: tuple[Any, Any], tasks: Path) -> None:
    """A PEFT model goes in as it is, and its adapter counts."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(find("gpt2-demo").resolved, dtype=torch.float32)
    tuned = get_peft_model(
        base, LoraConfig(r=4, lora_alpha=128, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    ).eval()
    expected = picked(tuned, demo[1])
    found = run_harness(tuned, demo[1], [str(tasks / "intents.yaml")], batch_size=4)
    assert found["results"]["intents"]["acc"] == pytest.approx(sum(expected) / 6, abs=1e-12)
    assert expected != picked(*demo)


@torch.no_grad()
def test_a_folder_of_tasks_and_generation(demo: tuple[Any, Any], tasks: Path) -> None:
    model, tokenizer = demo
    found = run_harness(model, tokenizer, [str(tasks)], batch_size=2, limit=4)
    assert set(found["results"]) == {"intents", "intents_written"}
    assert found["samples"]["intents_written"] == {"original": 6, "effective": 4}
    assert found["settings"] == {"limit": 4, "num_fewshot": None, "batch_size": 2}
    hits = 0
    for question, choices, label in ROWS[:4]:
        ids = tokenizer(f"Query: {question}\nIntent:", return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=5, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        text = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        hits += text.split("\n")[0] == f" {choices[label]}"
    assert found["results"]["intents_written"]["exact_match"] == hits / 4


def test_a_name_from_include_path(demo: tuple[Any, Any], tasks: Path) -> None:
    found = run_harness(*demo, ["intents"], limit=2, num_fewshot=0, include_path=tasks)
    assert found["samples"] == {"intents": {"original": 6, "effective": 2}}


def test_errors_are_one_line(demo: tuple[Any, Any], tasks: Path) -> None:
    with pytest.raises(SpecError, match=r"^--lm-eval: 'hellaswagg' is no task .* did you mean 'hellaswag'\?$"):
        run_harness(*demo, ["hellaswagg"])
    with pytest.raises(SpecError, match=r"^--lm-eval: no such file: nowhere/task\.yaml$"):
        run_harness(*demo, ["nowhere/task.yaml"])
    (tasks / "rows.jsonl").unlink()
    with pytest.raises(DataError, match=r"intents\.yaml: the harness cannot load this task: .*rows\.jsonl"):
        run_harness(*demo, [str(tasks / "intents.yaml")])


def test_plain_figures() -> None:
    figures = {"alias": "x", "acc,none": 0.5, "acc_stderr,none": "N/A", "em,strict": 1.0, "ppl,none": float("inf")}
    assert plain(figures) == {"acc": 0.5, "acc_stderr": None, "em,strict": 1.0, "ppl": None}
