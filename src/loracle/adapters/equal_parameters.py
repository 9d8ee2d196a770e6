"""A rank from a number of trainable parameters: the one whose adapter comes closest to it, from shapes alone.

Counted is what the method trains on its targets; a classification head, ``modules_to_save`` and added tokens are the same in
every variant and are left out. Not covered: ranks by layer, which could come closer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from loracle.adapters.alone import count_trainable
from loracle.adapters.targets import resolve_targets
from loracle.base.errors import SpecError
from loracle.models.linears import Linear
from loracle.models.load import meta_model
from loracle.spec.factors import targets_label
from loracle.spec.study import EQUAL_SIZE, Cell

WHERE = "adapter.parameters"


def with_rank(cell: Cell, linears: Sequence[Linear], config: Any) -> tuple[Cell, dict[str, Any]]:
    """The cell with the rank that its ``parameters`` ask for, and ``{asked, have, off_percent}``. ``config``: the base's.

    Raises ``SpecError`` where no rank comes within 10%, and for a method whose size does not grow with its rank.
    """
    adapter = cell.adapter
    asked = _asked(cell, linears)
    most = min(min(site.d_in, site.width) for site in resolve_targets(linears, adapter.targets))
    count = _counter(cell, linears, config)
    rank = closest_rank(asked, count, most)
    if rank is None:
        raise SpecError(f"the size of {adapter.method} does not grow with its rank: give it a rank", WHERE)
    have = count(rank)
    if abs(have - asked) > EQUAL_SIZE * asked:
        raise SpecError(_too_far(cell, asked, rank, count, most), WHERE)
    fixed = adapter.model_copy(update={"rank": rank, "parameters": None})
    found = {"asked": asked, "have": have, "off_percent": 100 * (have - asked) / asked}
    return cell.model_copy(update={"adapter": fixed}), found


def closest_rank(asked: int, count: Callable[[int], int], most: int) -> int | None:
    """The rank from 1 to ``most`` whose ``count`` is closest to ``asked``, of two the smaller; None where rank 2 counts no more
    than rank 1. Exact where the count is a straight line in the rank, as LoRA's is."""
    step = count(2) - count(1)
    if step <= 0:
        return None
    exact = 1 + (asked - count(1)) / step
    near = [min(max(1, rank), most) for rank in (math.floor(exact), math.ceil(exact))]
    return min(near, key=lambda rank: (abs(count(rank) - asked), rank))


def _asked(cell: Cell, linears: Sequence[Linear]) -> int:
    """The number itself, or that of the LoRA that stands for it."""
    asked = cell.adapter.parameters
    assert asked is not None
    if isinstance(asked, int):
        return asked
    return sum(site.params(asked.rank) for site in resolve_targets(linears, asked.targets, f"{WHERE}.targets"))


def _counter(cell: Cell, linears: Sequence[Linear], config: Any) -> Callable[[int], int]:
    """Rank → parameters of the cell's method on its targets."""
    if cell.adapter.method == "lora":
        sites = resolve_targets(linears, cell.adapter.targets)
        return lambda rank: sum(site.params(rank) for site in sites)

    @cache
    def by_peft(rank: int) -> int:
        adapter = cell.adapter.model_copy(update={"rank": rank, "parameters": None, "modules_to_save": ()})
        bare = cell.model_copy(
            update={
                "adapter": adapter,
                "base": cell.base.model_copy(update={"add_tokens": ()}),
                "task": cell.task.model_copy(update={"type": "generation"}),
            }
        )
        return count_trainable(bare, meta_model(config), linears)

    return by_peft


def _too_far(cell: Cell, asked: int, rank: int, count: Callable[[int], int], most: int) -> str:
    have, name = count(rank), targets_label(cell.adapter.targets)
    name = name if cell.adapter.method == "lora" else f"{cell.adapter.method} on {name}"
    off = f"{name} comes no closer to {asked:,} parameters than {have:,} at rank {rank} ({(have - asked) / asked:+.0%})"
    if rank == most and have < asked:
        return f"{off}, the largest rank its layers bear: ask for {have:,} or fewer, or leave {name} out"
    least = math.ceil((count(2) - count(1)) / (2 * EQUAL_SIZE))  # half a step is then no more than is allowed
    return f"{off}: ask for {max(least, count(1)):,} or more, or leave {name} out"
