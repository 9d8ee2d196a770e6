"""The confound guard over everything that a report compares, and the documents' own memory comparison."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from verdict_study import cell, changed, only, study

from loracle.verdict import StudyEvidence, decide
from loracle.verdict.compared import comparisons
from loracle.verdict.resources import attribution

MB = 10**6
PUBLISHED = {"lora": 11_632 * MB, "qlora": 3_292 * MB}
SQUARE = {  # measured on one H200: GPT-2 medium, r = 8, c_attn, batch 8 x 512
    ("fp16", False): 10_892 * MB, ("nf4", False): 11_250 * MB, ("fp16", True): 3_330 * MB, ("nf4", True): 3_313 * MB,
}  # fmt: skip
ALL = ("degradation", "task_metric", "rank_threshold", "similarity", "memory", "speed")


def asked(*names: str, compare: Any = None) -> list[dict[str, Any]]:
    return [{"name": n, "margin": None, "primary": i == 0, "compare": compare} for i, n in enumerate(names)]


def probe(of: dict[str, Any], peak: float, **given: Any) -> dict[str, Any]:
    quantized = of["precision"] == "nf4"
    return {
        "id": of["id"], "cell": of["id"], "status": "done", "device": "GB10", "batch_size": 8, "length": 512,
        "storage": "quantized" if quantized else "unquantized", "compute_dtype": of["config"]["compute_dtype"],
        "gradient_checkpointing": of["config"]["train"]["gradient_checkpointing"], "peak_allocated_bytes": peak,
        "ms_per_step": {"median": 1445.0 if quantized else 1002.0, "p10": 990.0, "p90": 1500.0, "n": 20},
    } | given  # fmt: skip


def arm(precision: str, checkpointing: bool, reference: str | None, compute: str) -> dict[str, Any]:
    made = cell(precision, 8, reference, gradient_checkpointing=checkpointing)
    made["config"]["compute_dtype"] = compute
    return made | {"id": f"{precision}-{'on' if checkpointing else 'off'}"}


def published(reference: str | None = "fp16-off") -> StudyEvidence:
    """LoRA in fp16 without checkpointing; QLoRA with bf16 compute, and checkpointing that its helper switched on."""
    cells = [arm("fp16", False, None, "float16"), arm("nf4", True, reference, "bfloat16")]
    probes = [probe(c, p) for c, p in zip(cells, PUBLISHED.values(), strict=True)]
    return changed(
        study({8: 0.0}), plan={"cells": cells, "runs": []}, probes=probes, questions=asked("memory", "speed")
    )


def test_the_published_memory_comparison_gets_no_verdict() -> None:
    entries = decide(published())
    for question in ("memory", "speed"):
        entry = only(entries, question)
        assert (entry["verdict"], entry["difference"]) == ("confounded", None)
        assert {"compute_dtype", "gradient_checkpointing"} == set(entry["confounds"])
        assert "confounded, so no verdict" in entry["statement"]
        assert "compute_dtype and gradient_checkpointing" in entry["statement"]


def test_as_the_plan_makes_it_the_published_pair_has_no_twin_and_is_confounded() -> None:
    found = published(reference=None)
    given = decide(found)
    assert {e["question"] for e in given} == {"memory", "speed"}
    assert {e["verdict"] for e in given} == {"confounded"}
    [pair] = comparisons(found)
    assert pair.guard.confounded
    assert set(pair.differences) == {"precision", "compute_dtype", "gradient_checkpointing"}


def test_the_two_by_two_attributes_the_published_saving() -> None:
    cells = [arm(p, on, "fp16-off" if p == "nf4" else None, "float16") for p, on in SQUARE]
    found = changed(
        study({8: 0.0}),
        plan={"cells": cells, "runs": []},
        probes=[probe(c, peak) for c, peak in zip(cells, SQUARE.values(), strict=True)],
        questions=asked("memory"),
    )
    confounded = next(e for e in decide(found) if e["arm"] == "nf4-on")  # against fp16-off, as published
    assert confounded["verdict"] == "confounded"
    words = "Of 10.9 GB (16-bit, no gradient checkpointing), quantization alone saves -358 MB, checkpointing alone 7.56 GB, both 7.58 GB."
    assert words in confounded["statement"]
    clean = next(e for e in decide(found) if e["arm"] == "nf4-off")
    assert clean["verdict"] == "rejected"
    assert words in clean["statement"]


def test_the_two_by_two_says_what_goes_along_with_quantization() -> None:
    cells = [
        arm(p, on, "fp16-off" if p == "nf4" else None, "bfloat16" if p == "nf4" else "float16") for p, on in SQUARE
    ]
    probes = [probe(c, peak) for c, peak in zip(cells, SQUARE.values(), strict=True)]
    found = changed(study({8: 0.0}), plan={"cells": cells, "runs": []}, probes=probes)
    assert "quantization (precision and compute_dtype together) alone saves" in attribution(
        found, found.cells["nf4-on"], found.cells["fp16-off"]
    )


def test_two_factors_at_once_leave_no_verdict_on_any_question() -> None:
    """Whatever is asked, arms that differ in one more setting are confounded, and their figures decide nothing."""
    found = changed(study({4: 0.0, 8: 0.0}, seeds=4), questions=asked(*ALL))
    pairs = [
        {"a": f"bf16-r8-s{s}", "b": f"nf4-r8-s{s}", "kind": "precision", "rank": 8, "targets": ["c_attn"], "seed": s,
         "layers": [{"layer": 0, "kind": "q", "module": "h.0", "cosine": 0.99}]}
        for s in (42, 43, 44)
    ]  # fmt: skip
    plan = copy.deepcopy(found.plan)
    for c in plan["cells"]:
        if c["precision"] == "nf4":
            c["config"]["train"]["learning_rate"] = 1e-3
    probes = [probe(c, 1e9) for c in plan["cells"]]
    entries = decide(changed(found, plan=plan, similarity={"pairs": pairs}, probes=probes))
    about = [e for e in entries if str(e["arm"]).startswith("nf4") and e["question"] != "rank_enough"]
    assert {e["question"] for e in about} == {*ALL, "gain_kept"}
    for entry in about:
        assert entry["verdict"] == "confounded", entry["question"]
        assert entry["difference"] is None
        assert "learning_rate" in entry["confounds"]
        assert "confounded" in entry["statement"]
        assert not any(word in entry["statement"] for word in (": supported", ": rejected", "undecided"))


def test_a_difference_in_any_seeds_record_counts() -> None:
    found = study({8: 0.0}, seeds=4)
    last = next(r for r in found.records if r["id"] == "nf4-r8-s45")
    last["provenance"] = {"device": "another"}
    next(r for r in found.records if r["id"] == "bf16-r8-s45")["provenance"] = {"device": "cpu"}
    assert only(decide(found), "degradation")["confounds"] == ["device"]


def test_unmeasured_and_confounded_quotes_no_saving() -> None:
    entry = only(decide(changed(published(), probes=[])), "memory")
    assert entry["verdict"] == "confounded"
    assert "Predicted" not in entry["statement"]


@pytest.mark.parametrize("key", ["device", "batch_size", "length", "compute_dtype", "gradient_checkpointing"])
def test_probes_that_differ_are_confounded(key: str) -> None:
    cells = [arm("fp16", False, None, "float16"), arm("nf4", False, "fp16-off", "float16")]
    probes = [probe(cells[0], 10e9), probe(cells[1], 5e9, **{key: "other"})]
    found = changed(
        study({8: 0.0}), plan={"cells": cells, "runs": []}, probes=probes, questions=asked("memory", "speed")
    )
    for entry in decide(found):
        assert (entry["verdict"], entry["confounds"]) == ("confounded", [key])


def test_a_null_pair_that_differs_in_more_than_the_order_is_no_null() -> None:
    found = changed(study({8: 0.0}, seeds=3), questions=asked("similarity"))
    base = next(r for r in found.records if r["id"] == "bf16-r8-s42")
    sound = copy.deepcopy(base) | {"id": "null-1", "role": "null"}
    unsound = copy.deepcopy(sound) | {"id": "null-2"}
    unsound["config"]["train"]["steps"] = 10
    layers = [{"layer": 0, "kind": "q", "module": "h.0", "cosine": 0.9}]
    about = {"rank": 8, "targets": ["c_attn"], "seed": 42, "layers": layers}
    pairs = [{"a": f"bf16-r8-s{s}", "b": f"nf4-r8-s{s}", "kind": "precision", **about} for s in (42, 43, 44)]
    pairs += [{"a": "bf16-r8-s42", "b": b, "kind": "null", **about} for b in ("null-1", "null-2")]
    full = changed(found, records=[*found.records, sound, unsound], similarity={"pairs": pairs})
    entry = only(decide(full), "similarity")
    assert "1 pair of 16-bit runs" in entry["statement"]
    assert "Pairs for the null that also differ in steps are left out." in entry["statement"]
    assert "null-2" not in entry["records"]


def test_every_comparison_lists_its_differences() -> None:
    found = changed(study({4: 0.0, 8: 0.0}), questions=asked(*ALL))
    listed = {(p.what, p.arm["id"], p.reference["id"]): p.differences for p in comparisons(found)}
    assert listed == {
        ("losses, scores, updates, memory, speed", "nf4-r4", "bf16-r4"): ("precision",),
        ("losses, scores, updates, memory, speed", "nf4-r8", "bf16-r8"): ("precision",),
        ("rank against the largest", "bf16-r4", "bf16-r8"): ("rank", "alpha/rank"),
        ("rank against the largest", "nf4-r4", "nf4-r8"): ("rank", "alpha/rank"),
    }
    given = decide(changed(found, similarity={"pairs": []}))
    pairs = {(arm, reference) for _, arm, reference in listed}
    assert {(e["arm"], e["reference"]) for e in given if e["arm"] != e["reference"]} <= pairs


def test_recipes_are_declared_not_found() -> None:
    found = changed(published(), questions=asked("memory", compare={"as": "recipe"}))
    [pair] = [p for p in comparisons(found) if "memory" in p.what]
    assert pair.guard.recipe
    assert not pair.guard.confounded
    assert only(decide(found), "memory")["verdict"] == "supported"


@pytest.mark.parametrize(("bundle", "verdict"), [(None, "confounded"), ("recipe", "supported")])
def test_a_cell_without_a_twin_is_held_against_the_nearest(bundle: str | None, verdict: str) -> None:
    """As a plan has it whose quantized arm alone is checkpointed: no verdict, but on recipes that were declared."""
    whole = study({8: 0.0}, seeds=5)
    cells = copy.deepcopy(list(whole.plan["cells"]))
    for one in cells:
        if one["precision"] == "nf4":
            one["config"]["train"]["gradient_checkpointing"] = True
            one |= {"reference": None}
    records = [dict(record) for record in whole.records]
    for record in records:
        config = next(one["config"] for one in cells if one["id"] == record["cell"])
        record["config"] = config
    found = changed(
        whole, plan=dict(whole.plan) | {"cells": cells}, records=records,
        questions=[{"name": "degradation", "compare": bundle}, {"name": "memory", "compare": bundle}],
    )  # fmt: skip
    entries = decide(found)
    losses = only(entries, "degradation")
    assert (losses["arm"], losses["reference"], losses["verdict"]) == ("nf4-r8", "bf16-r8", verdict)
    assert "gradient_checkpointing" in losses["statement"]
    assert only(entries, "memory")["reference"] == "bf16-r8"
    listed = comparisons(found)
    assert [(c.arm["id"], c.guard.confounded, c.guard.recipe) for c in listed] == [
        ("nf4-r8", bundle is None, bundle is not None)
    ]


def test_nothing_is_held_against_another_base() -> None:
    whole = study({8: 0.0}, seeds=3)
    cells = copy.deepcopy(list(whole.plan["cells"]))
    for one in cells:
        if one["precision"] == "nf4":
            one["config"]["base"] = {"model": "another"}
            one |= {"reference": None}
    found = changed(whole, plan=dict(whole.plan) | {"cells": cells}, questions=[{"name": "degradation"}])
    assert decide(found) == []
