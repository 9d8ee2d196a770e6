"""Loss scales of float16 and early stopping: each member's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from loracle.adapters.flat import FlatParameters
from loracle.spec.study import Train
from loracle.train.optimizer import CohortAdamW
from loracle.train.patience import Patience
from loracle.train.scaling import GROWTH, INITIAL, LossScale
from tests.conftest import text_rows
from tests.engine import RunSpec, base, make_fit

CPU = torch.device("cpu")


def test_an_overflow_halves_one_members_scale_and_skips_its_step_alone() -> None:
    flat = FlatParameters(2, [((1, 2), (2, 1))], torch.float64, CPU)
    optimizer, scale = CohortAdamW(flat, [Train(), Train()], 4), LossScale(2, CPU, on=True)
    flat.grad.fill_(1.0)
    flat.grad[0, 1] = float("inf")
    optimizer.begin(0)
    optimizer.step(torch.ones(2, dtype=torch.float64), scale)
    assert scale.value.tolist() == [INITIAL / 2, INITIAL]
    assert not flat.data[0].any()
    assert flat.data[1].all()
    assert optimizer.active.all()
    assert not optimizer.exp_avg[0].any()
    flat.grad.fill_(INITIAL / 2)
    flat.grad[1] *= 2
    optimizer.begin(1)
    optimizer.step(torch.ones(2, dtype=torch.float64), scale)
    assert flat.data[0].all()
    assert torch.isfinite(flat.data).all()


def test_a_member_that_overflows_at_scale_1_or_loses_its_loss_is_frozen() -> None:
    flat = FlatParameters(2, [((1, 2), (2, 1))], torch.float64, CPU)
    optimizer, scale = CohortAdamW(flat, [Train(), Train()], 40), LossScale(2, CPU, on=True)
    for step in range(17):
        flat.grad.fill_(float("nan"))
        optimizer.begin(step)
        optimizer.step(torch.ones(2, dtype=torch.float64), scale)
    assert scale.value.tolist() == [1.0, 1.0]
    assert not optimizer.active.any()
    other = CohortAdamW(flat, [Train(), Train()], 4)
    flat.grad.fill_(1.0)
    other.begin(0)
    other.step(torch.tensor([1.0, float("nan")], dtype=torch.float64), LossScale(2, CPU, on=True))
    assert other.active.flatten().tolist() == [True, False]


def test_the_rule_is_grad_scalers() -> None:
    """Against ``torch.amp.GradScaler``'s own update, fed with the same overflows."""
    scale = LossScale(1, CPU, on=True)
    value = torch.tensor(INITIAL)
    tracker = torch.zeros(1, dtype=torch.int32)[0]
    ones = torch.ones(1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3 * GROWTH):
        overflow = bool(torch.rand((), generator=generator) < 0.0005)
        scale.update(ones, ones * (float("inf") if overflow else 1.0))
        torch._amp_update_scale_(value, tracker, torch.tensor(float(overflow)), 2.0, 0.5, GROWTH)
        assert float(scale.value) == float(value)
        assert int(scale.good) == int(tracker)
    assert float(value) != INITIAL


def test_scaled_losses_train_like_unscaled_ones() -> None:
    """A power of two is exact: the same losses, bit for bit."""
    rows = text_rows(16)
    found = []
    for on in (False, True):
        fit, _ = make_fit(base(), [RunSpec("a"), RunSpec("b", rank=2, seed=3)], rows, 4, loss_scaling=on)
        for step in range(4):
            fit.step(step, fit.batches(step))
        found.append(fit.losses)
    assert torch.equal(*found)


# -- early stopping ---------------------------------------------------------------------------------------------------


def test_patience_counts_evaluations_without_a_lower_loss() -> None:
    patience = Patience(3, 2)
    seen = [[3.0, 3.0, 3.0], [2.9, 3.1, 3.0], [2.8, 3.2, 2.9], [2.9, 1.0, 2.95], [2.7, 1.0, 2.96]]
    stopped = [patience.after(10 * i, losses, [False] * 3) for i, losses in enumerate(seen)]
    assert stopped[1:3] == [[False, False, False], [False, True, False]]
    assert patience.stopped_at == [None, 20, 40]
    assert not patience.all_stopped
    again = Patience(3, 2)
    again.restore(patience.as_state())
    assert again.as_state() == patience.as_state()


def test_nobody_stops_without_a_limit_and_the_diverged_are_not_waited_for() -> None:
    free = Patience(1, None)
    for step in range(9):
        assert free.after(step, [1.0], [False]) == [False]
    held = Patience(2, 1)
    held.after(0, [1.0, 1.0], [False, False])
    held.after(1, [1.0, float("nan")], [False, True])
    assert held.stopped_at == [1, None]
    assert held.all_stopped


@pytest.fixture
def curve() -> list[list[float]]:
    return [[5.0, 5.0], [4.0, 5.5], [3.0, 5.6], [3.5, 5.7], [3.6, 5.8], [3.7, 5.9], [3.8, 6.0]]


def test_a_stopped_member_keeps_its_parameters_and_its_neighbour_goes_on(curve: list[list[float]]) -> None:
    specs = [RunSpec("a"), RunSpec("b", rank=2, seed=3)]
    fit, cohort = make_fit(base(), specs, text_rows(16), 12, eval_every=2, early_stopping=2)
    values = iter(curve)
    snapshots: dict[int, Any] = {}

    def evaluate() -> list[float]:
        snapshots[fit.done_steps] = cohort.flat.data.clone()
        return next(values)

    fit.run(evaluate, lambda state: None, lambda facts: None, lambda: False)
    assert fit.patience.stopped_at == [8, 4]
    assert fit.done_steps == 8
    assert torch.equal(snapshots[4][1], cohort.flat.data[1])
    assert not torch.equal(snapshots[4][0], cohort.flat.data[0])
    assert (fit.taken(0), fit.taken(1)) == (8, 4)
    assert fit.tokens_seen(1) == int(fit.tokens[:4, 1].sum())

    alone, _ = make_fit(base(), specs[:1], text_rows(16), 12, eval_every=2, early_stopping=2)
    values = iter([[row[0]] for row in curve])
    alone.run(lambda: next(values), lambda state: None, lambda facts: None, lambda: False)
    assert alone.patience.stopped_at == [8]
