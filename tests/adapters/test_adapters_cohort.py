"""The cohort layer: padding, absent members, dropout, batches, and where the head runs."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from loracle.adapters.batch import make_batch, scored
from loracle.adapters.cohort import attach, detach, initial_a
from loracle.adapters.dropout import keep_mask, layer_key, step_keys, token_codes
from loracle.evaluate.generate import greedy
from loracle.evaluate.loss import item_losses
from loracle.spec.study import Train
from tests.conftest import text_rows
from tests.engine import RunSpec, base, make_fit, member

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Tokens:
    input_ids: list[int]
    labels: list[int]
    label_id: int | None = None


# -- batches ----------------------------------------------------------------------------------------------------------


def test_batch_positions_point_before_the_scored_token() -> None:
    first = Tokens([5, 6, 7], [-100, -100, 7])
    second = Tokens([1, 2, 3, 4], [-100, 2, -100, 4])
    third = Tokens([8, 9], [-100, -100])
    batch = make_batch([[first, second], [second, third]], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7, 0], [1, 2, 3, 4], [1, 2, 3, 4], [8, 9, 0, 0]]
    assert batch.tokens.tolist() == [3, 2]
    assert batch.positions.tolist() == [[1, 4, 6], [8, 10, 8]]
    assert batch.targets.tolist() == [[7, 2, 4], [2, 4, 0]]
    assert batch.row.tolist() == [[0, 1, 1], [0, 0, 0]]
    assert batch.valid.tolist() == [[1, 1, 1], [1, 1, 0]]


def test_a_label_at_position_0_is_never_scored() -> None:
    positions, targets = scored(Tokens([3, 4, 5], [3, 4, -100]))
    assert (positions.tolist(), targets.tolist()) == ([0], [4])


def test_of_a_row_with_a_class_the_last_token_is_scored() -> None:
    batch = make_batch([[Tokens([5, 6, 7], [-100] * 3, 2), Tokens([5], [-100], 0)]], pad_id=0, multiple=4)
    assert batch.positions.tolist() == [[2, 4]]
    assert batch.targets.tolist() == [[2, 0]]
    assert (batch.row.tolist(), batch.tokens.tolist()) == ([[0, 1]], [2])


def test_a_batch_with_nothing_to_score_is_harmless() -> None:
    batch = make_batch([[Tokens([1, 2], [-100, -100])]], pad_id=0, multiple=8)
    assert batch.input_ids.shape == (1, 8)
    assert batch.tokens.tolist() == [0]
    assert batch.valid.tolist() == [[0.0]]


# -- padding and absent members ---------------------------------------------------------------------------------------


def test_padding_and_absent_members_stay_exactly_zero_through_training() -> None:
    loaded = base()
    specs = [
        RunSpec(
            "wide", rank=8, targets=("c_attn", "up"), dropout=0.1, train=Train(learning_rate=5e-3, weight_decay=0.1)
        ),
        RunSpec("narrow", rank=3, targets=("c_attn",), seed=2),
        RunSpec("slice", rank=2, targets=("q",), seed=3),
    ]
    fit, cohort = make_fit(loaded, specs, text_rows(12), 4, batch_size=2)
    for step in range(4):
        fit.step(step, fit.batches(step))
    layer = cohort.layers["transformer.h.0.attn.c_attn"]
    whole = next(i for i, site in enumerate(layer.sites) if site.kind != "q")
    q = 1 - whole
    assert layer.A[whole].shape == (3, 8, 192)
    assert layer.A[q].shape == (3, 2, 192)
    a, b = layer.A[whole].detach(), layer.B[whole].detach()
    assert bool(b[0].any())
    assert bool(b[1, :, :3].any())
    assert not a[1, 3:].any()
    assert not b[1, :, 3:].any()
    assert not a[2].any()  # no parameters here
    assert not b[2].any()
    assert layer.scales[whole].flatten().tolist() == [1.0, pytest.approx(8 / 3), 0.0]
    assert layer.scales[q].flatten().tolist() == [0.0, 0.0, 4.0]
    assert not layer.A[q][:2].detach().any()
    up = cohort.layers["transformer.h.0.mlp.c_fc"]
    assert not up.A[0][1:].detach().any()
    assert not up.B[0][1:].detach().any()
    assert set(cohort.adapter(2)) == {site for site in layer.sites if site.kind == "q"} | {
        site for name, other in cohort.layers.items() for site in other.sites if site.kind == "q"
    }
    detach(loaded.model, cohort)


def test_initial_weights_depend_on_seed_and_site_alone() -> None:
    loaded = base()
    one, two = (member(loaded, RunSpec("x", rank=rank, targets=("q", "v"), seed=7)) for rank in (2, 4))
    cohort = attach(loaded.model, [one, two], torch.float32, CPU)
    for site, (a, b) in cohort.adapter(0).items():
        assert torch.equal(a, initial_a(7, site, 2))
        assert not b.any()
        assert a.abs().max() <= 192**-0.5
    assert not torch.equal(initial_a(7, one.sites[0], 2), initial_a(8, one.sites[0], 2))
    assert not torch.equal(initial_a(7, one.sites[0], 2), initial_a(7, one.sites[1], 2))
    detach(loaded.model, cohort)
    assert type(loaded.model.get_submodule("transformer.h.0.attn.c_attn")).__name__ == "Conv1D"


def test_one_member_alone_is_that_member_of_the_cohort() -> None:
    """The recorded evaluation's way of computing a member (as PEFT does) agrees with the cohort's."""
    loaded = base()
    specs = [
        RunSpec("a", rank=4, targets=("q", "v")),
        RunSpec("b", rank=2, seed=2),
        RunSpec("c", rank=3, targets=("o",)),
    ]
    rows = text_rows(8)
    fit, cohort = make_fit(loaded, specs, rows, 3, batch_size=2)
    for step in range(3):
        fit.step(step, fit.batches(step))
    together = item_losses(cohort, rows, 1, CPU)
    for k in range(3):
        alone = item_losses(cohort, rows, 1, CPU, alone=k)
        assert abs(alone.sums[0] - together.sums[k]).max() < 1e-3
    detach(loaded.model, cohort)


# -- the head ---------------------------------------------------------------------------------------------------------


def test_the_lm_head_runs_only_on_scored_positions_in_training_and_evaluation() -> None:
    loaded = base()
    rows = text_rows(12)
    fit, cohort = make_fit(loaded, [RunSpec("a"), RunSpec("b", rank=2, seed=2)], rows, 1, batch_size=3, accumulation=2)
    seen: list[int] = []
    hook = loaded.model.lm_head.register_forward_hook(lambda m, args, out: seen.append(args[0][..., 0].numel()))
    batches = fit.batches(0)
    fit.step(0, batches)
    assert seen == [batch.positions.numel() for batch in batches]
    scored = sum(int(batch.tokens.sum()) for batch in batches)
    padded = sum(2 * int(batch.tokens.max()) for batch in batches)
    assert scored <= sum(seen) == padded < 0.5 * sum(batch.input_ids.numel() for batch in batches)

    seen.clear()
    losses = item_losses(cohort, rows, 1, CPU)
    assert sum(seen) == 2 * losses.tokens.sum()  # in evaluation all members have the same rows: no padding
    seen.clear()
    greedy(cohort, [[3, 4, 5], [6]], max_new_tokens=3, eos_ids=[], pad_id=1, device=CPU)
    assert seen == [4, 4, 4]  # the last position of two prompts under two members
    hook.remove()
    detach(loaded.model, cohort)


# -- dropout ----------------------------------------------------------------------------------------------------------


def mask(
    seeds: list[int],
    p: list[float],
    step: int = 0,
    layer: str = "x",
    shape: tuple[int, int, int] = (4, 16, 64),
    first: int = 0,
):
    keys = step_keys(torch.tensor(seeds, dtype=torch.int32), torch.tensor(step, dtype=torch.int32), layer_key(layer))
    codes = token_codes(shape[0], shape[1], first, keys.device)
    return keep_mask(keys, torch.tensor(p), codes, shape[2])


def test_dropout_rate_and_scaling() -> None:
    out = mask([1, 2, 3], [0.0, 0.1, 0.5], shape=(8, 64, 192))
    assert bool((out[0] == 1).all())
    for k, p in ((1, 0.1), (2, 0.5)):
        values = out[k].unique().tolist()
        assert values == [0.0, pytest.approx(1 / (1 - p))]
        n = out[k].numel()
        rate = float((out[k] == 0).double().mean())
        assert abs(rate - p) < 5 * (p * (1 - p) / n) ** 0.5
        for dim in (0, 1):  # and in no row or column it is far off
            rates = (out[k] == 0).double().mean(dim)
            assert float((rates - p).abs().max()) < 6 * (p * (1 - p) / out[k].shape[dim]) ** 0.5


def test_dropout_does_not_depend_on_cohort_padding_or_micro_batches() -> None:
    whole = mask([5], [0.3])[0].view(4, 16, 64)
    neighbours = mask([9, 5, 7], [0.1, 0.3, 0.0])[1].view(4, 16, 64)
    assert torch.equal(whole, neighbours)
    longer = mask([5], [0.3], shape=(4, 24, 64))[0].view(4, 24, 64)
    assert torch.equal(whole, longer[:, :16])
    halves = [mask([5], [0.3], shape=(2, 16, 64), first=first)[0].view(2, 16, 64) for first in (0, 2)]
    assert torch.equal(whole, torch.cat(halves))


@pytest.mark.parametrize("change", [{"seeds": [6]}, {"step": 1}, {"layer": "y"}, {"first": 4}])
def test_dropout_differs_by_seed_step_layer_and_row(change: dict[str, object]) -> None:
    one = mask([5], [0.5], shape=(4, 16, 192)) == 0
    two = mask(**{"seeds": [5], "p": [0.5], "shape": (4, 16, 192), **change}) == 0  # type: ignore[arg-type]
    agreement = float((one == two).double().mean())
    assert abs(agreement - 0.5) < 5 * 0.5 / one.numel() ** 0.5  # as independent coins
