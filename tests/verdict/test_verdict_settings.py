"""Settings beside precision and rank: what the method determines, the primary comparison, full fine-tuning beside adapters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from verdict_study import changed, study

from loracle.verdict import StudyEvidence, decide, recommendation
from loracle.verdict.scope import other_factors


def with_more(targets: list[str], rank: int, full: bool) -> StudyEvidence:
    """c_attn at ranks 4 and 8; then other ``targets`` at ``rank`` by a little less loss; with ``full`` fine-tuning far below both."""
    found = study({4: 0.01, 8: 0.01}, seeds=4)
    plan, records, scores = copy.deepcopy(found.plan), copy.deepcopy(list(found.records)), dict(found.scores)

    def add(old: str, name: str, factor: float, **settings: Any) -> None:
        cell = copy.deepcopy(next(c for c in plan["cells"] if c["id"] == old)) | {"id": name, "label": name}
        for key, value in settings.items():
            place = "train" if key == "learning_rate" else "adapter"
            cell["config"][place][key] = value
            if place == "adapter":
                cell[key] = value
        if cell["reference"]:
            cell["reference"] = f"bf16-{name.split('-')[1]}"
        plan["cells"].append(cell)
        for record in [r for r in records if r["cell"] == old]:
            run = f"{name}-s{record['seed']}"
            plan["runs"].append({"id": run, "cell": name, "seed": record["seed"], "role": "run", "cohort": "c0"})
            config = copy.deepcopy(cell["config"]) | {k: record["config"][k] for k in ("init_seed", "order_seed")}
            records.append(
                record | {"id": run, "cell": name, "config": config, "eval_loss": factor * record["eval_loss"]}
            )
            scores[run] = scores[record["id"]]

    for precision in ("bf16", "nf4"):
        add(f"{precision}-r8", f"{precision}-more", 0.98, targets=targets, rank=rank)
    if full:
        add("bf16-r8", "bf16-full", 0.5, method="full", learning_rate=1e-4)
        plan["cells"][-1]["trainable_params"] = 1234567
    return changed(found, plan=plan, records=records, scores=scores)


def test_what_the_method_determines_is_no_setting_of_its_own() -> None:
    found = with_more(["q", "v"], 8, full=True)
    assert other_factors(found, found.cells["bf16-r8"]) == {"method": "lora", "targets": ["c_attn"]}
    statements = [e["statement"] for e in decide(found)]
    assert not any("learning_rate" in text or "method lora" in text for text in statements)


def test_a_learning_rate_that_varies_within_a_method_is_one() -> None:
    found = study({8: 0.01}, seeds=3)
    plan = copy.deepcopy(found.plan)
    other = copy.deepcopy(plan["cells"][0]) | {"id": "faster"}
    other["config"]["train"]["learning_rate"] = 1e-2
    plan["cells"].append(other)
    found = changed(found, plan=plan)
    assert other_factors(found, found.cells["faster"]) == {"learning_rate": 1e-2}


@pytest.mark.parametrize("rank", [8, 64])
def test_the_primary_comparison_is_of_the_first_setting_however_large_another_ones_rank(rank: int) -> None:
    entries = decide(with_more(["q", "v"], rank, full=False))
    assert [e["arm"] for e in entries if e["primary"]] == ["nf4-r8"]


def test_full_fine_tuning_is_named_beside_the_recommended_adapter() -> None:
    found = with_more(["q", "v"], 8, full=True)
    advice = recommendation(decide(found), found)
    assert advice["cell"] == "nf4-more"
    [note] = [text for text in advice["why"] if text.startswith("Full fine-tuning")]
    assert "1,234,567 trained parameters" in note
    assert not any(text.startswith("Full") for text in recommendation(decide(found), with_more(["q"], 8, False))["why"])
