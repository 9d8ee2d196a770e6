"""What fits on a GPU, decided from forecasts that are straight lines."""

from __future__ import annotations

from typing import Any

from loracle.diagnose.fitting import (
    LARGEST_COHORT,
    MARGIN,
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


def test_largest_is_exact_on_a_line_and_checked_off_one() -> None:
    assert largest(4, 1000, lambda n: 100 + 50 * n) == 18
    assert largest(4, 1000, lambda n: 100 + 50 * n, most=10) == 10
    assert largest(8, 120, lambda n: 100 + 50 * n) is None
    assert largest(8, 160, lambda n: 100 + 50 * n) == 1
    bent = largest(4, 1000, lambda n: 100 + 50 * n + (n > 10) * 7 * (n - 10))
    assert bent is not None
    assert 100 + 50 * bent + (bent > 10) * 7 * (bent - 10) <= 1000
    assert bent >= 16


def test_members_leave_a_margin() -> None:
    found = members(Budget(10_000, "a card"), lambda n: 1000 + 100 * n, 500)
    assert (found["fixed_bytes"], found["bytes_per_member"], found["margin"]) == (1000, 100, MARGIN)
    assert found["size"] == min(LARGEST_COHORT, int((10_000 * MARGIN - 1000) / 100))
    assert members(Budget(10_000, "a card"), lambda n: 1000 + 100 * n, 5)["size"] == 5
    assert members(Budget(2000, "a card"), lambda n: 1000 + 100 * n, 500)["size"] == int((2000 * MARGIN - 1000) / 100)
    alone = members(Budget(1000, "a card"), lambda n: 1000 + 100 * n, 500)
    assert alone["size"] == 1
    assert "more than there is" in alone["reason"]


def test_a_smaller_batch_keeps_the_step() -> None:
    assert batch_of(SETTINGS, 2) == {"train.batch_size": 2, "train.gradient_accumulation": 4}
    assert batch_of(SETTINGS, 3) == {"train.batch_size": 3}
    config = {"precision": "bf16", "train": {"batch_size": 8, "steps": 1}}
    assert changed(config, batch_of(SETTINGS, 2))["train"] == {"batch_size": 2, "steps": 1, "gradient_accumulation": 4}
    assert config["train"] == {"batch_size": 8, "steps": 1}
