from __future__ import annotations

from verdict_study import config, study

from loracle.verdict.confounds import RANK_AND_SCALE, TRAINABLE, differences, guard, precision_label
from loracle.verdict.scope import check


def test_precision_alone_brings_its_block_settings_along() -> None:
    found = differences(config("nf4", 8), config("bf16", 8))
    assert found.changed == ("precision",)
    assert not guard(found, "precision").confounded


def test_the_published_memory_comparison_is_caught() -> None:
    found = differences(config("nf4", 8, gradient_checkpointing=True), config("bf16", 8))
    stands = guard(found, "precision")
    assert stands.confounded
    assert stands.confounds == ("gradient_checkpointing",)
    assert "gradient_checkpointing" in stands.text
    recipe = guard(found, "precision", {"as": "recipe"})
    assert not recipe.confounded
    assert recipe.recipe
    assert "recipes" in recipe.text


def test_paths_storage_and_seeds_are_no_difference() -> None:
    a, b = config("nf4", 8), config("nf4", 8)
    a |= {"storage": "quantized", "init_seed": 1, "order_seed": 2}
    a["base"] = a["base"] | {"model": "/elsewhere/gpt2-demo", "name": "other"}
    a["task"] = a["task"] | {"path": "/elsewhere"}
    assert differences(a, b).changed == ()


def test_another_base_or_task_is_a_difference() -> None:
    a, b = config("nf4", 8), config("nf4", 8)
    a["base"] = a["base"] | {"fingerprint": "beef"}
    a["task"] = a["task"] | {"name": "sst2"}
    assert differences(a, b).changed == ("base", "task")


def test_rank_at_fixed_alpha_moves_the_scale() -> None:
    found = differences(config("bf16", 4), config("bf16", 16))
    assert found.changed == ("rank",)
    assert found.derived == (RANK_AND_SCALE,)
    stands = guard(found, "rank")
    assert not stands.confounded
    assert stands.text == "rank and scale together"


def test_alpha_2r_keeps_the_scale() -> None:
    found = differences(config("bf16", 4, alpha=8), config("bf16", 16, alpha=32))
    assert found.changed == ("rank",)
    assert found.derived == ()


def test_alpha_set_freely_is_a_confound() -> None:
    assert guard(differences(config("bf16", 4, alpha=9), config("bf16", 16, alpha=32)), "rank").confounded


def test_two_block_formats_must_share_their_settings() -> None:
    fp4 = config("nf4", 8) | {"precision": "fp4", "double_quant": False}
    assert differences(config("nf4", 8), fp4).changed == ("precision", "double_quant")


def test_seeds_of_a_pair_that_differ_are_named() -> None:
    stands = guard(differences(config("nf4", 8), config("bf16", 8)), "precision", also=["order_seed"])
    assert stands.confounded
    assert stands.confounds == ("order_seed",)


def test_precision_by_pattern() -> None:
    assert precision_label({"default": "nf4", "h.1.attn.c_proj": "bf16"}) == "nf4 + bf16 in h.1.attn.c_proj"
    mixed = config("nf4", 8) | {"precision": {"default": "nf4", "h.1": "bf16"}}
    assert differences(mixed, config("bf16", 8)).changed == ("precision",)


def patterned(alpha: float = 16, **adapter: object) -> dict:
    found = config("bf16", 8, alpha=alpha)
    return found | {"adapter": found["adapter"] | adapter}


def test_ranks_by_layer_are_one_factor() -> None:
    kept = patterned(
        rank_pattern={"h.0.c_attn": 4, "h.1.c_attn": 12}, alpha_pattern={"h.0.c_attn": 8, "h.1.c_attn": 24}
    )
    found = differences(kept, patterned())
    assert (found.changed, found.derived) == (("rank_pattern",), ())
    assert not guard(found, "rank_pattern").confounded
    assert guard(found, "precision").confounds == ("rank_pattern",)
    assert differences(kept, patterned(rank_pattern={}, alpha_pattern={})).changed == ("rank_pattern",)


def test_ranks_by_layer_at_a_fixed_alpha_move_the_scale() -> None:
    found = differences(patterned(rank_pattern={"h.0.c_attn": 4}), patterned())
    assert (found.changed, found.derived) == (("rank_pattern",), (RANK_AND_SCALE,))
    assert guard(found, "rank_pattern").text == "rank and scale together"


def test_alpha_by_layer_alone_is_a_factor_of_its_own() -> None:
    assert differences(patterned(alpha_pattern={"h.0": 4}), patterned()).changed == ("alpha_pattern",)
    both = patterned(rank_pattern={"h.0": 4}, alpha_pattern={"h.0": 16})
    assert differences(both, patterned()).changed == ("rank_pattern", "alpha_pattern")


def test_another_number_of_parameters_is_a_derived_change() -> None:
    kept = patterned(rank_pattern={"h.0": 4}, alpha_pattern={"h.0": 8})
    for count, confounds in ((1009, ()), (1011, (TRAINABLE,)), (None, ())):
        arm = {"id": "a", "config": kept, "trainable_params": count}
        stands = check(
            study({8: 0.0}), arm, {"id": "b", "config": patterned(), "trainable_params": 1000}, "rank_pattern"
        )
        assert stands.confounds == confounds
    assert (
        check(
            study({8: 0.0}),
            {"id": "a", "config": kept, "trainable_params": 1500},
            {"id": "b", "config": patterned(), "trainable_params": 1000},
            "rank_pattern",
        ).text
        == "rank and number of trainable parameters together"
    )
