"""LoRA+ and rsLoRA: in the study file, and LoRA+ against torch's AdamW with two parameter groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from loracle.adapters.flat import FlatParameters
from loracle.base.errors import SpecError
from loracle.spec import parse_study
from loracle.spec.factors import cell_from_config, expand
from loracle.spec.study import Adapter, Cell, Task, Train
from loracle.train.optimizer import BitsAndBytesAdamW, CohortAdamW
from loracle.train.scaling import LossScale
from loracle.train.schedule import learning_rates

STEPS = 20
TRAINS = [
    Train(learning_rate=1e-2, weight_decay=0.1),
    Train(learning_rate=3e-3, max_grad_norm=None, schedule="cosine", warmup_steps=3),
    Train(learning_rate=2e-3, weight_decay=0.3, beta1=0.8, beta2=0.95, max_grad_norm=0.5),
]
RATIOS = [16.0, 1.0, 4.0]
SHAPES = [((3, 5), (7, 3)), ((2, 4), (4, 2))]

UNSCALED = LossScale(1, torch.device("cpu"), on=False)


def flat_of(members: int) -> FlatParameters:
    flat = FlatParameters(members, SHAPES, torch.float64, torch.device("cpu"))
    flat.data.copy_(torch.randn(flat.data.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return flat


def test_loraplus_is_torchs_adamw_with_two_groups() -> None:
    flat = flat_of(len(TRAINS))
    ours = CohortAdamW(flat, TRAINS, STEPS)
    ours.use_loraplus(RATIOS)
    copies = [[torch.nn.Parameter(w[k].detach().clone()) for pair in flat.pairs for w in pair] for k in range(3)]
    theirs = [
        torch.optim.AdamW(
            [{"params": own[0::2]}, {"params": own[1::2]}],
            lr=t.learning_rate,
            betas=(t.beta1, t.beta2),
            eps=t.epsilon,
            weight_decay=t.weight_decay,
        )
        for own, t in zip(copies, TRAINS, strict=True)
    ]
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        flat.grad.copy_(torch.randn(flat.data.shape, generator=generator, dtype=torch.float64))
        for k, (own, t) in enumerate(zip(copies, TRAINS, strict=True)):
            views = [w.grad[k] for pair in flat.pairs for w in pair if w.grad is not None]
            for parameter, grad in zip(own, views, strict=True):
                parameter.grad = grad.clone()
            if t.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(own, t.max_grad_norm)
            rate = learning_rates(t, STEPS)[step]
            theirs[k].param_groups[0]["lr"] = rate
            theirs[k].param_groups[1]["lr"] = rate * RATIOS[k]
            theirs[k].step()
        ours.begin(step)
        ours.step(torch.zeros(3, dtype=torch.float64), UNSCALED)
    for k, own in enumerate(copies):
        for mine, parameter in zip([w[k] for pair in flat.pairs for w in pair], own, strict=True):
            assert (mine - parameter).abs().max() < 1e-13


def test_a_neighbour_with_loraplus_changes_no_bit() -> None:
    states = []
    for ratios in ([1.0, 1.0], [1.0, 8.0]):
        flat = flat_of(2)
        optimizer = CohortAdamW(flat, TRAINS[:2], STEPS)
        optimizer.use_loraplus(ratios)
        generator = torch.Generator().manual_seed(1)
        for step in range(STEPS):
            flat.grad.copy_(torch.randn(flat.data.shape, generator=generator, dtype=torch.float64))
            optimizer.begin(step)
            optimizer.step(torch.zeros(2, dtype=torch.float64), UNSCALED)
        states.append(flat.data.clone())
    assert torch.equal(states[0][0], states[1][0])
    assert not torch.equal(states[0][1], states[1][1])


@pytest.mark.parametrize("optimizer", ["paged_adamw_32bit", "adamw_8bit"])
def test_bitsandbytes_refuses_loraplus(optimizer: Any) -> None:
    with pytest.raises(SpecError, match=r"LoRA\+ needs train.optimizer: adamw") as caught:
        study(adapter={"loraplus_ratio": 4}, train={"optimizer": optimizer})
    assert "\n" not in str(caught.value)
    with pytest.raises(SpecError, match=r"LoRA\+ needs train.optimizer: adamw"):
        expand(study(vary={"loraplus_lr_ratio": [1, 4]}, train={"optimizer": optimizer}))
    with pytest.raises(SpecError):
        BitsAndBytesAdamW.use_loraplus(None, [1.0, 2.0])  # type: ignore[arg-type]


def study(**raw: Any) -> Any:
    return parse_study({"name": "x", "task": {"data": "x.json"}, **raw})


def test_aliases_factors_and_scale() -> None:
    found = study(adapter={"use_rslora": True, "loraplus_lr_ratio": 16, "rank": 4, "lora_alpha": 8})
    assert (found.adapter.rslora, found.adapter.loraplus_ratio, found.adapter.scale) == (True, 16.0, 4.0)
    cells = expand(study(vary={"rslora": [False, True], "loraplus_ratio": [1, 16]}))
    assert [(c.adapter.rslora, c.adapter.loraplus_ratio) for _, c in cells] == [
        (False, 1.0), (False, 16.0), (True, 1.0), (True, 16.0),
    ]  # fmt: skip


def test_defaults_leave_no_trace_and_others_come_back() -> None:
    plain = Cell(task=Task(data="x")).model_dump(mode="json")
    assert set(plain["adapter"]) == {"method", "rank", "alpha", "dropout", "targets", "dtype"}
    for adapter in (Adapter(), Adapter(rslora=True), Adapter(loraplus_ratio=2.0)):
        cell = Cell(task=Task(data="x"), adapter=adapter)
        assert cell_from_config(cell.model_dump(mode="json")).adapter == adapter
