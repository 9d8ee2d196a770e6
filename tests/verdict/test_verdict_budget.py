"""Choosing within a memory budget: synthetic studies with known truth, probes and forecasts."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
from verdict_study import changed, study

from loracle.verdict import StudyEvidence, decide, noninferiority, recommendation
from loracle.verdict.budget import Forecasts, Prefer, Wish
from loracle.verdict.choice import choose
from loracle.verdict.grounds import grounds

GB = 10**9
COST = {4: 0.12, 8: 0.01}
RANK_COST = {4: 0.002}


def _probe(cell: str, peak: float | None, ms: float, **given: Any) -> dict[str, Any]:
    steps = {"median": ms, "p10": 0.99 * ms, "p90": 1.01 * ms, "n": 20}
    return {
        "id": cell, "cell": cell, "status": "done", "device": "NVIDIA H200", "ms_per_step": steps,
        "storage": "quantized" if cell.startswith("nf4") else "unquantized", "peak_allocated_bytes": peak,
    } | given  # fmt: skip


PROBES = [
    _probe("bf16-r4", 9.0 * GB, 60.0), _probe("bf16-r8", 9.2 * GB, 64.0),
    _probe("nf4-r4", 2.9 * GB, 90.0), _probe("nf4-r8", 3.1 * GB, 95.0),
]  # fmt: skip


def _wish(size: float, prefer: Prefer = "speed", margin: float = 0.05, **fits: Any) -> Wish:
    forecasts = Forecasts(fits, "jobs/forecast/record.json") if fits else Forecasts(reason="no base here")
    return Wish(int(size * GB), f"{size:g}GB", margin, prefer, forecasts)


def _advise(found: StudyEvidence, wish: Wish) -> dict[str, Any]:
    return recommendation(decide(found), found, wish)


def _place(found: StudyEvidence, wish: Wish) -> dict[str, Any]:
    [place] = _advise(found, wish)["places"]
    return place


def _cells(options: list[dict[str, Any]]) -> set[str]:
    return {option["cell"] for option in options}


@pytest.fixture(scope="module")
def probed() -> StudyEvidence:
    """Five seeds: nf4 at rank 8 within the margin, at rank 4 not; both ranks of bf16 alike."""
    return changed(study(COST, seeds=5, rank_cost=RANK_COST), probes=PROBES)


def test_a_preference_switches_the_winner(probed) -> None:  # type: ignore[no-untyped-def]
    assert _advise(probed, _wish(24, "speed"))["cell"] == "bf16-r4"
    assert _advise(probed, _wish(24, "memory"))["cell"] == "nf4-r8"
    quality = _place(probed, _wish(24, "quality"))
    assert quality["recommended"]["cell"] == quality["reference"]["cell"] == "bf16-r8"
    assert "difference" in quality["runner_up"]["separated_by"][0]


def test_the_budget_excludes_and_says_what_is_needed(probed) -> None:  # type: ignore[no-untyped-def]
    place = _place(probed, _wish(4))
    assert place["recommended"]["cell"] == "nf4-r8"
    assert _cells(place["does_not_fit"]) == {"bf16-r4", "bf16-r8"}
    assert all(one["text"].startswith("needs ≥ 9") for one in place["does_not_fit"])
    [out] = place["excluded"]
    assert (out["cell"], out["kind"]) == ("nf4-r4", "rejected")
    assert "+12" in out["reason"]


def test_every_cell_stands_somewhere(probed) -> None:  # type: ignore[no-untyped-def]
    for size in (1, 4, 24):
        place = _place(probed, _wish(size))
        lists = [place[key] for key in ("also_fit", "does_not_fit", "undecided", "excluded")]
        lists += [[place[key]] for key in ("recommended", "runner_up") if place[key]]
        assert _cells([one for part in lists for one in part]) == set(probed.cells)


def test_each_figure_has_its_evidence(probed) -> None:  # type: ignore[no-untyped-def]
    best = _place(probed, _wish(4))["recommended"]
    memory, time, quality = best["memory"], best["time"], best["quality"]
    assert (memory["basis"], memory["source"]) == ("measured", "probes/nf4-r8/record.json")
    assert (time["ms_per_step"]["median"], time["source"]) == (95.0, "probes/nf4-r8/record.json")
    assert (quality["verdict"], quality["n"], quality["against"]) == ("supported", 5, "bf16-r8")
    assert quality["interval"][0] < quality["estimate"] < quality["interval"][1] < quality["margin"]
    assert len(quality["records"]) == 10
    assert (best["batch_size"], best["gradient_accumulation"], best["gradient_checkpointing"]) == (None, 1, False)


def test_what_was_not_probed_is_predicted_and_says_so() -> None:
    found = study(COST, seeds=5, rank_cost=RANK_COST)
    best = _place(found, _wish(0.5))["recommended"]
    assert best["cell"] == "nf4-r8"
    assert (best["memory"]["basis"], best["memory"]["needs_bytes"]) == ("predicted", 308 * 10**6)
    assert best["memory"]["source"] == "plan.json"
    assert "not probed" in best["memory"]["text"]
    assert best["time"]["ms_per_step"] is None
    assert best["time"]["reason"] == "its time was not measured"
    assert "308 MB predicted" in _advise(found, _wish(0.5))["text"]


def test_a_forecast_adds_what_no_probe_holds() -> None:
    """The longest batch of the data, which the probe did not meet, and CUDA's context."""
    probe = _probe("nf4-r8", 300e6, 90.0, predicted_bytes=290 * 10**6)
    found = changed(study(COST, seeds=5), probes=[probe])
    fit = {"needs_bytes": 808 * 10**6, "change": None}
    memory = next(
        one["memory"]
        for one in [_place(found, _wish(0.9, **{"nf4-r8": fit}))["recommended"]]
        if one["cell"] == "nf4-r8"
    )
    assert (memory["longest_bytes"], memory["beside_bytes"]) == (18 * 10**6, 500 * 10**6)
    assert memory["needs_bytes"] == (300 + 18 + 500) * 10**6
    assert "300 MB of it the measured peak" in memory["text"]


def test_a_recommendation_without_a_budget_names_measured_bytes_where_all_were_probed(probed) -> None:  # type: ignore[no-untyped-def]
    whole = recommendation(decide(probed), probed)
    assert (whole["cell"], whole["memory"]) == ("nf4-r8", "measured")
    assert "Use nf4 at rank 8, 3.1 GB measured by its probe" in whole["text"]
    part = changed(probed, probes=[p for p in PROBES if p["cell"] != "bf16-r8"])
    advice = recommendation(decide(part), part)  # a prediction beside measurements would be no comparison
    assert (advice["cell"], advice["memory"]) == ("nf4-r8", "predicted")
    assert "measured" not in advice["text"]


def test_dequantized_storage_is_no_measurement_of_qlora(probed) -> None:  # type: ignore[no-untyped-def]
    probes = [_probe("nf4-r8", 8.0 * GB, 50.0, storage="dequantized")]
    best = _place(changed(probed, probes=probes), _wish(0.5))["recommended"]
    assert best["memory"]["basis"] == "predicted"
    assert "dequantized storage only" in best["memory"]["text"]
    assert best["time"]["ms_per_step"] is None


def test_a_change_that_keeps_the_numbers_makes_a_cell_fit() -> None:
    found = changed(study(COST, seeds=5, rank_cost=RANK_COST), probes=PROBES[:2])
    change = {"train.gradient_checkpointing": True}
    fit = {"needs_bytes": 10 * GB, "change": change, "change_needs_bytes": 3 * GB}
    wide = {"needs_bytes": 10 * GB, "change": {"adapter.rank": 2}, "change_needs_bytes": 3 * GB}
    none = {"needs_bytes": 10 * GB, "change": None, "change_needs_bytes": None}
    place = _place(found, _wish(4, **{"bf16-r8": fit, "bf16-r4": wide, "nf4-r8": none}))
    best = place["recommended"]
    assert (best["cell"], best["change"], best["gradient_checkpointing"]) == ("bf16-r8", change, True)
    assert best["memory"]["basis"] == "predicted"
    assert best["time"]["ms_per_step"] is None
    assert "with gradient checkpointing" in place["text"]
    said = {one["cell"]: one["text"] for one in place["does_not_fit"]}
    assert "would fit with gradient checkpointing (3 GB predicted)" in said["bf16-r8"]
    assert "would fit with rank 2 (3 GB predicted), which changes what is learned" in said["bf16-r4"]
    assert "no single change" in said["nf4-r8"]
    assert place["runner_up"] is None


def test_a_smaller_batch_must_keep_the_rows_of_a_step() -> None:
    found = study(COST, seeds=5, rank_cost=RANK_COST)
    plan = copy.deepcopy(dict(found.plan))
    for cell in plan["cells"]:
        cell["config"]["train"] |= {"batch_size": 8, "gradient_accumulation": 2}
    found = changed(found, plan=plan)
    kept = {"train.batch_size": 4, "train.gradient_accumulation": 4}
    fit = {"needs_bytes": 10 * GB, "change_needs_bytes": GB // 5}
    place = _place(
        found, _wish(0.25, **{"bf16-r8": fit | {"change": kept}, "bf16-r4": fit | {"change": {"train.batch_size": 3}}})
    )
    assert (place["recommended"]["batch_size"], place["recommended"]["gradient_accumulation"]) == (4, 4)
    keeps = {one["cell"]: one["change_keeps_numbers"] for one in place["does_not_fit"]}
    assert (keeps["bf16-r8"], keeps["bf16-r4"]) == (True, False)


def test_nothing_fits_is_one_line(probed) -> None:  # type: ignore[no-untyped-def]
    answer = _advise(probed, _wish(1))
    assert answer["cell"] is None
    assert answer["text"] == (
        "Nothing that is shown to stay within 5% fits 1GB: the smallest, nf4 at rank 8, needs ≥ 3.1 GB (measured)."
    )


def test_nothing_is_decided_below_three_seeds() -> None:
    answer = _advise(study(COST, seeds=2), _wish(24))
    assert answer["cell"] is None
    assert answer["text"] == "Nothing is decided: no cell has 3 finished seeds (the most is 2)."
    [place] = answer["places"]
    assert len(place["undecided"]) == 4
    assert "at least 1 more" in place["undecided"][0]["text"]


def test_undecided_cells_say_how_many_seeds() -> None:
    found = changed(study({8: 0.04}, seeds=4, seed_sd=0.01, rng=2), probes=PROBES)
    [one] = _place(found, _wish(4))["undecided"]
    assert one["cell"] == "nf4-r8"
    assert one["fits"] is True
    assert one["needs"]["seeds"] is not None
    assert one["text"] == f"undecided: {one['needs']['text']}"
    place = _place(found, _wish(4))
    assert "Undecided, and would fit: 1." in place["text"]
    [same] = _place(found, _wish(2))["undecided"]
    assert same["text"].endswith("; it needs ≥ 3.1 GB (measured) too")


def test_runs_that_never_finished_are_named(probed) -> None:  # type: ignore[no-untyped-def]
    records = [dict(r) | ({"status": "oom"} if r["cell"] == "nf4-r8" else {}) for r in probed.records]
    [one] = _place(changed(probed, records=records), _wish(4))["undecided"]
    assert "seed 42 (arm oom)" in one["text"]


def test_broken_and_diverged_cells_are_out(probed) -> None:  # type: ignore[no-untyped-def]
    records = copy.deepcopy(list(probed.records))
    for record in records:
        record["vocab_size"] = 1000
        record["metrics"]["base_plain_text_loss"] = 6.0 if record["cell"].startswith("nf4") else 4.0
    records[0]["status"] = "diverged"
    assert records[0]["cell"] == "bf16-r4"
    place = _place(changed(probed, records=records), _wish(24))
    assert {one["cell"]: one["kind"] for one in place["excluded"]} == {
        "nf4-r4": "broken", "nf4-r8": "broken", "bf16-r4": "diverged",
    }  # fmt: skip
    assert "broken on this base before training" in place["excluded"][0]["reason"] + place["excluded"][1]["reason"]
    assert place["recommended"]["cell"] == "bf16-r8"


def test_an_out_of_memory_probe_counts_on_a_card_as_large_as_the_budget(probed) -> None:  # type: ignore[no-untyped-def]
    lost = _probe("bf16-r4", None, 0.0, status="oom", ms_per_step=None)
    small = changed(probed, probes=[lost], plan=dict(probed.plan) | {"machine": {"gpu_memory_bytes": 8 * GB}})
    said = {one["cell"]: one for one in _place(small, _wish(4))["does_not_fit"]}
    assert said["bf16-r4"]["memory"]["at_least"] is True
    assert said["bf16-r4"]["text"].startswith("needs ≥ 8 GB (measured)")
    assert not _place(small, _wish(24))["does_not_fit"]  # a larger card: the prediction stands, and says why
    never = changed(probed, probes=[lost | {"started": False}])
    assert not _place(never, _wish(4))["does_not_fit"]


def test_times_of_several_devices_are_not_compared(probed) -> None:  # type: ignore[no-untyped-def]
    probes = [PROBES[0] | {"device": "NVIDIA A100"}, *PROBES[1:]]
    place = _place(changed(probed, probes=probes), _wish(24))
    assert place["recommended"]["cell"] == "nf4-r8"
    assert any("several devices" in note for note in place["notes"])


def test_the_margin_is_the_one_asked_for(probed) -> None:  # type: ignore[no-untyped-def]
    wide = _place(probed, _wish(4, "memory", margin=0.2))
    assert wide["recommended"]["cell"] == "nf4-r4"
    assert "within 20%" in wide["text"]


def two_tasks(**given: Any) -> StudyEvidence:
    """Two tasks: on the second everything has half the loss, and nf4 costs too much."""
    first, second = study({8: 0.01}, seeds=5), study({8: 0.3}, seeds=5, rng=1)
    cells, runs, records, scores = [], [], [], {}
    for name, part, found in (("easy", "b", second), ("hard", "a", first)):
        for cell in copy.deepcopy(list(found.plan["cells"])):
            cell["config"]["task"]["name"] = name
            cell["reference"] = cell["reference"] and f"{part}-{cell['reference']}"
            cells.append(cell | {"id": f"{part}-{cell['id']}", "data": part})
        runs += [r | {"id": f"{part}-{r['id']}", "cell": f"{part}-{r['cell']}"} for r in found.plan["runs"]]
        for record in copy.deepcopy(list(found.records)):
            record["config"]["task"]["name"] = name
            record["eval_loss"] *= 0.5 if part == "b" else 1.0
            records.append(record | {"id": f"{part}-{record['id']}", "cell": f"{part}-{record['cell']}"})
        scores |= {f"{part}-{name}": score for name, score in found.scores.items()}
    plan = {"cells": cells, "runs": runs, "null_pairs": []}
    return changed(first, plan=plan, records=records, scores=scores, **given)


def test_nothing_is_chosen_across_tasks() -> None:
    found = two_tasks()
    assert [ground.name for ground in grounds(found)] == ["easy on gpt2-demo", "hard on gpt2-demo"]
    answer = recommendation(decide(found), found)
    assert "easy on gpt2-demo: Use bf16 at rank 8" in answer["text"]
    assert "hard on gpt2-demo: Use nf4 at rank 8" in answer["text"]
    assert not any("lowest mean" in reason for reason in answer["why"])
    within = _advise(found, _wish(0.5))
    easy, hard = within["places"]
    assert easy["recommended"] is None
    assert hard["recommended"]["cell"] == "a-nf4-r8"
    assert "hard on gpt2-demo: Within 0.5GB: use nf4 at rank 8" in within["text"]
    assert all(one["quality"]["against"][0] == one["cell"][0] for one in [*easy["excluded"], hard["recommended"]])


def test_nothing_is_chosen_across_bases_or_tokenizers() -> None:
    found = study({8: 0.0, 16: 0.0}, seeds=3)
    plan = copy.deepcopy(dict(found.plan))
    for cell in plan["cells"]:
        cell["data"] = "abc"
        if cell["rank"] == 16:
            cell["config"]["base"] |= {"name": "other", "fingerprint": "f01"}
    names = [ground.name for ground in grounds(changed(found, plan=plan))]
    assert names == ["banking77 on gpt2-demo", "banking77 on other"]
    for cell in plan["cells"]:
        cell["config"]["base"] |= {"name": "gpt2-demo", "fingerprint": "f00"}
        cell["config"]["task"]["max_length"] = 32 * cell["rank"]
        cell["data"] = str(cell["rank"])
    names = [ground.name for ground in grounds(changed(found, plan=plan))]
    assert names == ["banking77 on gpt2-demo at max_length 256", "banking77 on gpt2-demo at max_length 512"]


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
def test_cells_at_the_margin_are_seldom_called_good_enough(seeds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six quantized cells cost just the margin against a clear best; in at most 2.5% of studies any of them qualifies."""
    monkeypatch.setattr(noninferiority, "further_seeds", lambda *_: None)  # takes most of the time, changes no verdict
    ranks, bound, draws, wrong = (1, 2, 4, 8, 12, 16), math.log(1.05), 500, 0
    for rng in range(draws):
        behind = {rank: 0.04 * (rank != 16) for rank in ranks}
        cost = {rank: bound - behind[rank] for rank in ranks}
        found = study(cost, seeds=seeds, items=20, seed_sd=0.01, rank_cost=behind, rng=rng)
        options = choose(found, grounds(found)[0], _wish(1000)).options
        wrong += any(option.cell["precision"] == "nf4" for option in options)
    assert wrong / draws <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / draws)
