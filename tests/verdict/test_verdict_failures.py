"""Failure modes: each from records that show it, none in a clean study, and a reason where it could not be checked."""

from __future__ import annotations

import math
from typing import Any

import pytest
from verdict_study import changed, study

from loracle.verdict import StudyEvidence, decide
from loracle.verdict.failures import FOUND, NOT_CHECKED, NOT_FOUND, Finding, failure_modes

AUDIT = {
    "train_rows": 900, "eval_rows": 100, "overlap": 0, "truncated": 3, "zero_target_rows": 0, "unknown_eval_labels": 0,
    "labels": ["a", "b", "c"],
}  # fmt: skip
MODES = (
    "rank too small", "extreme layer sensitivity", "dataset mismatch", "divergence", "head lost on reload",
    "data too short or overlapping", "confounded arms",
)  # fmt: skip


def modes(found: StudyEvidence) -> dict[str, Finding]:
    return {f.mode.name: f for f in failure_modes(found, decide(found))}


def swept(worst: float | None) -> dict[str, Any]:
    known = [0.01, 0.012, 0.008, 0.011, 0.009, worst]
    units = [{"unit": "matrix", "module": f"h.{i}.c_proj", "delta_loss": value} for i, value in enumerate(known)]
    return {"sweeps": [{"base": "gpt2-demo", "codec": "nf4", "units": units}]}


def clean(cost: dict[int, float] | None = None, **audit: Any) -> StudyEvidence:
    """A study without any fault, everything checked."""
    found = study(cost or {4: 0.0, 8: 0.0}, seeds=4)
    for record in found.records:
        record |= {"train_loss": 1.8, "reload": {"passed": True}, "audit": AUDIT | audit}
    return changed(found, plan=found.plan | {"data": {"alpaca": AUDIT | audit}}, sensitivity=swept(0.013))


def test_a_clean_study_shows_none() -> None:
    found = modes(clean())
    assert tuple(found) == MODES
    assert {f.state for f in found.values()} == {NOT_FOUND}
    assert "0.0130 nats" in found["extreme layer sensitivity"].symptom


def test_every_mode_names_a_cause_and_a_mitigation() -> None:
    assert all(f.mode.cause and f.mode.mitigation and f.symptom for f in modes(clean()).values())


def test_what_was_not_recorded_is_not_checked_and_says_why() -> None:
    bare = changed(study({8: 0.0}), records=[], plan={"cells": [], "runs": []}, questions=[])
    found = modes(bare)
    assert {f.state for f in found.values()} == {NOT_CHECKED}
    assert "question sensitivity" in found["extreme layer sensitivity"].symptom
    assert found["divergence"].symptom == "no run has ended"


def test_rank_too_small() -> None:
    found = modes(changed(clean(), questions=[{"name": "rank_threshold", "margin": None, "primary": True}]))
    assert found["rank too small"].state == NOT_FOUND
    low = changed(study({4: 0.0, 8: 0.0}, seeds=4, rank_cost={4: 0.2}))
    shown = modes(low)["rank too small"]
    assert shown.state == FOUND
    assert "Rank 4: +22" in shown.symptom
    assert "bf16-r4-s42" in shown.records
    few = modes(study({4: 0.0, 8: 0.0}, seeds=2))["rank too small"]
    assert (few.state, few.symptom) == (NOT_CHECKED, "no comparison of ranks is decided")


def test_extreme_layer_sensitivity() -> None:
    shown = modes(changed(clean(), sensitivity=swept(0.632)))["extreme layer sensitivity"]
    assert shown.state == FOUND
    assert "h.5.c_proj +0.6320 nats per token by itself; the median matrix +0.0105" in shown.symptom
    assert "not finite" in modes(changed(clean(), sensitivity=swept(None)))["extreme layer sensitivity"].symptom
    assert modes(changed(clean(), sensitivity=swept(0.05)))["extreme layer sensitivity"].state == NOT_FOUND


def test_a_base_that_is_sensitive_everywhere_has_no_extreme_layer() -> None:
    units = [{"unit": "matrix", "module": f"h.{i}", "delta_loss": 0.2 + 0.01 * i} for i in range(8)]
    found = changed(clean(), sensitivity={"sweeps": [{"base": "b", "codec": "int2", "units": units}]})
    assert modes(found)["extreme layer sensitivity"].state == NOT_FOUND


def test_dataset_mismatch_by_losses_and_by_labels() -> None:
    found = clean()
    for record in found.records:
        if record["cell"] == "bf16-r8":
            record["eval_loss"] = 4.4  # the untrained base has 4.0
    shown = modes(found)["dataset mismatch"]
    assert shown.state == FOUND
    assert shown.symptom.startswith("bf16-r8: training loss 1.8000, evaluation loss 4.4000, untrained base 4.0000")
    assert len(shown.records) == 4
    labels = modes(clean(unknown_eval_labels=7))["dataset mismatch"]
    assert "7 evaluation rows of alpaca have labels that training has not." in labels.symptom


def test_a_run_that_learned_nothing_at_all_is_no_mismatch() -> None:
    found = clean()
    for record in found.records:
        record |= {"eval_loss": 4.1, "train_loss": 4.2}
    assert modes(found)["dataset mismatch"].state == NOT_FOUND


def test_divergence() -> None:
    found = clean()
    found.records[0].update(status="diverged", reason="loss not finite at step 17")
    shown = modes(found)["divergence"]
    assert (shown.state, shown.records) == (FOUND, ("bf16-r4-s42",))
    assert "1 of 16 runs diverged (bf16-r4-s42: loss not finite at step 17)" in shown.symptom


def test_head_lost_on_reload() -> None:
    found = clean()
    reason = "reload: the saved adapter gives 4.155000 nats, off by 3.1e+00"
    found.records[3].update(status="failed", reason=reason, reload={"passed": False})
    shown = modes(found)["head lost on reload"]
    assert (shown.state, shown.records) == (FOUND, (found.records[3]["id"],))
    assert "4.155" in shown.symptom


def test_the_published_f1_beside_a_loss_of_guessing_is_caught() -> None:
    found = clean(labels=[f"label {i}" for i in range(77)])
    found.records[0].update(eval_loss=4.155)
    found.records[0]["metrics"]["accuracy"] = 0.91
    shown = modes(found)["head lost on reload"]
    assert shown.state == FOUND
    assert f"evaluation loss 4.155, near ln 77 = {math.log(77):.3f}, beside an accuracy of 0.91" in shown.symptom
    found.records[0].update(eval_loss=0.4)
    assert modes(found)["head lost on reload"].state == NOT_FOUND


@pytest.mark.parametrize(
    ("audit", "words"),
    [
        ({"overlap": 4}, "4 of 100 evaluation rows also are training rows"),
        ({"train_rows": 60}, "60 training rows, below 100"),
        ({"eval_rows": 12}, "12 evaluation rows, below 30"),
        ({"truncated": 400}, "400 of 1000 rows were cut (40.0%)"),
        ({"zero_target_rows": 80}, "80 rows had nothing left to score"),
    ],
)
def test_data_too_short_or_overlapping(audit: dict[str, int], words: str) -> None:
    shown = modes(clean(**audit))["data too short or overlapping"]
    assert (shown.state, shown.records) == (FOUND, ("data alpaca",))
    assert words in shown.symptom


def test_confounded_arms() -> None:
    found = clean()
    for record in found.records:
        if record["cell"] == "nf4-r8":
            record["config"]["compute_dtype"] = "float16"
    shown = modes(found)["confounded arms"]
    assert shown.state == FOUND
    assert "nf4-r8 against bf16-r8: precision and compute_dtype" in shown.symptom
