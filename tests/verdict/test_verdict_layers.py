"""Layer variants: groups of equal rank and of equal parameters, what differs in them, and which is shown to be best."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from verdict_study import changed, config, study

from loracle.verdict import StudyEvidence
from loracle.verdict.confounds import PLACEMENT, Differences, differences, guard, placed
from loracle.verdict.layers import EQUAL_PARAMETERS, EQUAL_RANK, groups, variants
from loracle.verdict.scope import check

QV, ALL = ["q", "v"], ["q", "k", "v", "o"]


def layers(
    ranks: dict[str, tuple[list[str], int, int]],
    cost: dict[str, float],
    seeds: int = 5,
    scale: int | None = 2,
    **given: Any,
) -> StudyEvidence:
    """bf16 and nf4 cells ``name: (targets, rank, parameters)``; ``cost`` is the true log ratio between variants. nf4 costs 1%."""
    keys = dict(enumerate(ranks))
    found = study(
        dict.fromkeys(keys, 0.01), seeds=seeds, rank_cost={i: cost[name] for i, name in keys.items()}, **given
    )

    def settled(config: dict[str, Any], i: int) -> dict[str, Any]:
        targets, rank, _ = ranks[keys[i]]
        alpha = 16 if scale is None else scale * rank
        return config | {"adapter": config["adapter"] | {"targets": targets, "rank": rank, "alpha": alpha}}

    cells, of = [], {}
    for cell in found.plan["cells"]:
        i = cell["rank"]
        targets, rank, size = ranks[keys[i]]
        of[cell["id"]] = i
        own = {"targets": targets, "rank": rank, "trainable_params": size, "config": settled(cell["config"], i)}
        cells.append(dict(cell) | own)
    records = [dict(r) | {"config": settled(dict(r["config"]), of[r["cell"]])} for r in found.records]
    return changed(found, plan=dict(found.plan) | {"cells": cells}, records=records)


EQUAL = {"qv": (QV, 36, 110_592), "kv": (["k", "v"], 36, 110_592), "all": (ALL, 18, 110_592)}


def test_equal_parameters_differ_in_where_they_sit_alone() -> None:
    found = layers(EQUAL, {"qv": 0.0, "kv": 0.05, "all": 0.0})
    bases = [(group.basis, [str(cell["id"]) for cell in group.cells], group.apart) for group in groups(found)]
    assert bases == [
        (EQUAL_PARAMETERS, ["bf16-r0", "bf16-r1", "bf16-r2"], 0.0),
        (EQUAL_PARAMETERS, ["nf4-r0", "nf4-r1", "nf4-r2"], 0.0),
    ]
    shown = {v.cell["id"]: v for v in variants(found) if v.group.basis == EQUAL_PARAMETERS}
    assert shown["bf16-r1"].best == "not best"
    assert shown["bf16-r0"].best == shown["bf16-r2"].best == "may be best"
    assert {v.differs_in for v in shown.values()} == {(PLACEMENT,)}
    assert shown["bf16-r0"].drop is None
    drop = shown["nf4-r0"].drop
    assert drop is not None
    assert drop.estimate == pytest.approx(
        0.01, abs=0.005
    )  # against 16-bit on the same layers, not against other variants


def test_equal_rank_says_that_size_differs_too() -> None:
    found = layers({"qv": (QV, 8, 24_576), "all": (ALL, 8, 49_152)}, {"qv": 0.05, "all": 0.0})
    assert [group.basis for group in groups(found)] == [EQUAL_RANK] * 2
    shown = {v.cell["id"]: v for v in variants(found)}
    assert shown["nf4-r1"].best == "best"
    assert shown["nf4-r0"].best == "not best"
    assert shown["nf4-r0"].differs_in == ("targets", "number of parameters")
    assert shown["nf4-r0"].group.apart == pytest.approx(1 / 3)


def test_sizes_ten_percent_off_the_middle_are_the_limit() -> None:
    near = layers({"qv": (QV, 9, 90), "all": (ALL, 5, 110)}, {"qv": 0.0, "all": 0.0})
    far = layers({"qv": (QV, 9, 90), "all": (ALL, 5, 111)}, {"qv": 0.0, "all": 0.0})
    assert [group.apart for group in groups(near)] == pytest.approx([0.1, 0.1])
    assert groups(far) == []
    heads = [dict(cell) | {"head_params": 60} for cell in near.plan["cells"]]  # the adapters alone are 30 and 50
    assert groups(changed(near, plan=dict(near.plan) | {"cells": heads})) == []


def test_a_fixed_alpha_moves_the_scale_and_that_is_said() -> None:
    found = layers(EQUAL, {"qv": 0.0, "kv": 0.0, "all": 0.0}, scale=None)
    shown = [v for v in variants(found) if v.group.basis == EQUAL_PARAMETERS]
    assert shown[0].differs_in == (PLACEMENT, "alpha/rank")


def test_below_three_seeds_no_variant_is_best() -> None:
    found = layers(EQUAL, {"qv": 0.0, "kv": 0.5, "all": 0.0}, seeds=2)
    assert {v.best for v in variants(found)} == {None}


def test_what_else_differs_is_not_hidden_by_equal_size() -> None:
    found = layers(EQUAL, {"qv": 0.0, "kv": 0.0, "all": 0.0})
    qv, every = found.cells["bf16-r0"], found.cells["bf16-r2"]
    assert check(found, every, qv, PLACEMENT).confounds == ()
    across = check(found, found.cells["nf4-r2"], qv, "precision")  # placement is one difference more: no verdict
    assert (across.confounded, across.confounds) == (True, (PLACEMENT,))
    slower = copy.deepcopy(dict(every))
    slower["config"]["train"]["learning_rate"] = 1e-4
    assert check(found, slower, qv, PLACEMENT).confounded
    smaller = dict(every) | {"trainable_params": 80_000}
    assert check(found, smaller, qv, "targets").confounds == ("rank",)
    assert check(found, found.cells["nf4-r2"], every, "precision").confounds == ()


def test_rank_alone_or_targets_alone_stay_what_they_are() -> None:
    left, right = config("bf16", 8), config("bf16", 4)
    assert placed(differences(left, right), [100, 100]).changed == ("rank",)
    both = Differences(("targets", "rank", "learning_rate"), ())
    assert placed(both, [100, 100]).changed == (PLACEMENT, "learning_rate")
    assert placed(both, [100, None]) == placed(both, [0, 0]) == placed(both, []) == both
    assert guard(placed(both, [100, 101]), PLACEMENT).text == "the two also differ in learning_rate"


def test_of_equal_variants_one_is_called_worse_in_fewer_than_five_of_a_hundred_studies() -> None:
    """3.3% of 400 studies; here 60 of them, deterministic."""
    same = {"qv": 0.0, "kv": 0.0, "all": 0.0}
    studies = [layers(EQUAL, same, rng=i, items=30) for i in range(60)]
    wrong = [any(v.best == "not best" for v in variants(found) if v.cell["precision"] == "bf16") for found in studies]
    assert sum(wrong) <= 3
