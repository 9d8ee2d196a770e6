"""A rank from a number of parameters: the closest there is, how far off it is said to be, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import GPT2Config

from loracle.adapters.equal_parameters import closest_rank, with_rank
from loracle.base.errors import SpecError
from loracle.models.linears import linear_map
from loracle.models.load import meta_model
from loracle.spec.study import Adapter, Cell, Task

CONFIG = GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=128, n_positions=64)
LINEARS = linear_map(meta_model(CONFIG), "gpt2")
QV_STEP = 2 * 2 * (64 + 64)  # parameters of rank 1 on q and v


def chosen(parameters: Any, targets: Any = ("q", "v"), **adapter: Any) -> tuple[int, dict[str, Any]]:
    cell = Cell(task=Task(data="x"), adapter=Adapter(parameters=parameters, targets=targets, **adapter))
    found, sizes = with_rank(cell, LINEARS, CONFIG)
    assert found.adapter.parameters is None
    return found.adapter.rank, sizes


def test_the_closest_rank_by_hand() -> None:
    assert [closest_rank(n, lambda r: 10 * r, 5) for n in (1, 14, 15, 16, 49, 99)] == [1, 1, 1, 2, 5, 5]
    assert closest_rank(33, lambda r: 3 + 10 * r, 8) == 3
    assert closest_rank(33, lambda r: 40 - r, 8) is None
    assert closest_rank(33, lambda r: 40, 8) is None


def test_a_number_and_a_variant_to_be_as_large_as() -> None:
    assert chosen(8 * QV_STEP) == (8, {"asked": 4096, "have": 4096, "off_percent": 0.0})
    rank, sizes = chosen({"targets": ("q", "v"), "rank": 8}, ("q", "k", "v", "o"))
    assert (rank, sizes["asked"], sizes["have"]) == (4, 4096, 4096)
    rank, sizes = chosen(4096, ("up", "down"))  # 2 layers of 2 (64 + 256) parameters a rank
    assert (rank, sizes["have"]) == (3, 3840)
    assert sizes["off_percent"] == pytest.approx(-6.25)


def test_a_method_of_pefts_is_counted_by_peft() -> None:
    rank, sizes = chosen(5000, ("c_attn",), method="dora")  # DoRA's magnitudes, 192 a layer, stay whatever the rank
    assert rank == 9
    assert sizes["have"] == 9 * 2 * (64 + 192) + 2 * 192
    saved = chosen(8 * QV_STEP, ("c_attn",), modules_to_save=("ln_f",))
    assert saved[1]["have"] == saved[0] * 2 * (64 + 192)


@pytest.mark.parametrize(
    ("parameters", "targets", "words"),
    [
        (700, ("q", "v"), "qv comes no closer to 700 parameters than 512 at rank 1 (-27%): ask for 2,560 or more, or"),
        (
            10**6,
            ("q", "v"),
            "at rank 64 (-97%), the largest rank its layers bear: ask for 32,768 or fewer, or leave qv out",
        ),
        ({"targets": ("qq",), "rank": 2}, ("q",), "adapter.parameters.targets: 'qq' matches no linear layer"),
    ],
)
def test_what_is_refused(parameters: Any, targets: Any, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        chosen(parameters, targets)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
