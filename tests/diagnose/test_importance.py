"""Where rank is needed: spectra against the dense ΔW, gradient norms against the dense gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from loracle.adapters.cohort import attach, detach, initial_a
from loracle.adapters.peft_files import read_adapter, save_adapter
from loracle.adapters.targets import Site, resolve_targets
from loracle.diagnose.gradient import PROBES, gradients
from loracle.diagnose.spectrum import figures, singular_values, spectra
from tests.conftest import text_rows
from tests.engine import RunSpec, base, member

TARGETS = ("q", "v", "o", "up")


# -- spectra ----------------------------------------------------------------------------------------------------------


def test_singular_values_are_those_of_the_dense_update() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 40, generator=generator), torch.randn(30, 5, generator=generator)
    dense = torch.linalg.svdvals(3.0 * b.double() @ a.double())
    assert (singular_values(a, b, 3.0) - dense[:5]).abs().max() < 1e-10


def test_figures_of_known_spectra() -> None:
    even = figures([2.0, 2.0, 2.0, 2.0])
    assert (even["frobenius"], even["spectral"], even["stable_rank"]) == (4.0, 2.0, 4.0)
    assert even["effective_rank"] == pytest.approx(4.0)
    assert even["energy"] == [0.25, 0.5, 0.75, 1.0]
    one = figures([3.0, 0.0])
    assert (one["stable_rank"], one["effective_rank"], one["energy"]) == (1.0, 1.0, [1.0, 1.0])
    skewed = figures([3.0, 1.0])
    assert skewed["stable_rank"] == pytest.approx(10 / 9)
    assert skewed["effective_rank"] == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


def test_an_update_of_zero_has_no_rank_and_says_why() -> None:
    found = figures([0.0, 0.0])
    assert (found["frobenius"], found["stable_rank"], found["effective_rank"], found["energy"]) == (
        0.0,
        None,
        None,
        None,
    )
    assert found["reason"] == "the update is zero"


def test_a_saved_adapter_gives_each_slice_its_own_spectrum(tmp_path) -> None:
    loaded = base()
    me = member(loaded, RunSpec("me", rank=3, targets=TARGETS, per_rank="2r", pattern={"h.0.attn.c_attn.v": 6}))
    cohort = attach(loaded.model, [me], torch.float32, loaded.device)
    generator = torch.Generator().manual_seed(1)
    dense: dict[Site, torch.Tensor] = {}
    for site, (a, b) in cohort.adapter(0).items():
        b.copy_(torch.randn(b.shape, generator=generator))
        dense[site] = torch.linalg.svdvals(2.0 * b.double() @ a.double())
    save_adapter(tmp_path, cohort.adapter(0), me, loaded.linears, base="x", revision=None)
    detach(loaded.model, cohort)
    sizes = {site: me.size(site) for site in me.sites}
    rows = spectra(read_adapter(tmp_path), sizes)
    assert [row["name"] for row in rows] == [site.name for site in me.sites]
    assert {row["rank"] for row in rows if row["name"].endswith("h.0.attn.c_attn.v")} == {6}
    for row, (site, size) in zip(rows, sizes.items(), strict=True):
        assert row["spectral"] == pytest.approx(float(dense[site][0]), rel=1e-6)
        assert row["frobenius"] == pytest.approx(float(dense[site].norm()), rel=1e-6)
        assert len(row["energy"]) == size.rank
        assert row["params_per_rank"] == site.d_in + site.width


# -- gradients --------------------------------------------------------------------------------------------------------


def dense_gradients(loaded: Any, sites: list[Site], batches: list[Any]) -> dict[Site, torch.Tensor]:
    """G ``[width, d_in]`` of the mean loss, by autograd on the base's own weights."""
    weights = {site.module: loaded.model.get_submodule(site.module).weight for site in sites}
    for weight in weights.values():
        weight.requires_grad_(True)
        weight.grad = None
    count, rows = 0, [row for batch in batches for row in batch]
    for row in rows:
        logits = loaded.model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
        labels = torch.tensor(row.labels[1:])
        torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum").backward()
        count += int((labels != -100).sum())
    found = {site: weights[site.module].grad.T[site.start : site.stop] / count for site in sites}
    for weight in weights.values():
        weight.requires_grad_(False)
    return found


@pytest.fixture(scope="module")
def measured() -> tuple[Any, list[Site], list[Any], Any]:
    loaded = base(dtype="float64")
    sites, rows = resolve_targets(loaded.linears, TARGETS), text_rows(12)
    batches = [rows[:6], rows[6:]]
    return loaded, sites, batches, gradients(loaded, sites, batches, 1, seed=3)


def test_the_norm_is_that_of_the_gradient_seen_through_the_probes(measured) -> None:
    """‖G·Aᵀ‖ itself is exact, batches added up; the norm of G is estimated within its stated error."""
    loaded, sites, batches, found = measured
    dense = dense_gradients(loaded, sites, batches)
    errors = []
    for row, site in zip(found.sites, sites, strict=True):
        g = dense[site].double()
        seen = float((g @ initial_a(3, site, PROBES).double().T).norm()) * math.sqrt(3 * site.d_in / PROBES)
        assert row["gradient_norm"] == pytest.approx(seen, rel=1e-8), site.name
        errors.append(row["gradient_norm"] / float(g.norm()) - 1)
    assert max(map(abs, errors)) < 4 / math.sqrt(2 * PROBES)
    assert abs(sum(errors)) / len(errors) < 2 / math.sqrt(2 * PROBES)


def test_the_base_is_left_as_it_was_and_answers_with_its_own_loss(measured) -> None:
    loaded, _, batches, found = measured
    assert type(loaded.model.get_submodule("transformer.h.0.attn.c_attn")).__name__ == "Conv1D"
    assert not any(p.requires_grad for p in loaded.model.parameters())
    total = 0.0
    for row in (row for batch in batches for row in batch):
        logits = loaded.model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(row.labels[1:]), reduction="sum"))
    assert found.loss == pytest.approx(total / found.tokens, rel=1e-9)


def test_a_quantized_base_has_gradients_too() -> None:
    loaded = base(precision="nf4", storage="quantized")
    sites = resolve_targets(loaded.linears, ("c_attn",))
    found = gradients(loaded, sites, [text_rows(2)], 1, seed=0)
    assert all(math.isfinite(row["gradient_norm"]) and row["gradient_norm"] > 0 for row in found.sites)
