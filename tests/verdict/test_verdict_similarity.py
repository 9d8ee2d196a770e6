from __future__ import annotations

import pytest
from verdict_study import changed, only, study

from loracle.verdict import decide, similarity


def _pair(kind: str, value: float, seed: int, rank: int = 8) -> dict:  # type: ignore[type-arg]
    layers = [{"layer": i, "kind": "qkv", "module": f"h.{i}", "cosine": value + d} for i, d in ((0, 0.01), (1, -0.01))]
    names = {"a": f"bf16-r{rank}-s{seed}", "b": f"nf4-r{rank}-s{seed}" if kind == "precision" else f"null-s{seed}"}
    return names | {"kind": kind, "rank": rank, "targets": ["c_attn"], "seed": seed, "layers": layers}


def _ask(precision: list[float], null: list[float]):  # type: ignore[no-untyped-def]
    base = study({8: 0.0}, seeds=max(len(precision), 1))
    pairs = [_pair("precision", v, 42 + i) for i, v in enumerate(precision)]
    pairs += [_pair("null", v, 42 + i) for i, v in enumerate(null)]
    found = changed(
        base,
        similarity={"schema": 1, "pairs": pairs},
        questions=[{"name": "similarity", "margin": None, "primary": True}],
    )
    return only(decide(found), "similarity")


def test_similar_updates_are_supported_beside_the_null() -> None:
    entry = _ask([0.98, 0.981, 0.979], [0.97, 0.975])
    assert entry["verdict"] == "supported"
    assert entry["estimate"] == pytest.approx(0.98)
    assert "the null, 2 pairs" in entry["statement"].lower()
    assert entry["margin"] == 0.95
    assert len(entry["records"]) == 10


def test_inside_the_null_says_nothing_against_quantization() -> None:
    entry = _ask([0.90, 0.905, 0.898], [0.90, 0.89, 0.91])
    assert entry["verdict"] == "rejected"
    assert entry["difference"] == "not shown"
    assert "says nothing against quantization" in entry["statement"]


def test_below_the_null_is_said() -> None:
    entry = _ask([0.80, 0.81, 0.79], [0.97, 0.975, 0.98])
    assert entry["difference"] == "worse"
    assert "changes the update more than data order does" in entry["statement"]


def test_without_a_null_or_with_two_seeds_it_is_undecided() -> None:
    entry = _ask([0.98, 0.981, 0.979], [])
    assert entry["verdict"] == "undecided"
    assert "no null" in entry["statement"]
    entry = _ask([0.98, 0.981], [0.97, 0.96])
    assert (entry["verdict"], entry["interval"]) == ("undecided", None)
    assert _ask([], [0.97])["verdict"] == "undecided"


def test_layer_profile() -> None:
    pairs, null = [_pair("precision", v, i) for i, v in enumerate((0.9, 0.8, 0.7))], [_pair("null", 0.95, 1)]
    first, second = similarity.layer_profile(pairs, null)
    assert (first.layer, second.layer) == (0, 1)
    assert first.mean == pytest.approx(0.81)
    assert second.mean == pytest.approx(0.79)
    assert first.interval is not None
    assert first.null_range == pytest.approx((0.96, 0.96))


def test_null_of_another_rank_is_used_but_named() -> None:
    null, alike = similarity.null_pairs([_pair("null", 0.9, 1, rank=4)], 8, ["c_attn"])
    assert len(null) == 1
    assert not alike
