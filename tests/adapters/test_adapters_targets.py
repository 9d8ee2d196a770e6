"""From target names to sites, on a fused architecture (GPT-2) and an unfused one (Llama)."""

from __future__ import annotations

import pytest

from loracle.adapters.targets import check_rank, known_targets, resolve_targets
from loracle.base.errors import SpecError
from loracle.models.linears import Linear

GPT2 = [
    linear
    for i in range(2)
    for linear in (
        Linear(f"transformer.h.{i}.attn.c_attn", i, "qkv", 8, 24, {"q": (0, 8), "k": (8, 16), "v": (16, 24)}),
        Linear(f"transformer.h.{i}.attn.c_proj", i, "o", 8, 8, {"o": (0, 8)}),
        Linear(f"transformer.h.{i}.mlp.c_fc", i, "up", 8, 32, {"up": (0, 32)}),
        Linear(f"transformer.h.{i}.mlp.c_proj", i, "down", 32, 8, {"down": (0, 8)}),
    )
]
LLAMA = [
    Linear("model.layers.0.self_attn.q_proj", 0, "q", 8, 8, {"q": (0, 8)}),
    Linear("model.layers.0.self_attn.v_proj", 0, "v", 8, 4, {"v": (0, 4)}),
    Linear("model.layers.0.mlp.down_proj", 0, "down", 32, 8, {"down": (0, 8)}),
]


def test_logical_names_are_slices_of_a_fused_layer() -> None:
    sites = resolve_targets(GPT2, ["q", "v"])
    assert [(s.layer, s.kind, s.start, s.stop) for s in sites] == [
        (0, "q", 0, 8),
        (0, "v", 16, 24),
        (1, "q", 0, 8),
        (1, "v", 16, 24),
    ]
    assert sites[0].key == "transformer.h.0.attn.c_attn[0:8]"
    assert sum(site.params(2) for site in sites) == 4 * 2 * (8 + 8)


def test_logical_names_are_layers_of_their_own_elsewhere() -> None:
    sites = resolve_targets(LLAMA, ["v", "q"])
    assert [(s.module, s.width) for s in sites] == [
        ("model.layers.0.self_attn.q_proj", 8),
        ("model.layers.0.self_attn.v_proj", 4),
    ]
    assert sites == resolve_targets(LLAMA, ["q_proj", "v_proj"])


@pytest.mark.parametrize(
    ("targets", "count"),
    [
        (["c_proj"], 4),  # raw: attention's and the MLP's, as PEFT takes it
        (["mlp.c_proj"], 2),
        (["o"], 2),
        (["transformer.h.1.mlp.c_fc"], 1),
        (["c_attn"], 2),
        ("all-linear", 8),
        (["all-linear"], 8),
        (r"transformer\.h\.\d+\.mlp\..*", 4),
        (["q", "k", "v"], 6),
        (["down", "mlp.c_proj"], 2),  # two names of one site
    ],
)
def test_what_a_name_means(targets: list[str] | str, count: int) -> None:
    assert len(resolve_targets(GPT2, targets)) == count


def test_a_regex_is_one_only_as_a_plain_word() -> None:
    with pytest.raises(SpecError, match="matches no linear layer"):
        resolve_targets(GPT2, [r".*c_fc"])


@pytest.mark.parametrize("name", ["c_atn", "query", "gate", "transformer.h.9.attn.c_attn", "["])
def test_an_unknown_name_lists_what_would_match(name: str) -> None:
    with pytest.raises(SpecError) as caught:
        resolve_targets(GPT2, ["q", name])
    text = str(caught.value)
    assert text.startswith(f"adapter.targets: '{name}' matches no linear layer of this model")
    assert "these would: q, k, v, o, up, down, c_attn, c_fc, c_proj, all-linear" in text
    assert ("did you mean 'c_attn'" in text) == (name == "c_atn")
    assert "\n" not in text


def test_known_targets_all_match() -> None:
    for linears in (GPT2, LLAMA):
        for name in known_targets(linears):
            assert resolve_targets(linears, [name])


def test_a_rank_above_the_width() -> None:
    sites = resolve_targets(LLAMA, ["q", "v"])
    check_rank(sites, 4)
    with pytest.raises(
        SpecError, match=r"adapter\.rank: 5 is above the width 4 of model\.layers\.0\.self_attn\.v_proj"
    ):
        check_rank(sites, 5)
