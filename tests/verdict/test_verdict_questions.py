from __future__ import annotations

import json

import numpy as np
import pytest
from verdict_study import changed, config, only, study

from loracle.verdict import RunScores, decide, recommendation
from loracle.verdict.entries import KEYS

COST = {2: 0.01, 4: 0.01, 8: 0.01, 16: 0.01}


@pytest.fixture(scope="module")
def small():  # type: ignore[no-untyped-def]
    return study(COST, seeds=4)


@pytest.fixture(scope="module")
def answered(small):  # type: ignore[no-untyped-def]
    return decide(small)


def test_entries_have_the_documented_keys_and_are_json(answered) -> None:  # type: ignore[no-untyped-def]
    assert all(tuple(e) == KEYS for e in answered)
    assert json.loads(json.dumps(answered, allow_nan=False)) == answered
    assert {e["question"] for e in answered} == {"degradation", "gain_kept", "rank_threshold", "rank_enough"}


def test_a_small_cost_is_supported_and_named_real(answered) -> None:  # type: ignore[no-untyped-def]
    entry = only(answered, "degradation", rank=16)
    assert entry["verdict"] == "supported"
    assert entry["difference"] == "worse"
    assert "real, but within the margin" in entry["statement"]
    assert entry["statement"].startswith("nf4 costs +1.")
    assert "eval loss against bf16 at rank 16 (95% interval +" in entry["statement"]
    assert "n = 4 seeds, margin 5%)" in entry["statement"]
    assert entry["margin"] == pytest.approx(np.log(1.05))
    assert entry["n"] == 4
    assert len(entry["records"]) == 8


def test_one_primary_the_rest_holm_adjusted_the_others_exploratory(answered) -> None:  # type: ignore[no-untyped-def]
    degradation = [e for e in answered if e["question"] == "degradation"]
    assert [e["scope"]["rank"] for e in degradation if e["primary"]] == [16]
    assert [e["level"] for e in degradation if e["primary"]] == pytest.approx([0.95])
    rest = [e for e in degradation if not e["primary"]]
    assert all(e["adjusted"] and not e["exploratory"] for e in rest)
    assert sorted(e["level"] for e in rest) == pytest.approx([0.95, 0.975, 1 - 0.05 / 3])
    assert all(e["exploratory"] for e in answered if e["question"] != "degradation")


def test_rank_threshold_words(answered) -> None:  # type: ignore[no-untyped-def]
    entry = only(answered, "rank_threshold")
    assert entry["estimate"] == 2
    assert "r* ≤ 2 (smallest tested)" in entry["statement"]
    assert entry["scope"] == {"precision": "nf4"}


def test_rank_enough_stops_and_says_rank_and_scale_together() -> None:
    found = study(COST, seeds=4, rank_cost={2: 0.3, 4: 0.2, 8: 0.005, 16: 0.0})
    entry = only(decide(found), "rank_enough", precision="bf16")
    assert entry["estimate"] == 8
    assert entry["interval"] == [8, 8]
    assert "r* = 8" in entry["statement"]
    assert "Rank and scale together" in entry["statement"]
    assert "Ranks below 4 were not tested" in entry["statement"]
    assert entry["verdict"] == "supported"
    assert entry["confounds"] == ["alpha/rank"]


def test_a_large_cost_is_rejected_and_a_middling_one_needs_seeds() -> None:
    assert only(decide(study({8: 0.12}, seeds=3)), "degradation")["verdict"] == "rejected"
    entry = only(decide(study({8: 0.045}, seeds=3, seed_sd=0.01, rng=3)), "degradation")
    assert entry["verdict"] == "undecided"
    assert entry["needs"]["text"] in entry["statement"]


def test_two_seeds_are_undecided_and_speak_of_these_adapters_only() -> None:
    entry = only(decide(study({8: 0.01}, seeds=2)), "degradation")
    assert entry["verdict"] == "undecided"
    assert entry["interval"] is None
    assert entry["difference"] is None
    assert entry["estimate"] is not None
    assert "adapters only" in entry["statement"]
    assert entry["needs"] == {"seeds": None, "text": "an interval needs at least 1 further seed"}


def test_a_diverged_run_is_named_and_counts(small) -> None:  # type: ignore[no-untyped-def]
    found = changed(small)
    lost = next(r for r in found.records if r["id"] == "nf4-r8-s43")
    lost |= {"status": "diverged", "reason": "loss not finite at step 9"}
    entry = only(decide(found), "degradation", rank=8)
    assert entry["n"] == 3
    assert entry["verdict"] == "supported"
    assert "1 of 4 seeds left no pair" in entry["statement"]
    assert "seed 43 (arm diverged)" in entry["statement"]
    another = next(r for r in found.records if r["id"] == "bf16-r8-s44")
    another["status"] = "oom"
    entry = only(decide(found), "degradation", rank=8)
    assert (entry["n"], entry["verdict"]) == (2, "undecided")
    assert "seed 44 (reference oom)" in entry["statement"]


def test_no_finished_run_is_undecided_with_a_reason() -> None:
    found = changed(study({8: 0.01}), records=[], scores={})
    for entry in decide(found):
        assert entry["verdict"] == "undecided"
        assert entry["estimate"] is None or entry["question"] == "rank_enough"
    assert "not run" in only(decide(found), "degradation")["statement"]


def test_null_runs_are_not_evidence(small) -> None:  # type: ignore[no-untyped-def]
    found = changed(small)
    extra = dict(found.records[0]) | {"id": "null", "role": "null", "seed": 42, "status": "diverged"}
    assert decide(changed(found, records=[*found.records, extra])) == decide(small)


def test_confounded_arms_get_no_verdict() -> None:
    found = study({8: 0.01}, seeds=3)
    plan = dict(found.plan)
    plan["cells"] = [
        c | ({"config": config("nf4", 8, gradient_checkpointing=True)} if c["reference"] else {}) for c in plan["cells"]
    ]
    entry = only(decide(changed(found, plan=plan)), "degradation")
    assert entry["verdict"] == "confounded"
    assert entry["difference"] is None
    assert entry["confounds"] == ["gradient_checkpointing"]
    bundle = [{"name": "degradation", "margin": None, "primary": True, "compare": {"as": "recipe"}}]
    entry = only(decide(changed(found, plan=plan, questions=bundle)), "degradation")
    assert entry["verdict"] == "supported"
    assert "As recipes" in entry["statement"]
    assert decide(changed(found, plan=plan))[0]["question"] == "degradation"


def test_another_data_order_within_a_pair_is_a_confound() -> None:
    found = study({8: 0.01}, seeds=3)
    for record in found.records:
        if record["cell"] == "nf4-r8":
            record["config"]["order_seed"] += 100  # type: ignore[index]
    entry = only(decide(found), "degradation")
    assert (entry["verdict"], entry["confounds"]) == ("confounded", ["order_seed"])


def test_other_swept_factors_scope_each_comparison() -> None:
    found = study({8: 0.01}, seeds=3)
    plan, records, scores = dict(found.plan), list(found.records), dict(found.scores)
    for cell in found.plan["cells"]:
        reference = f"{cell['reference']}-lr" if cell["reference"] else None
        settings = config(cell["precision"], 8, learning_rate=1e-4)
        plan["cells"] = [*plan["cells"], cell | {"id": f"{cell['id']}-lr", "config": settings, "reference": reference}]
    for record in found.records:
        copy = dict(record) | {"id": f"{record['id']}-lr", "cell": f"{record['cell']}-lr", "config": {}}
        records.append(copy)
        scores[str(copy["id"])] = found.scores[str(record["id"])]
    entries = decide(changed(found, plan=plan, records=records, scores=scores))
    assert only(entries, "degradation", learning_rate=1e-4)["arm"] == "nf4-r8-lr"
    assert only(entries, "degradation", learning_rate=5e-3)["arm"] == "nf4-r8"
    assert "learning_rate 0.0001" in only(entries, "degradation", learning_rate=1e-4)["statement"]


def test_task_metric_uses_generated_items_in_points() -> None:
    ask = [{"name": "task_metric", "margin": 0.01, "primary": True, "compare": None}]
    entry = only(decide(study({8: 0.0}, seeds=3, items=2000, accuracy_loss=0.1, questions=ask)), "task_metric")
    assert entry["metric"] == "label_accuracy"
    assert entry["verdict"] == "rejected"
    assert entry["estimate"] == pytest.approx(-0.1, abs=0.02)
    assert "margin 1 point" in entry["statement"]
    few = only(decide(study({8: 0.0}, seeds=3, items=40, questions=ask)), "task_metric")
    assert few["verdict"] == "undecided"


def test_items_scored_on_other_tokens_are_not_compared() -> None:
    found = study({8: 0.01}, seeds=3)
    scores = dict(found.scores)
    old = scores["nf4-r8-s42"]
    scores["nf4-r8-s42"] = RunScores(old.items, old.loss, old.tokens + 1, old.scores)
    entry = only(decide(changed(found, scores=scores)), "degradation")
    assert entry["verdict"] == "undecided"
    assert "different tokens" in entry["statement"]


def test_item_order_in_a_file_does_not_matter(small) -> None:  # type: ignore[no-untyped-def]
    back = {
        k: RunScores(s.items[::-1], s.loss[::-1], s.tokens[::-1], {n: v[::-1] for n, v in s.scores.items()})
        for k, s in small.scores.items()
    }
    first, second = (
        only(decide(small), "degradation", rank=8),
        only(decide(changed(small, scores=back)), "degradation", rank=8),
    )
    assert first == second


def test_looks_wait_and_then_stand() -> None:
    base = study({8: 0.01}, seeds=4)
    early = changed(base, plan=base.plan | {"looks": [5, 8]})
    entry = only(decide(early), "degradation")
    assert entry["verdict"] == "undecided"
    assert "first planned look is at 5" in entry["statement"]
    first = only(decide(changed(base, plan=base.plan | {"looks": [3, 5, 8]})), "degradation")
    assert (first["n"], first["verdict"]) == (3, "supported")
    assert first["level"] == pytest.approx(1 - 0.1 / 3)
    vague = study({8: 0.05}, seeds=5, seed_sd=0.02, rng=1)
    last = only(decide(changed(vague, plan=vague.plan | {"looks": [3, 5]})), "degradation")
    assert last["needs"] is None
    assert "the answer stands" in last["statement"]


def test_unknown_questions_are_an_error(small) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="no question is called 'quality'"):
        decide(changed(small, questions=[{"name": "quality"}]))


def test_recommendation_takes_the_cheapest_supported_cell(small, answered) -> None:  # type: ignore[no-untyped-def]
    found = recommendation(answered, small)
    assert found["cell"] == "nf4-r2"
    assert found["runner_up"] == "nf4-r4"
    assert found["text"].startswith("Use nf4 at rank 2")
    assert any("r* ≤ 2" in reason for reason in found["why"])


def test_recommendation_keeps_a_rank_that_is_enough() -> None:
    found = study(COST, seeds=4, rank_cost={2: 0.3, 4: 0.2, 8: 0.0, 16: 0.0})
    assert recommendation(decide(found), found)["cell"] == "nf4-r8"


def test_recommendation_falls_back_to_16_bit_and_lists_what_is_undecided() -> None:
    lossy = study({8: 0.12}, seeds=3)
    answer = recommendation(decide(lossy), lossy)
    assert answer["cell"] == "bf16-r8"
    assert "shown to lose more" in answer["text"]
    two = study({8: 0.01}, seeds=2)
    answer = recommendation(decide(two), two)
    assert answer["cell"] == "bf16-r8"
    assert any("nf4 costs" in text for text in answer["undecided"])
    nothing = changed(two, records=[], scores={})
    assert recommendation(decide(nothing), nothing)["cell"] is None
