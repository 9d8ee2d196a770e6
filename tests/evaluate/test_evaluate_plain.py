"""Losses and greedy generation of cohorts against plain Transformers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from loracle.adapters.cohort import attach, detach
from loracle.adapters.forward import Untrained
from loracle.evaluate.generate import greedy
from loracle.evaluate.loss import batches_by_length, item_losses
from tests.conftest import text_rows
from tests.engine import RunSpec, base, member

CPU = torch.device("cpu")
SPECS = [
    RunSpec("a", rank=4),
    RunSpec("b", rank=2, targets=("q", "v"), seed=2),
    RunSpec("c", rank=8, targets=("up",), seed=3),
]


@pytest.fixture(scope="module")
def trained() -> Iterator[tuple[Any, Any]]:
    """A base with three members whose adapters do something."""
    loaded = base()
    cohort = attach(loaded.model, [member(loaded, spec) for spec in SPECS], torch.float32, CPU)
    generator = torch.Generator().manual_seed(1)
    for k in range(3):
        for _, b in cohort.adapter(k).values():
            b.copy_(0.05 * torch.randn(b.shape, generator=generator))
    loaded.model.eval()
    yield loaded, cohort
    detach(loaded.model, cohort)


def merged(trained: tuple[Any, Any], k: int | None) -> Any:
    from transformers import AutoModelForCausalLM

    loaded, cohort = trained
    model = AutoModelForCausalLM.from_pretrained(loaded.source.resolved, dtype=torch.float32).eval()
    if k is not None:
        for site, (a, b) in cohort.adapter(k).items():
            weight = model.get_submodule(site.module).weight  # Conv1D: [d_in, d_out]
            weight.data[:, site.start : site.stop] += (cohort.members[k].scale(site) * b @ a).T
    return model


@torch.no_grad()
def plain_losses(model: Any, rows: list[Any]) -> list[float]:
    out = []
    for row in rows:
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
        target = torch.tensor(row.labels[1:])
        out.append(float(torch.nn.functional.cross_entropy(logits, target, ignore_index=-100, reduction="sum")))
    return out


def test_item_losses_are_those_of_plain_logits(trained: tuple[Any, Any]) -> None:
    _, cohort = trained
    rows = text_rows(9)
    found = item_losses(cohort, rows, 1, CPU)
    assert found.tokens.tolist() == [row.target_tokens for row in rows]
    for k in range(3):
        assert found.sums[k].tolist() == pytest.approx(plain_losses(merged(trained, k), rows), rel=2e-4)
    assert found.mean[0] == pytest.approx(found.sums[0].sum() / found.tokens.sum())


def test_bypass_is_the_base_exactly(trained: tuple[Any, Any]) -> None:
    _, cohort = trained
    rows = text_rows(9)
    bypassed = item_losses(cohort, rows, 1, CPU, base=True)
    bare = base()
    bare.model.eval()
    assert (bypassed.sums == item_losses(Untrained(bare.model), rows, 1, CPU).sums).all()
    assert bypassed.sums.shape == (1, 9)
    assert cohort.state.bypass is False
    prompts = [row.prompt_ids or [] for row in rows[:3]]
    options: dict[str, Any] = {"max_new_tokens": 4, "eos_ids": [], "pad_id": 1, "device": CPU}
    assert greedy(cohort, prompts, **options, base=True) == greedy(Untrained(bare.model), prompts, **options)


def answers(model: Any, prompts: list[list[int]], eos: int, new: int) -> list[list[int]]:
    out = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        made = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=eos,
            pad_token_id=eos,
        )[0, len(prompt) :].tolist()
        out.append(made[: made.index(eos)] if eos in made else made)
    return out


@pytest.mark.parametrize("members", [[1], [0, 1, 2]])
def test_greedy_is_generate(trained: tuple[Any, Any], members: list[int]) -> None:
    """Prompts of unequal length (left padding), an eos that comes at unequal times, members that do not feel each other."""
    _, cohort = trained
    prompts = [row.prompt_ids or [] for row in text_rows(7)]
    assert len({len(p) for p in prompts}) > 2
    first = answers(merged(trained, members[0]), prompts, -1, 10)
    eos = first[0][3]  # a token that really comes: some answers stop early
    found = greedy(
        cohort, prompts, max_new_tokens=10, eos_ids=[eos], pad_id=eos, device=CPU,
        alone=members[0] if len(members) == 1 else None,
    )  # fmt: skip
    assert len(found) == len(members)
    lengths = set()
    for k, ours in zip(members, found, strict=True):
        assert ours == answers(merged(trained, k), prompts, eos, 10)
        lengths |= {len(answer) for answer in ours}
        assert not any(eos in answer for answer in ours)
    assert len(lengths) > 1


def test_batches_hold_every_item_once_and_keep_the_budget() -> None:
    lengths = [5, 900, 40, 4000, 41, 5, 39, 9000]
    batches = batches_by_length(lengths, 2, "cpu")
    assert sorted(i for batch in batches for i in batch) == list(range(8))
    for batch in batches:
        assert len(batch) == 1 or 2 * len(batch) * max(lengths[i] for i in batch) <= 4096
