"""What fits on a GPU, decided from forecasts that are straight lines."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from loracle.diagnose.fitting import (
    LARGEST_COHORT,
    MARGIN,
    TRIES,
    Budget,
    Change,
    Settings,
    batch_of,
    changed,
    judge,
    largest,
    members,
)

SETTINGS = Settings(
    batch_size=8,
    accumulation=1,
    rank=16,
    most_rank=64,
    checkpointing=False,
    may_checkpoint=True,
    optimizer="adamw",
    precision="bf16",
    may_quantize=True,
)


def needs(change: Change) -> int:
    """A base of 1000, 100 a row (30 under checkpointing), 10 a rank (5 under 8 bits); nf4 takes the base to 250."""
    base = 250 if change.get("precision") == "nf4" else 1000
    row = 30 if change.get("train.gradient_checkpointing") else 100
    rank = 5 if "train.optimizer" in change else 10
    return base + row * int(change.get("train.batch_size", 8)) + rank * int(change.get("adapter.rank", 16))


def test_a_cell_that_fits_says_how_far_it_could_grow() -> None:
    found = judge(SETTINGS, Budget(3000, "a card"), needs)
    assert found == {
        "budget_bytes": 3000,
        "budget_source": "a card",
        "fits": True,
        "needs_bytes": 1960,
        "largest_batch": 18,
        "largest_rank": 64,
        "change": None,
        "change_needs_bytes": None,
    }
    assert judge(SETTINGS, Budget(2000, "a card"), needs)["largest_rank"] == 20


def test_the_mildest_change_that_helps_comes_first() -> None:
    def change(budget: int, **settings: Any) -> Any:
        return judge(Settings(**{**vars(SETTINGS), **settings}), Budget(budget, "x"), needs)["change"]

    assert change(1900) == {"train.gradient_checkpointing": True}
    assert change(1900, checkpointing=True) == {"train.batch_size": 4, "train.gradient_accumulation": 2}
    assert change(1300, may_checkpoint=False) == {"train.batch_size": 1, "train.gradient_accumulation": 8}
    assert change(1900, checkpointing=True, batch_size=1) == {"train.optimizer": "paged_adamw_8bit"}
    assert change(1250, may_checkpoint=False) == {"precision": "nf4"}
    assert change(1810, checkpointing=True, batch_size=1, may_quantize=False, optimizer="paged_adamw_8bit") == {
        "adapter.rank": 1
    }
    assert change(100) is None


def test_nothing_known_nothing_said() -> None:
    found = judge(SETTINGS, Budget(3000, "a card"), lambda change: None)
    assert found["fits"] is None
    assert found["largest_batch"] is None


SHAPES = {
    "a line": lambda n: 100 + 50 * n,
    "bent": lambda n: 100 + 50 * n + (n > 10) * 7 * (n - 10),
    "in blocks": lambda n: 100 + 200 * (n // 7),
    "flat, then steep": lambda n: 400 + (n > 30) * 90 * (n - 30),
    "steep, then flat": lambda n: 90 * min(n, 9) + n,
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("now", [1, 2, 4, 8, 60])
def test_the_largest_that_fits_is_found_however_needs_grow(shape: Callable[[int], int], now: int) -> None:
    for budget in (90, 120, 160, 450, 1000, 1010, 5000):
        asked: list[int] = []

        def needs(n: int, asked: list[int] = asked) -> int:
            asked.append(n)
            return shape(n)

        found, true = (
            largest(now, budget, needs, 500),
            max((n for n in range(1, 501) if shape(n) <= budget), default=None),
        )
        assert len(asked) <= TRIES
        if true is None:
            assert found is None
        else:
            assert found is not None
            assert shape(found) <= budget
            assert true - found <= max(1, true // 25), (now, budget, found, true)


def test_largest_ends_where_nothing_is_known() -> None:
    assert largest(4, 1000, lambda n: None, 10) is None
    assert largest(4, 1000, lambda n: 10 if n < 8 else None, 100) == 4
    assert largest(4, 1000, lambda n: 100 + 50 * n, 10) == 10


def test_members_leave_a_margin() -> None:
    found = members(Budget(10_000, "a card"), lambda n: 1000 + 100 * n, 500)
    assert (found["fixed_bytes"], found["bytes_per_member"], found["margin"]) == (1000, 100, MARGIN)
    assert found["size"] == min(LARGEST_COHORT, int((10_000 * MARGIN - 1000) / 100))
    assert members(Budget(10_000, "a card"), lambda n: 1000 + 100 * n, 5)["size"] == 5
    assert members(Budget(2000, "a card"), lambda n: 1000 + 100 * n, 500)["size"] == int((2000 * MARGIN - 1000) / 100)
    alone = members(Budget(1000, "a card"), lambda n: 1000 + 100 * n, 500)
    assert alone["size"] == 1
    assert "more than there is" in alone["reason"]


def test_as_many_members_as_fit_and_a_line_through_what_was_forecast() -> None:
    def needs(n: int) -> int:  # the first alone has fewer adapters; then in blocks
        return 800 if n == 1 else 1000 + 300 * (n // 3)

    for size in (2, 5, 12):
        found = members(Budget(math.ceil(needs(size) / MARGIN), "a card"), needs, 12)
        assert found["size"] == max(n for n in range(1, 13) if needs(n) <= int(found["budget_bytes"] * MARGIN))
        assert found["fixed_bytes"] + found["size"] * found["bytes_per_member"] == needs(found["size"])
    single = members(Budget(1000, "a card"), needs, 1)
    assert (single["size"], single["fixed_bytes"], single["bytes_per_member"]) == (1, 800, 0)


def test_a_4_bit_precision_comes_with_its_settings() -> None:
    config = {"precision": "bf16", "double_quant": None, "block_size": None}
    assert changed(config, {"precision": "nf4"}) == {"precision": "nf4", "double_quant": True, "block_size": 64}


def test_a_smaller_batch_keeps_the_step() -> None:
    assert batch_of(SETTINGS, 2) == {"train.batch_size": 2, "train.gradient_accumulation": 4}
    assert batch_of(SETTINGS, 3) == {"train.batch_size": 3}
    config = {"precision": "bf16", "train": {"batch_size": 8, "steps": 1}}
    assert changed(config, batch_of(SETTINGS, 2))["train"] == {"batch_size": 2, "steps": 1, "gradient_accumulation": 4}
    assert config["train"] == {"batch_size": 8, "steps": 1}
