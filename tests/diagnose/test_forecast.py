"""The forecast of a device's memory: against counts by hand, against what a CPU really allocates, and against itself."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from loracle.adapters.cohort import attach, member_of
from loracle.diagnose import stand_ins, tracking_memory
from loracle.diagnose.caching_allocator import CachingAllocator
from loracle.diagnose.components import base_bytes
from loracle.diagnose.forecast import (
    PHASES,
    Forecast,
    Geometry,
    Plan,
    forecast,
    settings_for,
    shape_rows,
)
from loracle.diagnose.stand_ins import device_attention
from loracle.diagnose.tracking_memory import MemoryTracker
from loracle.models.ledger import COMPONENTS
from loracle.models.load import checkpoint_activations, load_base, meta_model, prepare
from loracle.models.memory_labels import counted_as, watched_by
from loracle.models.source import Source, find, load_config
from loracle.spec.study import Cell
from loracle.train.fit import Fit

CPU, META = torch.device("cpu"), torch.device("meta")
GPT2 = GPT2Config(n_layer=4, n_embd=256, n_head=4, vocab_size=1000, bos_token_id=0, eos_token_id=0)
LLAMA = LlamaConfig(
    hidden_size=256,
    intermediate_size=688,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=4,
    vocab_size=1000,
)
SHAPE = Geometry(rows=4, length=128, scored=60)


def cell(
    precision: str = "bf16", adapter: dict[str, Any] | None = None, train: dict[str, Any] | None = None, **other: Any
) -> Cell:
    """A cell of a task that is never read."""
    settings = {
        "task": {"data": "shapes.jsonl", "format": "text"},
        "precision": precision,
        "adapter": {"rank": 8, "targets": "all-linear", **(adapter or {})},
        "train": {"steps": 1, "batch_size": SHAPE.rows, **(train or {})},
        **other,
    }
    return Cell.model_validate(settings)


def ahead(config: Any = GPT2, geometry: Geometry = SHAPE, members: int = 1, **settings: Any) -> Forecast:
    """The forecast of a cell."""
    return forecast(Plan(cell(**settings), config, geometry, members))


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cuBLAS, and blocks as large as what was asked for: what a CPU takes."""
    monkeypatch.setattr(tracking_memory, "CUBLAS_WORKSPACE", 0)
    monkeypatch.setattr("loracle.diagnose.caching_allocator.SMALL", 1)


# -- the allocator ----------------------------------------------------------------------------------------------------


def test_the_allocator_rounds_splits_and_merges() -> None:
    allocator = CachingAllocator()
    small = allocator.take(1)
    assert (small.size, allocator.reserved) == (512, 2 << 20)
    large = allocator.take(9 << 20)
    assert (large.size, allocator.reserved) == (9 << 20, (2 << 20) + (20 << 20))
    huge = allocator.take((11 << 20) + 5)  # a segment of 12 MiB: what is left is below 1 MiB and stays with it
    assert (huge.size, allocator.reserved) == (12 << 20, (2 << 20) + (20 << 20) + (12 << 20))
    allocator.give(huge)
    assert allocator.take((11 << 20) + 5).size == 12 << 20  # again whole
    allocator.give(large)
    assert allocator.take(20 << 20).size == 20 << 20  # merged with the rest of its segment
    assert allocator.allocated == 512 + (12 << 20) + (20 << 20)
    assert allocator.reserved == (2 << 20) + (20 << 20) + (12 << 20)


# -- the tracker ------------------------------------------------------------------------------------------------------


def test_a_small_step_by_hand(bare: None) -> None:
    """y = relu(x W), 64 × 256 and 256 × 256 floats: every tensor at its time."""
    one, weight = 4 * 64 * 256, 4 * 256 * 256
    tracker = MemoryTracker()
    with tracker, watched_by(tracker):
        x = torch.empty(64, 256, device="meta")
        w = torch.empty(256, 256, device="meta", requires_grad=True)
        tracker.enter("forward")
        with counted_as("logits_and_loss"):
            loss = torch.relu(x @ w).sum()
        tracker.reached("backward")
        loss.backward()  # type: ignore[no-untyped-call]
        tracker.enter("after")
    assert tracker.peaks["load"].bytes == one + weight
    # the product is freed: relu keeps its result, and sum one float; a workspace of no bytes is one block, too
    assert tracker.peaks["forward"].end == 2 * one + weight + 2 * 512
    assert tracker.components("forward")["logits_and_loss"] == 2 * one
    # the gradient of relu beside its result, that is freed; then the weight's gradient beside it
    assert tracker.peaks["backward"].bytes == max(3 * one + weight, 2 * one + 2 * weight) + 3 * 512
    assert w.grad is not None
    assert tracker.peaks["after"].end == one + 2 * weight + 2 * 512


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "nf4"])
@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize("members", [1, 3])
def test_a_cpu_allocates_what_is_forecast(
    bare: None, config: Any, precision: str, checkpointing: bool, members: int
) -> None:
    """The highest moment of a real step on a CPU, by torch's profiler, against the replay of the same step: within 0.3%."""
    c = cell(precision, train={"gradient_checkpointing": checkpointing}, compute_dtype="float32")
    found = forecast(Plan(c, config, SHAPE, members))
    assert found.peak_bytes is not None
    assert found.peak_bytes - found.phases["optimizer"]["end_bytes"] == pytest.approx(
        real_peak(c, config, members), rel=3e-3
    )


def real_peak(c: Cell, config: Any, members: int) -> int:
    """Bytes that a step allocates at its highest moment beyond what lasts."""
    from torch.profiler import ProfilerActivity, profile

    model = AutoModelForCausalLM.from_config(config)
    loaded = prepare(model, Source("", "", "", None, None), c, CPU, storage="quantized")
    if c.train.gradient_checkpointing:
        checkpoint_activations(model)
    who = attach(model, [member_of("x", c, loaded.linears, model.config, 0)] * members, torch.float32, CPU)
    fit = Fit(who, shape_rows(SHAPE, False), [c.train] * members, [0] * members, settings_for(c, loaded, SHAPE))
    batches = fit.batches(0)
    fit.step(0, batches)
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        fit.step(0, batches)
    now = highest = 0
    for event in seen.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            highest = max(highest, now)
    return highest


# -- components -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16", "fp32", "nf4", "int8"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_components_add_up_to_the_peak(precision: str, checkpointing: bool) -> None:
    found = ahead(precision=precision, train={"gradient_checkpointing": checkpointing})
    assert tuple(found.components) == COMPONENTS
    assert sum(v for v in found.components.values() if v is not None) == found.peak_bytes
    assert None not in found.components.values()
    assert found.phases.keys() == set(PHASES) - {"evaluation"}
    assert found.peak_phase is not None
    assert found.peak_bytes == max(phase["peak_bytes"] for phase in found.phases.values())
    assert (found.needs_bytes or 0) > (found.reserved_bytes or 0) >= (found.peak_bytes or 0)


def test_what_lasts_by_hand() -> None:
    found = ahead(adapter={"targets": ("c_attn",)}).components
    parameters = 4 * 8 * (256 + 3 * 256)  # four layers, rank 8
    assert found["gradients"] == 4 * parameters
    assert found["optimizer"] == pytest.approx(8 * parameters, rel=0.1)  # two moments, and a few numbers a member
    weights = 4 * 12 * 256 * 256 + (1000 + 1024) * 256  # linear layers and embeddings, the head being one of them
    biases = 4 * (9 * 256 + 4 * 256) + 2 * 256
    assert found["other_weights"] == pytest.approx(2 * (weights + biases), rel=0.01)
    assert found["quantized_weights"] == found["quantization_constants"] == 0
    assert found["rest"] is not None
    assert found["rest"] >= stand_ins.CUBLAS_WORKSPACE


@pytest.mark.parametrize("precision", ["nf4", "fp4", "int8", "int4", "int2"])
def test_quantized_weights_are_those_of_the_real_base(precision: str) -> None:
    pytest.importorskip("hqq") if precision.startswith("int") and precision != "int8" else None
    source = find("gpt2-demo", None)
    c = cell(precision)
    found = forecast(Plan(c, load_config(source), SHAPE)).components
    loaded = load_base(source, c.model_copy(update={"compute_dtype": "bfloat16"}), CPU, storage="quantized")
    counted = base_bytes(loaded.model, loaded.assignment, "cpu")
    assert found["quantized_weights"] == counted["quantized_weights"] > 0
    assert found["quantization_constants"] == pytest.approx(counted["quantization_constants"], rel=0.05)
    assert found["other_weights"] == counted["other_weights"]
    bits = loaded.census["effective_bits"]
    weights = sum(x.params for x in loaded.linears)
    assert counted["quantized_weights"] + counted["quantization_constants"] == pytest.approx(
        bits * weights / 8, rel=0.08
    )


def test_a_forecast_leaves_bitsandbytes_as_it_was() -> None:
    """bitsandbytes keeps its code map in a module: one of the meta device would break every later quantization."""
    ahead(precision="nf4")
    source = find("gpt2-demo", None)
    assert load_base(source, cell("nf4"), CPU).census["quantized_share"] == 1.0


# -- how it grows -----------------------------------------------------------------------------------------------------


def test_linear_in_batch(bare: None) -> None:
    peaks = [ahead(geometry=replace(SHAPE, rows=n), train={"batch_size": n}).peak_bytes or 0 for n in (4, 8, 16)]
    assert peaks[2] - peaks[1] == pytest.approx(2 * (peaks[1] - peaks[0]), rel=2e-3)


def test_members_cost_their_activations_and_states_but_no_base(bare: None) -> None:
    one, two, four = (ahead(members=n, precision="nf4") for n in (1, 2, 4))
    for name in ("quantized_weights", "quantization_constants", "other_weights"):
        assert one.components[name] == two.components[name] == four.components[name]
    assert four.components["gradients"] == 4 * (one.components["gradients"] or 0)
    assert (four.peak_bytes or 0) - (two.peak_bytes or 0) == pytest.approx(
        2 * ((two.peak_bytes or 0) - (one.peak_bytes or 0)), rel=5e-3
    )


def test_checkpointing_saves_activations_and_the_adapters_second_copy(bare: None) -> None:
    off, on = (ahead(train={"gradient_checkpointing": flag}) for flag in (False, True))
    assert (on.peak_bytes or 0) < 0.7 * (off.peak_bytes or 0)
    assert (on.components["saved_activations"] or 0) < 0.5 * (off.components["saved_activations"] or 0)
    for name in ("other_weights", "gradients", "optimizer"):
        assert on.components[name] == off.components[name]
    assert off.components["adapters"] == pytest.approx(
        1.5 * (on.components["adapters"] or 0), rel=0.05
    )  # the 16-bit copy


def test_attention_keeps_no_scores() -> None:
    """Flash attention: memory is linear in length, and not quadratic."""
    short, long = (ahead(geometry=Geometry(2, n, n // 2), train={"batch_size": 2}) for n in (512, 1024))
    grown = (long.components["saved_activations"] or 0) / (short.components["saved_activations"] or 1)
    assert grown == pytest.approx(2, rel=0.02)


def test_optimizers() -> None:
    parameters = 4 * 8 * ((256 + 768) + (256 + 256) + (256 + 1024) * 2)
    plain, eight, paged = (ahead(train={"optimizer": name}) for name in ("adamw", "adamw_8bit", "paged_adamw_32bit"))
    few = 20_000  # rates, flags, the code's map
    assert plain.components["optimizer"] == pytest.approx(8 * parameters, abs=few)
    assert eight.components["optimizer"] == pytest.approx(2 * parameters * (1 + 4 / 256), abs=few)
    assert paged.components["optimizer"] == pytest.approx(0, abs=few)
    assert (plain.managed_bytes, eight.managed_bytes, paged.managed_bytes) == (0, 0, 8 * parameters)


def test_accumulation_costs_no_memory() -> None:
    once, thrice = (ahead(train={"gradient_accumulation": n}) for n in (1, 3))
    assert thrice.peak_bytes == pytest.approx(once.peak_bytes, rel=0.01)


def test_evaluation_is_a_phase_of_its_own() -> None:
    plain = forecast(Plan(cell(), GPT2, SHAPE))
    wide = forecast(Plan(cell(), GPT2, SHAPE, evaluation=Geometry(64, 128, 120)))
    assert wide.peak_bytes == plain.peak_bytes
    assert wide.phases["evaluation"]["peak_bytes"] > plain.phases["forward"]["peak_bytes"]
    assert wide.needs_bytes == plain.needs_bytes  # an evaluation that does not fit is taken in halves


# -- what trains alone ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["full", "dora", "ia3", "adalora", "prefix_tuning", "pissa"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_methods_that_train_alone(method: str, precision: str) -> None:
    found = ahead(LLAMA, precision=precision, adapter={"method": method})
    assert found.reason is None
    assert sum(v or 0 for v in found.components.values()) == found.peak_bytes
    assert (found.components["adapters"] or 0) >= (found.components["gradients"] or 0) > 0


def test_full_fine_tuning_by_hand() -> None:
    found = ahead(LLAMA, adapter={"method": "full"}).components
    parameters = 4 * (4 * 256 * 256 + 3 * 256 * 688 + 2 * 256) + 2 * 1000 * 256 + 256
    assert found["adapters"] == found["gradients"] == pytest.approx(4 * parameters, rel=0.01)
    assert found["optimizer"] == pytest.approx(8 * parameters, rel=0.01)
    assert (found["other_weights"] or 0) < 10_000  # all of it is trained


def test_full_fine_tuning_under_autocast_casts_and_checkpoints() -> None:
    off, on = (ahead(LLAMA, adapter={"method": "full"}, train={"gradient_checkpointing": f}) for f in (False, True))
    assert off.reason is None
    assert on.reason is None
    assert on.phases["backward"]["peak_bytes"] < off.phases["backward"]["peak_bytes"]


def test_what_cannot_be_followed_says_so_and_keeps_what_is_known() -> None:
    found = ahead(LLAMA, adapter={"method": "shira"})
    assert found.peak_bytes is None
    assert found.needs_bytes is None
    assert "without a device" in (found.reason or "")
    assert (found.components["other_weights"] or 0) > 0
    assert found.components["saved_activations"] is None


def test_a_recomputed_layer_keeps_the_gated_product(bare: None) -> None:
    """It saves through hooks, under which ``made_again`` makes nothing again."""
    c = cell("bf16", train={"gradient_checkpointing": True})
    hidden, product = (SHAPE.rows * SHAPE.length * width * 2 for width in (LLAMA.hidden_size, LLAMA.intermediate_size))

    def after_forward(kept: bool, hooks: bool) -> int:
        tracker = MemoryTracker()
        loaded = prepare(meta_model(LLAMA), Source("", "", "", None, None), c, META, storage="quantized")
        with tracker, device_attention(), watched_by(tracker):
            checkpoint_activations(loaded.model)
            who = attach(loaded.model, [member_of("m", c, loaded.linears, loaded.model.config, 0)], torch.float32, META)
            rows = shape_rows(SHAPE, False)
            fit = Fit(who, rows, [c.train], [0], settings_for(c, loaded, SHAPE))
            layers = [m for m in loaded.model.modules() if isinstance(m, GradientCheckpointingLayer)]
            layers[0].gradient_checkpointing = not kept
            with saved_tensors_hooks(lambda t: t, lambda t: t) if hooks else nullcontext():
                fit.step(0, fit.batches(0))
        tracker.close()
        return tracker.peaks["forward"].end

    nothing = after_forward(False, False)
    made_again, as_recomputed = (after_forward(True, hooks) - nothing for hooks in (False, True))
    assert as_recomputed - made_again == product
    found = forecast(Plan(c, LLAMA, SHAPE))
    boundaries = found.phases["forward"]["end_bytes"] - found.phases["optimizer"]["end_bytes"]
    assert found.peak_phase == "backward"
    # at the peak, in the midst of the layer's backward pass, part of what it kept is given back
    assert as_recomputed - 2 * hidden <= (found.components["saved_activations"] or 0) - boundaries <= as_recomputed
