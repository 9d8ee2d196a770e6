"""The invariants of the cohort engine (DESIGN: the cohort engine). ``pytest -k invariant`` runs them."""

from __future__ import annotations

import pytest
import torch

from loracle.spec.study import Train
from tests.conftest import text_rows
from tests.engine import RunSpec, base, make_fit, member, train, worst

pytestmark = pytest.mark.invariant

NEIGHBOURS = [
    RunSpec("wide", rank=16, alpha=32, seed=7, dropout=0.2, train=Train(learning_rate=1e-3)),
    RunSpec(
        "slices",
        rank=3,
        alpha=6,
        targets=("q", "v"),
        seed=1,
        train=Train(learning_rate=3e-4, schedule="cosine", warmup_steps=5),
    ),
    RunSpec(
        "raw",
        rank=2,
        alpha=4,
        targets=("c_proj",),
        seed=9,
        dropout=0.1,
        train=Train(learning_rate=2e-4, max_grad_norm=0.1, weight_decay=0.1),
    ),
]
ME = RunSpec("me", rank=4, alpha=8, seed=42, dropout=0.1, train=Train(learning_rate=2e-4))


def test_invariant_1_cohort_invariance_fp64() -> None:
    """Losses and adapters do not depend on who shares the cohort: other ranks, targets, lengths, seeds; dropout included."""
    rows = text_rows(60)
    loaded = base(dtype="float64")
    alone_losses, alone = train(loaded, [ME], rows, 50)
    shared_losses, together = train(loaded, [NEIGHBOURS[0], ME, *NEIGHBOURS[1:]], rows, 50)
    assert (alone_losses[:, 0] - shared_losses[:, 1]).abs().max() < 1e-8
    assert worst(alone[0], together[1]) < 1e-5
    assert alone_losses[-1, 0] < alone_losses[0, 0]
    for i, spec in enumerate([NEIGHBOURS[1], NEIGHBOURS[2]], start=2):
        other_losses, other = train(loaded, [spec], rows, 50)
        assert (other_losses[:, 0] - shared_losses[:, i]).abs().max() < 1e-8
        assert worst(other[0], together[i]) < 1e-5


@pytest.mark.parametrize("name", ["gpt2-ref", "llama-ref"])
def test_invariant_1_cohort_invariance_fp32(shared, name: str) -> None:
    """The same in fp32 on healthy bases."""
    rows = text_rows(40)
    loaded = base(shared / "models" / name)
    me = RunSpec("me", dropout=0.1, targets=("q", "v", "down"), train=Train(learning_rate=1e-3))
    others = [
        RunSpec("a", rank=8, seed=3, train=Train(learning_rate=1e-3)),
        RunSpec("b", rank=2, targets=("o",), seed=4, dropout=0.3),
    ]
    alone_losses, alone = train(loaded, [me], rows, 10)
    shared_losses, together = train(loaded, [others[0], me, others[1]], rows, 10)
    assert (alone_losses[:, 0] - shared_losses[:, 1]).abs().max() < 1e-5
    assert worst(alone[0], together[1]) < 1e-4


def test_invariant_1_a_diverging_neighbour_is_not_noticed() -> None:
    """A member whose loss is not finite is frozen and recorded; the others' numbers are as without it."""
    rows = text_rows(40)
    loaded = base(dtype="float64")
    wild = RunSpec("wild", seed=5, train=Train(learning_rate=1e200, max_grad_norm=None, schedule="constant"))
    alone_losses, alone = train(loaded, [ME], rows, 12)
    fit, cohort = make_fit(loaded, [wild, ME], rows, 12)
    for step in range(12):
        fit.step(step, fit.batches(step))
    assert int(fit.diverged_at[0]) > 0
    assert int(fit.diverged_at[1]) == -1
    assert (fit.losses[:, 1] - alone_losses[:, 0]).abs().max() < 1e-8
    assert worst(cohort.adapter(1), alone[0]) < 1e-5
    assert all(bool(torch.isfinite(t).all()) for pair in cohort.adapter(0).values() for t in pair)


@pytest.mark.parametrize("targets", ["all-linear", ("q", "v"), ("c_attn", "down")])
def test_invariant_2_agreement_with_peft(targets, tmp_path) -> None:
    """A cohort of one follows plain PEFT with torch's AdamW at every step."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from loracle.adapters.cohort import detach
    from loracle.adapters.peft_files import read_adapter, save_adapter

    rows = text_rows(60)
    spec = RunSpec(
        "me", rank=4, alpha=8, targets=targets, train=Train(learning_rate=2e-4, weight_decay=0.01, max_grad_norm=None)
    )
    loaded = base(dtype="float64")
    fit, cohort = make_fit(loaded, [spec], rows, 50, accumulation=2)
    save_adapter(tmp_path / "start", cohort.adapter(0), member(loaded, spec), loaded.linears, base="x", revision=None)

    plain = AutoModelForCausalLM.from_pretrained(loaded.source.resolved, dtype=torch.float64)
    peft = PeftModel.from_pretrained(plain, tmp_path / "start", is_trainable=True, autocast_adapter_dtype=False)
    peft.to(torch.float64).train()
    own_rows = {}  # PEFT's one adapter of a fused layer has zero blocks that are nobody's: their gradients are masked
    if targets == ("q", "v"):
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                own_rows[name] = torch.zeros_like(parameter)
                own_rows[name][:192, :4] = own_rows[name][384:, 4:] = 1
    trained = [p for p in peft.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1 - s / 50)
    for step in range(50):
        order = fit.orders[0].take(step * 8, 8)
        batch = [rows[i] for i in order]
        count = sum(sum(label != -100 for label in r.labels[1:]) for r in batch)
        total = 0.0
        for row in batch:  # one row at a time: no padding, no mask
            ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
            logits = peft(input_ids=ids).logits
            loss = (
                torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum")
                / count
            )
            loss.backward()
            total += float(loss.detach())
        for name, parameter in peft.named_parameters():
            if name in own_rows:
                parameter.grad *= own_rows[name]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        fit.step(step, fit.batches(step))
        assert abs(float(fit.losses[step, 0]) - total) < 1e-8, step
    save_adapter(tmp_path / "end", cohort.adapter(0), member(loaded, spec), loaded.linears, base="x", revision=None)
    detach(loaded.model, cohort)
    peft.save_pretrained(tmp_path / "peft")
    ours, theirs = read_adapter(tmp_path / "end"), read_adapter(tmp_path / "peft")
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert (ours[name].a - theirs[name].a).abs().max() < 1e-5
        assert (ours[name].b - theirs[name].b).abs().max() < 1e-5


@pytest.mark.parametrize("precision", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [True, False])
def test_invariant_3_dequantized_storage_is_bit_identical(precision: str, double_quant: bool) -> None:
    """Dequantized storage gives the losses and adapters of bitsandbytes' own 4-bit modules, bit for bit on a CPU."""
    rows = text_rows(30)
    specs = [RunSpec("a", rank=4), RunSpec("b", rank=2, targets=("q", "v"), seed=3)]
    results = []
    for storage in ("quantized", "dequantized"):
        loaded = base(precision=precision, storage=storage, double_quant=double_quant)
        assert loaded.storage == storage
        results.append(train(loaded, specs, rows, 6))
    (losses_q, adapters_q), (losses_d, adapters_d) = results
    assert torch.equal(losses_q, losses_d)
    assert worst(adapters_q[0], adapters_d[0]) == 0.0
    assert worst(adapters_q[1], adapters_d[1]) == 0.0
