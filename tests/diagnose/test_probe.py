"""What a probe notes of the batches that it trained on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from loracle.adapters.batch import make_batch, pack, packed_needs
from loracle.diagnose.forecast import Geometry, Shape
from loracle.diagnose.probe import _timed
from loracle.train.order import DataOrder
from loracle.train.shapes import PackedShape

LENGTHS = (5, 9, 7, 3)
ROWS: list[Any] = [Shape([1] * n, [-100, *[1] * (n - 1)], None) for n in LENGTHS]


def timed(batch: Any) -> Geometry:
    fit: Any = SimpleNamespace(
        settings=SimpleNamespace(batch_size=4, gradient_accumulation=1),
        rows=ROWS,
        orders=[DataOrder(0, 4)],
        batches=lambda step: [batch],
        step=lambda step, batches: None,
    )
    times, tokens, geometry, step = _timed(fit, 2, 1, torch.device("cpu"), lambda *a, **k: None)
    assert len(times) == 2
    assert step == 0
    assert tokens == 2 * sum(LENGTHS)
    return geometry


def test_padded_rows_are_rows():
    assert timed(make_batch([ROWS], 0)) == Geometry(4, max(LENGTHS), 5)  # 20 scored positions


def test_a_packed_batch_is_one_row_not_each_row_as_long_as_all():
    """Its length is all rows', so four such rows would be four times the activations."""
    tokens, scored, longest = packed_needs(ROWS)
    assert (tokens, scored) == (24, 20)
    assert timed(pack([ROWS], 0, PackedShape(32, 32, longest))) == Geometry(1, 32, 32)
