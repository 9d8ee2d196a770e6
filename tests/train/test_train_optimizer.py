"""The cohort's optimizer, schedules and data order against torch's and Transformers' own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from loracle.adapters.flat import FlatParameters
from loracle.spec.study import Train
from loracle.train.optimizer import CohortAdamW
from loracle.train.order import DataOrder
from loracle.train.scaling import LossScale
from loracle.train.schedule import learning_rates
from tests.conftest import text_rows
from tests.engine import RunSpec, base, train, worst

STEPS = 120
TRAINS = [
    Train(learning_rate=1e-2),
    Train(learning_rate=3e-3, weight_decay=0.1, max_grad_norm=None, schedule="cosine", warmup_steps=10),
    Train(learning_rate=1e-3, beta1=0.8, beta2=0.95, epsilon=1e-6, max_grad_norm=0.05, schedule="constant"),
    Train(learning_rate=2e-3, beta1=0.0, beta2=0.5, weight_decay=0.01, max_grad_norm=1e3, warmup_ratio=0.25),
]

UNSCALED = LossScale(1, torch.device("cpu"), on=False)


def test_cohort_adamw_is_torchs_for_every_member() -> None:
    """fp64, 120 steps; weight decay, betas, epsilon, clipping and schedules are each member's own."""
    generator = torch.Generator().manual_seed(0)
    flat = FlatParameters(len(TRAINS), [((3, 5), (7, 3))], torch.float64, torch.device("cpu"))
    flat.data.copy_(torch.randn(flat.data.shape, generator=generator, dtype=torch.float64))
    ours = CohortAdamW(flat, TRAINS, STEPS)
    parameters = [torch.nn.Parameter(row.clone()) for row in flat.data]
    theirs = [
        torch.optim.AdamW([p], lr=t.learning_rate, betas=(t.beta1, t.beta2), eps=t.epsilon, weight_decay=t.weight_decay)
        for p, t in zip(parameters, TRAINS, strict=True)
    ]
    for step in range(STEPS):
        grads = torch.randn(flat.data.shape, generator=generator, dtype=torch.float64) * 10 ** (step % 5 - 3)
        flat.grad.copy_(grads)
        ours.begin(step)
        norms = ours.step(torch.zeros(len(TRAINS), dtype=torch.float64), UNSCALED)
        for k, (p, optimizer, settings) in enumerate(zip(parameters, theirs, TRAINS, strict=True)):
            p.grad = grads[k].clone()
            limit = float("inf") if settings.max_grad_norm is None else settings.max_grad_norm
            norm = torch.nn.utils.clip_grad_norm_([p], limit)
            assert float(abs(norm - norms[k])) < 1e-12 * max(1.0, float(norm))
            optimizer.param_groups[0]["lr"] = learning_rates(settings, STEPS)[step]
            optimizer.step()
            assert (p.detach() - flat.data[k]).abs().max() < 1e-12, (step, k)


def test_a_member_with_a_bad_gradient_stops_and_its_neighbour_does_not() -> None:
    flat = FlatParameters(2, [((1, 2), (2, 1))], torch.float64, torch.device("cpu"))
    optimizer = CohortAdamW(flat, [Train(), Train()], 3)
    flat.grad.fill_(1.0)
    flat.grad[0, 0] = float("nan")
    optimizer.begin(0)
    optimizer.step(torch.zeros(2, dtype=torch.float64), UNSCALED)
    assert not flat.data[0].any()
    assert bool(flat.data[1].all())
    flat.grad.fill_(1.0)
    optimizer.begin(1)
    optimizer.step(torch.tensor([0.0, float("inf")], dtype=torch.float64), UNSCALED)
    assert optimizer.active.flatten().tolist() == [False, False]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(
    "warmup", [{"warmup_steps": 0}, {"warmup_steps": 7}, {"warmup_ratio": 0.3}, {"warmup_steps": 50}]
)
def test_schedules_are_transformers(schedule: str, warmup: dict[str, float]) -> None:
    from transformers import get_scheduler

    steps = 31
    settings = Train(learning_rate=3e-4, schedule=schedule, **warmup)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    length = int(warmup["warmup_steps"]) if "warmup_steps" in warmup else 10  # ceil(0.3 * 31)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=length, num_training_steps=steps)
    for step, rate in enumerate(learning_rates(settings, steps)):
        assert rate == pytest.approx(theirs.get_last_lr()[0], rel=1e-12, abs=1e-18), step
        optimizer.step()
        theirs.step()


def test_data_order_sees_every_row_once_an_epoch() -> None:
    stream = DataOrder(3, 10).take(0, 40)
    epochs = [stream[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_data_order_is_a_pure_function_of_the_step() -> None:
    whole = DataOrder(3, 7).take(0, 60)
    order = DataOrder(3, 7)
    for start in (48, 0, 12, 36):  # any order of asking, over epoch ends
        assert order.take(start, 12) == whole[start : start + 12]
    assert DataOrder(4, 7).take(0, 60) != whole


def test_gradient_accumulation_is_one_big_batch() -> None:
    """The mean is over tokens, not over micro-batches: rows of unequal target counts, and dropout, in fp64."""
    rows = text_rows(24)
    assert len({row.target_tokens for row in rows}) > 2
    loaded = base(dtype="float64")
    specs = [RunSpec("a", dropout=0.2, train=Train(learning_rate=1e-4)), RunSpec("b", rank=2, targets=("q",), seed=3)]
    losses, adapters = train(loaded, specs, rows, 3, batch_size=4, accumulation=1)
    split_losses, split = train(loaded, specs, rows, 3, batch_size=1, accumulation=4)
    assert (losses - split_losses).abs().max() < 1e-9
    assert worst(adapters[0], split[0]) < 1e-6
    assert worst(adapters[1], split[1]) < 1e-6


def test_length_grouped_batches_hold_every_row_once_and_little_padding() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 100, 1003)
    order = DataOrder(5, 1003, lengths.tolist(), 8)
    epochs = [order.take(1003 * i, 1003) for i in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(1003))] * 2
    assert epochs[0] != epochs[1]
    padded = [lengths[epochs[0][i : i + 8]] for i in range(0, 1000, 8)]
    plain = [lengths[DataOrder(5, 1003).take(i, 8)] for i in range(0, 1000, 8)]
    waste = [sum(8 * b.max() - b.sum() for b in batches) / sum(b.sum() for b in batches) for batches in (padded, plain)]
    assert waste[0] < 0.05 < 0.4 < waste[1]
    longest = [b.max() for b in padded]
    assert abs(np.corrcoef(longest, range(len(longest)))[0, 1]) < 0.3  # no drift of length with the step
