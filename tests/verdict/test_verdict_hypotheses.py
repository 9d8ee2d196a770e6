"""H1 to H3: from records that show them, reject them, decide nothing, or lack the arms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from verdict_study import cell, changed, study

from loracle.verdict import RunScores, StudyEvidence, decide, hypotheses
from loracle.verdict.criterion import depth
from loracle.verdict.entries import KEYS
from loracle.verdict.matrices import contrast, differ, friedman
from loracle.verdict.parts import combine

LAYERS = 6


def answers(found: StudyEvidence) -> dict[tuple[str, str], dict[str, Any]]:
    given = hypotheses(found, decide(found))
    assert all(tuple(e) == KEYS for e in given)
    assert all(e["exploratory"] and not e["primary"] for e in given)
    return {(e["question"], e["scope"]["part"]): e for e in given}


def pairs(kind: str, values: list[float], rank: int = 8, slope: float = 0.0) -> list[dict[str, Any]]:
    """One pair a seed; the cosine moves by ``slope`` from the first layer to the last."""
    found = []
    for seed, value in enumerate(values, 42):
        layers = [
            {"layer": i, "kind": "qkv", "module": f"h.{i}", "cosine": value + slope * (i / (LAYERS - 1) - 0.5)}
            for i in range(LAYERS)
        ]
        b = f"nf4-r{rank}-s{seed}" if kind == "precision" else f"bf16-r{rank}-s{seed}-null"
        about = {"kind": kind, "rank": rank, "targets": ["c_attn"], "seed": seed}
        found.append({"a": f"bf16-r{rank}-s{seed}", "b": b, **about, "layers": layers})
    return found


def alike(cost: dict[int, float], cosine: dict[int, float], null: float = 0.97) -> StudyEvidence:
    """Cells with a known cost and a known cosine, four seeds, three null pairs."""
    spread = (-0.003, 0.0, 0.002, 0.001)
    found = [p for r, c in cosine.items() for p in pairs("precision", [c + d for d in spread], r)]
    found += [p for r in cosine for p in pairs("null", [null + d for d in spread[:3]], r)]
    return changed(study(cost, seeds=4), similarity={"schema": 1, "pairs": found})


# -- H1 ---------------------------------------------------------------------------------------------------------------


def test_h1_below_the_threshold_without_degradation_rejects_the_criterion() -> None:
    found = answers(alike({8: 0.013}, {8: 0.89}))
    whole, above, rule = (
        found["H1", name] for name in ("whole", "the cosine is above 0.95", "the criterion is informative")
    )
    assert (whole["verdict"], above["verdict"], rule["verdict"]) == ("rejected", "rejected", "rejected")
    assert (
        "Below 0.95 and yet no degradation beyond the margin in 1 cell (nf4 at rank 8: cosine 0.890"
        in rule["statement"]
    )
    assert (above["n"], above["level"], above["difference"]) == (4, 0.95, "worse")
    assert above["interval"][0] < 0.89 < above["interval"][1]
    assert {"nf4-r8-s42", "bf16-r8-s45"} <= set(rule["records"])


def test_h1_above_the_threshold_with_degradation_rejects_it() -> None:
    rule = answers(alike({8: 0.12}, {8: 0.98}))["H1", "the criterion is informative"]
    assert rule["verdict"] == "rejected"
    assert "Above 0.95 and yet degraded beyond the margin" in rule["statement"]


def test_h1_cells_on_both_sides_that_agree_support_it() -> None:
    found = answers(alike({4: 0.12, 8: 0.0}, {4: 0.80, 8: 0.98}))
    assert found["H1", "whole"]["verdict"] == "supported"
    assert found["H1", "the cosine is above 0.95"]["verdict"] == "partially supported"


def test_h1_on_one_side_only_is_partial_or_untested() -> None:
    assert answers(alike({8: 0.0}, {8: 0.98}))["H1", "whole"]["verdict"] == "partially supported"
    below = answers(alike({8: 0.12}, {8: 0.80}))
    assert below["H1", "whole"]["verdict"] == "undecided"
    assert "all below it and beyond the margin" in below["H1", "the criterion is informative"]["statement"]


def test_h1_a_null_below_the_threshold_is_said() -> None:
    found = answers(alike({8: 0.0}, {8: 0.89}, null=0.89))
    assert "differ in data order alone do not reach it either" in found["H1", "whole"]["statement"]
    above = found["H1", "the cosine is above 0.95"]
    assert above["difference"] == "not shown"
    assert "In 1 of the 1 below it the null is not shown to be more alike: that says nothing" in above["statement"]


def test_h1_without_arms_or_similarity_is_not_asked() -> None:
    assert answers(study({8: 0.0}))["H1", "whole"]["verdict"] == "not asked"
    lonely = changed(study({8: 0.0}), plan={"cells": [cell("bf16", 8, None)], "runs": []})
    found = answers(lonely)
    assert [found[name, "whole"]["verdict"] for name in ("H1", "H2", "H3")] == ["not asked"] * 3
    assert len(found) == 3


def test_h1_confounded_arms_give_no_verdict() -> None:
    found = alike({8: 0.013}, {8: 0.89})
    for record in found.records:
        if record["cell"] == "nf4-r8":
            record["config"]["train"]["gradient_checkpointing"] = True
    whole = answers(found)["H1", "whole"]
    assert whole["verdict"] == "confounded"
    assert whole["confounds"] == ["gradient_checkpointing"]


def test_depth_from_early_to_late_layers() -> None:
    base = study({8: 0.0}, seeds=3)
    found = changed(
        base, similarity={"pairs": pairs("precision", [0.9, 0.91, 0.89], slope=-0.1) + pairs("null", [0.95])}
    )
    known = depth(found, found.cells["nf4-r8"])
    assert known is not None
    assert known.layers == (0, 3, 5)
    assert known.cosines == pytest.approx((0.95, 0.89, 0.85))
    assert known.null == pytest.approx((0.95, 0.95, 0.95))
    assert known.late_less_early == pytest.approx(-0.08)
    assert (known.n, known.interval is not None) == (3, True)
    assert depth(base, base.cells["nf4-r8"]) is None


# -- H2 ---------------------------------------------------------------------------------------------------------------


def sweep(effects: dict[str, float], layers: int = 8, noise: float = 0.001, rng: int = 0) -> dict[str, Any]:
    """A sweep of a fused c_attn (slices q, k, v), c_proj (o) and the MLP, with known effects by kind."""
    random = np.random.default_rng(rng)
    units = [
        {
            "unit": "slice" if kind in "qkv" else "matrix", "module": f"h.{layer}.{kind}", "layer": layer, "kind": kind,
            "delta_loss": effect + float(random.normal(0, noise)), "kl": 0.0, "agreement": 1.0,
            "params": 400 if kind in ("up", "down") else 100,
        }
        for layer in range(layers)
        for kind, effect in effects.items()
    ]  # fmt: skip
    return {
        "base": "gpt2-demo",
        "codec": "nf4",
        "double_quant": True,
        "block_size": 64,
        "text": "plain text",
        "units": units,
    }


def swept(*sweeps: dict[str, Any]) -> StudyEvidence:
    return changed(study({8: 0.0}), sensitivity={"schema": 1, "sweeps": list(sweeps)})


KNOWN = {"q": 0.02, "k": 0.005, "v": 0.03, "o": 0.01, "up": 0.004, "down": 0.006}


def test_h2_known_differences_are_found_over_layers() -> None:
    found = answers(swept(sweep(KNOWN)))
    kinds, apart = found["H2", "matrices differ"], found["H2", "Q and V against K and the MLP"]
    assert found["H2", "whole"]["verdict"] == kinds["verdict"] == apart["verdict"] == "supported"
    assert apart["estimate"] == pytest.approx(0.025 - 0.005, abs=0.001)
    assert apart["interval"][0] > 0
    assert apart["n"] == kinds["n"] == 8
    assert "A matrix of the MLP has 4 times the weights of q." in apart["statement"]
    assert "says nothing of other models" in apart["statement"]
    assert apart["scope"] == {"part": "Q and V against K and the MLP", "base": "gpt2-demo", "codec": "nf4"}


def test_h2_matrices_may_differ_without_q_and_v_standing_apart() -> None:
    found = answers(swept(sweep(KNOWN | {"k": 0.025})))
    assert found["H2", "Q and V against K and the MLP"]["verdict"] == "partially supported"
    assert found["H2", "whole"]["verdict"] == "partially supported"


def test_h2_nothing_shown_is_undecided_never_rejected() -> None:
    found = answers(swept(sweep(dict.fromkeys(KNOWN, 0.01), rng=1)))
    assert found["H2", "whole"]["verdict"] == "undecided"
    assert "may still be there" in found["H2", "matrices differ"]["statement"]


def test_h2_needs_three_layers_and_leaves_out_what_is_not_finite() -> None:
    assert answers(swept(sweep(KNOWN, layers=2)))["H2", "whole"]["verdict"] == "undecided"
    broken = sweep(KNOWN)
    broken["units"][0]["delta_loss"] = None
    found = answers(swept(broken))["H2", "matrices differ"]
    assert found["n"] == 7
    assert "Layers 0 are left out" in found["statement"]


def test_friedman_in_f_form_by_hand() -> None:
    ranks = np.array([[1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [1.0, 2.0, 3.0], [2.0, 1.0, 3.0]])
    f, p = friedman(ranks)  # rank sums 5, 8, 11: chi2 = 12/(4·3·4)·(25 + 64 + 121 − 192) = 4.5, F = 3·4.5/(8 − 4.5)
    assert f == pytest.approx(3 * 4.5 / 3.5)
    assert 0.05 < p < 0.2
    assert friedman(np.ones((4, 3))) == (0.0, 1.0)
    assert friedman(np.tile([1.0, 2.0, 3.0], (4, 1))) == (float("inf"), 0.0)


def test_h2_error_rate_of_the_two_tests_on_alike_matrices() -> None:
    same = dict.fromkeys(KNOWN, 0.01)
    draws = [sweep(same, layers=6, rng=i) for i in range(200)]
    for test in (differ, contrast):
        assert sum(test(d).verdict == "supported" for d in draws) <= 200 * 0.05 + 3 * (200 * 0.05 * 0.95) ** 0.5


def variants(costs: dict[str, float], seeds: int = 4, sd: float = 0.002) -> StudyEvidence:
    """{bf16, nf4} x targets with a known cost of quantization by variant; variants differ in their level, too."""
    random = np.random.default_rng(5)
    names, items = list(range(42, 42 + seeds)), 60
    tokens, cells, runs, records, scores = random.integers(4, 20, items), [], [], [], {}
    hard = random.gamma(4.0, 0.25, items) * tokens
    for j, (targets, cost) in enumerate(costs.items()):
        for precision in ("bf16", "nf4"):
            name, twin = f"{precision}-{targets}", f"bf16-{targets}"
            made = cell(precision, 8, twin if precision == "nf4" else None) | {"id": name, "targets": list(targets)}
            made["config"]["adapter"]["targets"] = list(targets)
            cells.append(made)
            for seed in names:
                shift = 0.05 * j + (cost if precision == "nf4" else 0.0) + random.normal(0, sd)
                run = f"{name}-s{seed}"
                scores[run] = RunScores(
                    np.arange(items), 2.0 * hard * np.exp(shift + random.normal(0, 0.01, items)), tokens
                )
                runs.append({"id": run, "cell": name, "seed": seed, "role": "run"})
                config = made["config"] | {"init_seed": seed, "order_seed": seed}
                records.append(
                    {
                        "id": run,
                        "cell": name,
                        "seed": seed,
                        "status": "done",
                        "config": config,
                        "eval_loss": 2.0,
                        "metrics": {},
                    }
                )
    questions = [{"name": "degradation", "margin": None, "primary": True, "compare": None}]
    return StudyEvidence({"cells": cells, "runs": runs}, records, scores, None, None, [], questions, names)


def test_h2_variants_whose_cost_differs_are_found() -> None:
    found = answers(variants({"qv": 0.01, "kv": 0.06, "qkvo": 0.02}))
    part = found["H2", "target variants differ"]
    assert part["verdict"] == "supported"
    assert part["adjusted"]
    assert (part["arm"], part["reference"]) == ("nf4-qv", "nf4-kv")
    assert part["estimate"] == pytest.approx(-0.05, abs=0.01)
    assert part["interval"][1] < 0
    assert part["level"] > 0.95
    assert len(part["records"]) == 24
    assert found["H2", "whole"]["verdict"] == "partially supported"  # which matrix it is the variants cannot tell


def test_h2_variants_that_cost_alike_are_rejected_or_undecided() -> None:
    assert (
        answers(variants({"qv": 0.01, "kv": 0.01}, seeds=5, sd=0.001))["H2", "target variants differ"]["verdict"]
        == "rejected"
    )
    assert (
        answers(variants({"qv": 0.01, "kv": 0.01}, sd=0.08))["H2", "target variants differ"]["verdict"] == "undecided"
    )
    assert (
        answers(variants({"qv": 0.01, "kv": 0.09}, seeds=2))["H2", "target variants differ"]["verdict"] == "undecided"
    )


# -- H3 ---------------------------------------------------------------------------------------------------------------


def test_h3_an_exact_threshold_supports_it() -> None:
    found = answers(study({2: 0.12, 4: 0.01, 8: 0.0}, seeds=4))
    part = found["H3", "against 16-bit at the same rank"]
    assert (found["H3", "whole"]["verdict"], part["verdict"]) == ("supported", "supported")
    assert (part["estimate"], part["interval"], part["n"]) == (4, [4, 4], 4)


def test_h3_no_rank_too_small_rejects_it_among_those_tested() -> None:
    found = answers(study({2: 0.013, 4: 0.014, 8: 0.0135}, seeds=4))
    assert found["H3", "whole"]["verdict"] == "rejected"
    assert "Ranks below 2 were not tested" in found["H3", "against 16-bit at the same rank"]["statement"]


def test_h3_undecided_where_the_smaller_rank_is_or_none_is_enough() -> None:
    wide = answers(study({4: 0.047, 8: 0.0}, seeds=3, seed_sd=0.01, rng=3))
    assert wide["H3", "whole"]["verdict"] == "undecided"
    none = answers(study({4: 0.2, 8: 0.15}, seeds=4))
    assert none["H3", "against 16-bit at the same rank"]["verdict"] == "undecided"
    assert "r* is above it, or there is none" in none["H3", "against 16-bit at the same rank"]["statement"]


def test_h3_second_reading_asks_whether_quantized_needs_more_rank() -> None:
    more = answers(study({2: 0.12, 4: 0.0, 8: 0.0}, seeds=4))["H3", "against the largest rank"]
    assert more["verdict"] == "supported"
    assert "In 16-bit rank 2 is enough, quantized 4 is and the next smaller one is not." in more["statement"]
    same = answers(study({2: 0.0, 4: 0.0, 8: 0.0}, seeds=4))["H3", "against the largest rank"]
    assert same["verdict"] == "rejected"
    both = answers(study({4: 0.0, 8: 0.0}, seeds=4, rank_cost={4: 0.12}))["H3", "against the largest rank"]
    assert both["verdict"] == "undecided"  # both need the largest: what lies above it was not tested


def test_h3_is_answered_without_its_question_and_not_for_one_rank() -> None:
    quiet = changed(study({2: 0.12, 4: 0.0}, seeds=4), questions=[])
    assert answers(quiet)["H3", "whole"]["verdict"] == "supported"
    assert answers(study({8: 0.0}))["H3", "whole"]["verdict"] == "not asked"


def test_parts_combine_as_a_claim_that_all_hold() -> None:
    assert combine(["supported", "supported", "not asked"]) == "supported"
    assert combine(["supported", "undecided"]) == combine(["supported", "rejected"]) == "partially supported"
    assert combine(["rejected", "undecided"]) == "rejected"
    assert combine(["confounded", "confounded"]) == "confounded"
    assert combine(["confounded", "undecided"]) == "undecided"
    assert combine(["not asked"]) == combine([]) == "not asked"
