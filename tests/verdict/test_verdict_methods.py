"""Methods side by side, scores that are fractions or no mean of items, and precisions that break the base."""

from __future__ import annotations

import math

import numpy as np
import pytest
from verdict_study import changed, config, only, study

from loracle.verdict import RunScores, decide, paired
from loracle.verdict.confounds import differences
from loracle.verdict.knowledge import broken, knowledge_lost, lost_by
from loracle.verdict.methods import against_lora, loss_change
from loracle.verdict.scope import rank_of

ASK = [{"name": "task_metric", "margin": None, "primary": True, "compare": None}]


def method(name: str, **adapter) -> dict:  # type: ignore[no-untyped-def, type-arg]
    found = config("bf16", 8)
    return found | {"adapter": found["adapter"] | {"method": name, **adapter}}


def test_what_a_method_has_not_is_no_difference() -> None:
    lora = method("lora", rank=16, targets=["q"])
    assert differences(method("full"), lora).changed == ("method",)
    assert differences(method("ia3", targets=["q"]), lora).changed == ("method",)
    assert differences(method("prefix_tuning", options={"num_virtual_tokens": 20}), lora).changed == ("method",)
    assert differences(method("ia3", targets=["k"]), lora).changed == ("method", "targets")
    assert "rank" in differences(method("dora", rank=4, targets=["q"]), lora).changed


def test_options_on_both_sides_follow_from_the_method() -> None:
    left = method("prefix_tuning", options={"num_virtual_tokens": 20})
    right = method("prompt_tuning", options={"num_virtual_tokens": 8})
    assert differences(left, right).changed == ("method",)
    other = method("prefix_tuning", options={"num_virtual_tokens": 8})
    assert differences(left, other).changed == ("num_virtual_tokens",)


def test_a_learning_rate_of_its_own_is_a_difference() -> None:
    full = method("full")
    full["train"] = full["train"] | {"learning_rate": 1e-5}
    assert differences(full, method("lora")).changed == ("method", "learning_rate")


def test_integers_have_blocks_and_no_double_quantization() -> None:
    int4 = config("bf16", 8) | {"precision": "int4", "block_size": 64}
    assert differences(int4, config("bf16", 8)).changed == ("precision",)
    assert differences(int4, config("nf4", 8)).changed == ("precision",)
    assert differences(int4 | {"block_size": 128}, config("nf4", 8)).changed == ("precision", "block_size")


def with_method(name: str, cost: float):  # type: ignore[no-untyped-def]
    """{bf16, nf4} at rank 8 with LoRA, and one more bf16 cell of a method whose loss is exp(cost) times LoRA's."""
    found = study({4: 0.01, 8: 0.01}, seeds=4)
    base = next(c for c in found.plan["cells"] if c["id"] == "bf16-r8")
    cell = dict(base) | {"id": "other", "method": name, "config": method(name), "reference": None}
    records, scores = list(found.records), dict(found.scores)
    rng = np.random.default_rng(5)
    for record in found.records:
        if record["cell"] == "bf16-r8":
            seed = record["seed"]
            seeds = {"init_seed": seed, "order_seed": seed}
            copy = dict(record) | {"id": f"other-s{seed}", "cell": "other", "config": cell["config"] | seeds}
            old = found.scores[str(record["id"])]
            noise = np.exp(cost + rng.normal(0, 0.01, len(old.items)))
            scores[copy["id"]] = RunScores(old.items, old.loss * noise, old.tokens, old.scores)
            records.append(copy)
    plan = dict(found.plan) | {"cells": [*found.plan["cells"], cell]}
    return changed(found, plan=plan, records=records, scores=scores), cell


def test_a_method_is_held_against_lora_of_its_precision_and_rank() -> None:
    found, cell = with_method("dora", -0.03)
    compared = against_lora(found, cell)
    assert compared is not None
    assert compared.reference["id"] == "bf16-r8"
    assert compared.guard.confounds == ()
    change = loss_change(found, compared)
    assert change is not None
    low, high = change.interval() or (math.nan, math.nan)
    assert low < -0.03 < high < 0
    assert against_lora(found, found.cells["bf16-r8"]) is None
    assert against_lora(found, found.cells["nf4-r8"]) is None


def test_without_a_rank_the_largest_lora_is_taken() -> None:
    found, cell = with_method("full", 0.02)
    assert rank_of(cell) is None
    compared = against_lora(found, cell)
    assert compared is not None
    assert compared.reference["id"] == "bf16-r8"


def test_no_similarity_is_asked_of_other_methods() -> None:
    found = study({8: 0.01}, seeds=3, questions=[{"name": "similarity", "margin": None, "primary": True}])
    plan = dict(found.plan) | {"cells": [dict(c) | {"method": "dora"} for c in found.plan["cells"]]}
    assert len(decide(found)) == 1
    assert decide(changed(found, plan=plan)) == []


def with_scores(name: str, arm, reference):  # type: ignore[no-untyped-def]
    """Four seeds; ``arm`` and ``reference`` are scores by item, the same for all seeds."""
    found = study({8: 0.0}, seeds=4, items=len(arm), questions=ASK)
    scores = {
        run: RunScores(
            s.items, s.loss, s.tokens, {name: np.asarray(arm if run.startswith("nf4") else reference, float)}
        )
        for run, s in found.scores.items()
    }
    return changed(found, scores=scores)


def test_fractions_have_students_interval_and_counts_wilsons() -> None:
    rng = np.random.default_rng(2)
    reference = rng.choice([0.0, 0.5, 1.0], 400)
    arm = np.clip(reference - 0.5 * (rng.random(400) < 0.1), 0, 1)
    entry = only(decide(with_scores("f1", arm, reference)), "task_metric")
    plain = paired.crossed(np.tile(arm - reference, (4, 1)))
    assert entry["metric"] == "f1"
    assert entry["interval"] == pytest.approx(plain.interval())
    assert entry["verdict"] == "rejected"
    same = only(decide(with_scores("f1", reference, reference)), "task_metric")
    assert same["interval"] == pytest.approx([-3.84 / 400, 3.84 / 400], rel=0.02)
    assert same["verdict"] == "supported"


def test_macro_f1_rests_on_seeds_alone() -> None:
    found = study({8: 0.0}, seeds=4, questions=ASK)
    drop = {42: 0.03, 43: 0.031, 44: 0.029, 45: 0.03}
    records = [
        dict(r) | {"metrics": {"macro_f1": 0.8 - (drop[r["seed"]] if r["cell"] == "nf4-r8" else 0.0)}}
        for r in found.records
    ]
    scores = {k: RunScores(s.items, s.loss, s.tokens, {}) for k, s in found.scores.items()}
    entry = only(decide(changed(found, records=records, scores=scores)), "task_metric")
    assert (entry["metric"], entry["verdict"], entry["n"]) == ("macro_f1", "rejected", 4)
    assert entry["estimate"] == pytest.approx(-0.03)
    assert "macro F1 by -3.0 points" in entry["statement"]
    assert "over seeds alone" in entry["statement"]
    two = [r for r in records if r["seed"] < 44]
    few = only(decide(changed(found, records=two, scores=scores)), "task_metric")
    assert (few["verdict"], few["interval"]) == ("undecided", None)
    assert "no interval below three seeds" in few["statement"]


def test_seeds_that_agree_exactly_are_no_interval_of_width_zero() -> None:
    with pytest.raises(ValueError, match="no interval"):
        paired.seeds_only(np.zeros(5))


def test_knowledge_lost_by_hand() -> None:
    assert knowledge_lost(4.0, 4.0, 8192) == 0.0
    assert knowledge_lost(math.log(8192), 2.0, 8192) == pytest.approx(1.0)
    assert knowledge_lost(7.546, 2.875, 8192) == pytest.approx(0.7612, abs=1e-4)
    assert knowledge_lost(5.0, 10.0, 8192) is None


def test_a_broken_precision_is_told_and_needs_the_vocabulary() -> None:
    found = study({8: 0.01}, seeds=3)
    loss = {"nf4-r8": 8.0, "bf16-r8": 4.0}
    records = [dict(r) | {"metrics": {"base_eval_loss": loss[r["cell"]]}, "vocab_size": 8192} for r in found.records]
    bad = changed(found, records=records)
    assert broken(bad) == {"nf4-r8": pytest.approx(4 / (math.log(8192) - 4))}
    assert lost_by(bad, bad.cells["bf16-r8"]) is None
    about = [e for e in decide(bad) if e["arm"] == "nf4-r8"]
    assert about
    assert all("nf4: broken on this base before training (lost 80%" in e["statement"] for e in about)
    blind = [{k: v for k, v in r.items() if k != "vocab_size"} for r in records]
    assert broken(changed(found, records=blind)) == {}
    plan = dict(found.plan) | {"cells": [dict(c) | {"vocab_size": 8192} for c in found.plan["cells"]]}
    assert set(broken(changed(found, records=blind, plan=plan))) == {"nf4-r8"}
    heads = [dict(c) | {"config": dict(c["config"]) | {"task": {"type": "classification"}}} for c in plan["cells"]]
    assert broken(changed(found, records=records, plan=plan | {"cells": heads})) == {}
