"""Predictors of sensitivity against what they approximate: a tiny error's Δloss, autograd's gradients, spectra by hand."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from loracle.adapters.batch import make_batch
from loracle.adapters.forward import head_logits, scored_hidden
from loracle.diagnose.gradients import inputs_and_gradients
from loracle.diagnose.predictors import Spectrum, error_predictors, error_spectra, gradient_spectra
from loracle.diagnose.sensitivity import sweep
from loracle.diagnose.units import Codec
from loracle.models.linears import linear_map
from loracle.models.load import LoadedBase, load_base
from loracle.models.precision import oriented_weight
from loracle.models.source import find
from loracle.spec.study import Base, Cell, Task


@dataclass(frozen=True)
class Words:
    input_ids: list[int]
    labels: list[int]
    label_id: int | None = None


def rows(lengths: tuple[int, ...] = (9, 14, 14, 6)) -> list[Words]:
    random = np.random.default_rng(3)
    ids = [random.integers(0, 96, n).tolist() for n in lengths]
    return [Words(x, [-100, *x[1:]]) for x in ids]


@pytest.fixture(scope="module")
def base() -> LoadedBase:
    torch.manual_seed(0)
    loaded = load_base(find("gpt2-demo"), Cell(base=Base(model="gpt2-demo"), task=Task(data="x")), torch.device("cpu"))
    tiny = GPT2LMHeadModel(
        GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=96, n_positions=32, initializer_range=0.2)
    )
    tiny = tiny.eval().requires_grad_(False)
    changed = copy.copy(loaded)
    object.__setattr__(changed, "model", tiny)
    object.__setattr__(changed, "linears", linear_map(tiny, "gpt2"))
    return changed


def test_gradients_are_autograds_and_the_model_is_left_alone(base: LoadedBase) -> None:
    batch = make_batch([rows()], 0)
    pairs = inputs_and_gradients(base.model, base.linears, batch)
    assert list(pairs) == [x.name for x in base.linears]
    assert not any(p.requires_grad for p in base.model.parameters())
    model = copy.deepcopy(base.model).requires_grad_()
    loss = cross_entropy(head_logits(model, scored_hidden(model, batch)), batch.targets.view(-1), reduction="sum")
    loss.backward()
    for name, (x, g) in pairs.items():
        own = model.get_submodule(name).weight.grad.T
        torch.testing.assert_close(g.flatten(0, 1).T @ x.flatten(0, 1), own, rtol=1e-4, atol=1e-5)


def test_the_first_order_term_is_the_losss_own(base: LoadedBase) -> None:
    """bf16's rounding is an error small enough for its Δloss to be linear in it."""
    found = error_predictors(base, Codec("bf16"), rows(), 0)
    truth = {u["module"]: u["delta_loss"] for u in sweep(base, Codec("bf16"), rows(), 0, ("matrix",)).units}
    for one in found:
        assert one["first_order"] == pytest.approx(truth[one["module"]], rel=0.2, abs=2e-6)
        assert 0 < one["weight_error"] < 2**-8
        assert 0 < one["output_error"] < 2**-7


def test_the_fisher_terms_by_hand_and_whatever_the_batches(base: LoadedBase) -> None:
    whole = error_predictors(base, Codec("nf4"), rows(), 0)
    name = base.linears[3].name
    weight = oriented_weight(base.model.get_submodule(name))
    codes = error_predictors(base, Codec("fp32"), rows(), 0)
    assert all(one["fisher"] == one["first_order"] == one["weight_error"] == 0.0 for one in codes)
    from loracle.diagnose.units import Swapper

    error = Swapper(base.model, Codec("nf4")).dense(name) - weight
    along, diagonal, tokens = 0.0, torch.zeros_like(weight), 0
    for row in rows():  # one row at a time: no padding
        batch = make_batch([[row]], 0)
        x, g = (part[0] for part in inputs_and_gradients(base.model, base.linears, batch)[name])
        along += float(((g.T @ x) * error).sum()) ** 2
        diagonal += torch.einsum("to,ti->oi", g**2, x**2)
        tokens += len(row.input_ids) - 1
    assert whole[3]["fisher"] == pytest.approx(0.5 * along / tokens, rel=1e-3)
    assert whole[3]["fisher_diagonal"] == pytest.approx(0.5 * float((diagonal * error**2).sum()) / tokens, rel=1e-3)


def test_the_demos_worst_matrices_are_told_beforehand() -> None:
    from loracle.models.source import load_tokenizer
    from loracle.tasks.collate import pad_token_id
    from loracle.tasks.dataset import plain_text

    loaded = load_base(find("gpt2-demo"), Cell(base=Base(model="gpt2-demo"), task=Task(data="x")), torch.device("cpu"))
    tokenizer = load_tokenizer(loaded.source)
    found = error_predictors(loaded, Codec("nf4"), plain_text(tokenizer, 512)[:4], pad_token_id(tokenizer))
    worst = sorted(found, key=lambda one: -one["fisher"])[:3]
    assert {one["module"] for one in worst} == {
        f"transformer.{name}" for name in ("h.1.attn.c_proj", "h.0.mlp.c_proj", "h.1.attn.c_attn")
    }


def test_spectra(base: LoadedBase) -> None:
    flat, one = Spectrum(np.ones(8)), Spectrum(np.array([3.0, 0.0, 0.0]))
    assert (flat.effective_rank, one.effective_rank) == (pytest.approx(8), 1.0)
    assert (flat.captured(2), one.captured(1)) == (0.25, 1.0)
    assert (flat.rank_for(0.5), flat.rank_for(1.0), one.rank_for(0.99)) == (4, 8, 1)
    nothing = Spectrum(np.zeros(4))
    assert (nothing.effective_rank, nothing.captured(1), nothing.rank_for(0.9)) == (1.0, 1.0, 1)
    single = gradient_spectra(base, rows((3,)), 0)  # two positions that the loss depends on: rank two at most
    assert all(s.captured(2) == pytest.approx(1.0, abs=1e-5) for s in single.values())
    error = error_spectra(base, Codec("nf4"))[base.linears[0].name]
    assert 0.5 * 64 < error.effective_rank < 64
    assert math.isclose(error.captured(64), 1.0)
