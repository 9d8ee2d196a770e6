from __future__ import annotations

import math
from typing import Any

import pytest
from verdict_study import cell, changed, only, study

from loracle.verdict import decide
from loracle.verdict.resources import attribution


def _probe(name: str, peak: float | None, storage: str = "true", **given: Any) -> dict[str, Any]:
    steps = {"median": 64.0, "p10": 63.0, "p90": 65.0, "n": 50}
    return {
        "id": name, "cell": name, "status": "done", "device": "NVIDIA H200", "storage": storage, "batch_size": 8,
        "length": 512, "gradient_checkpointing": False, "peak_allocated_bytes": peak, "ms_per_step": steps,
    } | given  # fmt: skip


def _ask(probes: list[dict[str, Any]], compare: Any = None) -> list[dict[str, Any]]:
    questions = [{"name": n, "margin": None, "primary": False, "compare": compare} for n in ("memory", "speed")]
    return decide(changed(study({8: 0.0}), probes=probes, questions=questions))


def test_unprobed_is_undecided_with_the_predicted_bytes() -> None:
    entries = _ask([])
    memory = only(entries, "memory")
    assert (memory["verdict"], memory["estimate"]) == ("undecided", None)
    assert "not probed" in memory["statement"]
    assert "Predicted, not measured: 308 MB against 1.01 GB" in memory["statement"]
    assert only(entries, "speed")["verdict"] == "undecided"


def test_unmeasured_gives_the_probes_reason() -> None:
    entries = _ask([_probe("nf4-r8", None, peak_allocated_bytes_reason="no GPU"), _probe("bf16-r8", None)])
    assert "no GPU" in only(entries, "memory")["statement"]


def test_measured_figures_name_their_storage() -> None:
    slow = {"median": 90.0, "p10": 88.0, "p90": 92.0, "n": 50}
    entries = _ask([_probe("nf4-r8", 5e9, "quantized", ms_per_step=slow), _probe("bf16-r8", 10e9)])
    memory, speed = only(entries, "memory"), only(entries, "speed")
    assert memory["verdict"] == "supported"
    assert memory["estimate"] == pytest.approx(math.log(0.5))
    assert "quantized storage" in memory["statement"]
    assert speed["verdict"] == "rejected"
    assert speed["difference"] == "worse"
    assert speed["interval"][0] < speed["estimate"] < speed["interval"][1]


def test_the_published_saving_is_confounded() -> None:
    probes = [_probe("nf4-r8", 3.292e9, "quantized", gradient_checkpointing=True), _probe("bf16-r8", 11.632e9)]
    for entry in _ask(probes):
        assert entry["verdict"] == "confounded"
        assert "gradient_checkpointing" in entry["statement"]
    assert only(_ask(probes, {"as": "recipe"}), "memory")["verdict"] == "supported"


def test_dequantized_storage_answers_nothing_about_qlora() -> None:
    entries = _ask([_probe("nf4-r8", 12e9, "dequantized"), _probe("bf16-r8", 10e9)])
    assert only(entries, "memory")["verdict"] == "undecided"
    assert "dequantized storage only" in only(entries, "memory")["statement"]


def test_what_does_not_fit_is_a_result() -> None:
    entries = _ask([_probe("nf4-r8", 5e9, "quantized"), _probe("bf16-r8", None, status="oom")])
    assert only(entries, "memory")["verdict"] == "supported"
    assert "bf16 does not fit" in only(entries, "memory")["statement"]
    assert only(_ask([_probe("bf16-r8", None, status="oom")]), "memory")["verdict"] == "undecided"


def test_attribution_of_the_two_by_two() -> None:
    cells = [
        cell("bf16", 8, None), cell("nf4", 8, "bf16-r8"),
        cell("bf16", 8, None, gradient_checkpointing=True) | {"id": "bf16-gc"},
        cell("nf4", 8, "bf16-gc", gradient_checkpointing=True) | {"id": "nf4-gc"},
    ]  # fmt: skip
    peaks = {"bf16-r8": 10.892e9, "nf4-r8": 11.3e9, "bf16-gc": 3.33e9, "nf4-gc": 3.313e9}
    found = changed(
        study({8: 0.0}), plan={"cells": cells, "runs": []}, probes=[_probe(k, v, "quantized") for k, v in peaks.items()]
    )
    text = attribution(found, cells[1], cells[0])
    assert text == attribution(found, cells[3], cells[2])
    assert "quantization alone saves -408 MB" in text
    assert "checkpointing alone 7.56 GB" in text
