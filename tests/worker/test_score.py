"""The evaluate job's parts: intervals over items, and what a model must bring to be scored."""

from __future__ import annotations

import math

import numpy as np
import pytest

from loracle.evaluate.intervals import DRAWS, f1_of, item_interval, mean_of, perplexity_of, ratio_of
from loracle.evaluate.target import method_of, with_adapter
from loracle.spec.methods import METHODS
from loracle.spec.study import Task
from loracle.store.files import write_json


def test_the_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    (low, high), why = item_interval(400, mean_of(values))
    error = values.std(ddof=1) / math.sqrt(400)
    assert why is None
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    assert item_interval(400, mean_of(values)) == ((low, high), None)


def test_intervals_cover():
    """The mean of 60 items of known mean is inside as often as a percentile bootstrap's 95% should be: 100 draws."""
    generator = np.random.default_rng(2)
    inside = 0
    for _ in range(100):
        found, _ = item_interval(60, mean_of(generator.normal(1.0, 1.0, 60)))
        inside += found[0] <= 1.0 <= found[1]
    assert 88 <= inside <= 99
    assert DRAWS == 2000


def test_the_loss_is_a_ratio_and_its_perplexity_goes_with_it():
    sums, tokens = np.array([1.0, 9.0, 2.0, 4.0]), np.array([1, 3, 1, 4])
    assert ratio_of(sums, tokens)(np.array([0, 1])) == pytest.approx(10 / 4)
    (low, high), _ = item_interval(4, ratio_of(sums, tokens))
    (less, more), _ = item_interval(4, perplexity_of(sums, tokens))
    assert (less, more) == (pytest.approx(math.exp(low)), pytest.approx(math.exp(high)))
    assert perplexity_of(np.array([1e6]), np.array([1]))(np.array([0])) == math.inf


@pytest.mark.parametrize("weighted", [False, True])
def test_f1_is_that_of_the_record(weighted):
    from loracle.tasks.metrics import classification_scores

    generator = np.random.default_rng(3)
    true, predicted = generator.integers(0, 6, 80), generator.integers(0, 5, 80)
    known = classification_scores(predicted.tolist(), true.tolist(), 7)
    figure = f1_of(predicted, true, 7, weighted)(np.arange(80))
    assert figure == pytest.approx(known["weighted_f1" if weighted else "macro_f1"])


@pytest.mark.parametrize(
    ("values", "words"),
    [([0.5], "one item"), ([0.0, 0.0, 0.0], "every item scores alike"), ([1.0, math.inf], "not finite")],
)
def test_no_interval_has_a_reason(values, words):
    found, why = item_interval(len(values), mean_of(np.array(values)))
    assert found is None
    assert words in str(why)


def test_the_method_of_an_adapter(tmp_path):
    for kind, method in (("LORA", "lora"), ("PREFIX_TUNING", "prefix_tuning"), ("IA3", "ia3"), ("XLORA", "xlora")):
        write_json(tmp_path / "adapter_config.json", {"peft_type": kind})
        assert method_of(tmp_path) == method
    assert "xlora" not in METHODS


def test_only_safetensors_are_read(tmp_path):
    from loracle.base.errors import ModelError

    write_json(tmp_path / "adapter_config.json", {"peft_type": "LORA"})
    (tmp_path / "adapter_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        with_adapter(None, tmp_path, None)


def payload(task: Task, **settings):
    from loracle.spec.study import Base, Cell

    cell = Cell(base=Base(model="gpt2-demo"), task=task, precision="fp32")
    known = {"adapter": None, "tokenizer": None, "data": None, "fingerprint": None, "samples": None, "harness": None}
    return (
        {"cell": cell.model_dump(mode="json"), "device": "cpu", "model": "m", "predictions": False} | known | settings
    )


def test_a_task_without_a_head_is_refused(tmp_path):
    from loracle.base.errors import SpecError
    from loracle.worker.score import ScoreJob

    (tmp_path / "rows.csv").write_text("text,label\na,x\nb,y\n")
    task = Task(data=str(tmp_path / "rows.csv"), eval=str(tmp_path / "rows.csv"), type="classification", max_length=64)
    with pytest.raises(SpecError, match="no classification head"):
        ScoreJob(tmp_path, payload(task), lambda *a, **k: None).run()


def test_a_signal_ends_the_job_at_once(tmp_path):
    from loracle.worker.score import score_job

    class Stopped:
        def now(self):
            raise SystemExit(143)

    with pytest.raises(SystemExit):
        score_job(tmp_path, {}, lambda *a, **k: None, Stopped())


def test_a_rigged_fingerprint_is_a_note(tmp_path):
    from loracle.worker.score import ScoreJob

    task = Task(data="none")
    assert ScoreJob(tmp_path, payload(task), lambda *a, **k: None).notes == []
    [note] = ScoreJob(tmp_path, payload(task, fingerprint="0" * 64), lambda *a, **k: None).notes
    assert "not the base that the run was trained on" in note
