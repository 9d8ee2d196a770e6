"""The clock of peaks against the forecast: counters as a device would show them that allocates just as is forecast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import GPT2Config, LlamaConfig

from loracle.adapters.cohort import attach, member_of
from loracle.diagnose.components import base_tensors
from loracle.diagnose.forecast import META, TRAINING, Forecast, Geometry, Plan, forecast, settings_for, shape_rows
from loracle.diagnose.peak_clock import PeakClock, measured_components, unexplained
from loracle.diagnose.stand_ins import device_attention
from loracle.diagnose.tracking_memory import MemoryTracker
from loracle.models.load import checkpoint_activations, meta_model, prepare
from loracle.models.memory_labels import watched_by
from loracle.models.source import Source
from loracle.spec.study import Cell
from loracle.train.fit import Fit

GPT2 = GPT2Config(n_layer=6, n_embd=256, n_head=4, vocab_size=1000, bos_token_id=0, eos_token_id=0)
LLAMA = LlamaConfig(
    hidden_size=256,
    intermediate_size=1408,  # as wide as in a Qwen2.5-0.5B
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=4,
    vocab_size=1000,
)
WORDY = GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=20000, bos_token_id=0, eos_token_id=0)
SHAPE = Geometry(rows=8, length=512, scored=256)


class Counters(MemoryTracker):
    """What torch's counters would show."""

    highest = 0

    def _note(self) -> None:
        super()._note()
        self.highest = max(self.highest, self.allocator.allocated)

    def shown(self, patch: pytest.MonkeyPatch) -> None:
        """From now on ``torch.cuda``'s counters are these."""
        patch.setattr(torch.cuda, "memory_allocated", lambda _: self.allocator.allocated)
        patch.setattr(torch.cuda, "max_memory_allocated", lambda _: self.highest)
        patch.setattr(torch.cuda, "max_memory_reserved", lambda _: self.allocator.reserved)
        patch.setattr(
            torch.cuda, "reset_peak_memory_stats", lambda _: setattr(self, "highest", self.allocator.allocated)
        )


class Both:
    """The device, which sees what it allocates, and the clock that is tried."""

    def __init__(self, *observers: Any) -> None:
        self.observers = observers

    def reached(self, moment: str) -> None:
        for each in self.observers:
            each.reached(moment)

    @contextmanager
    def counted_as(self, component: str) -> Iterator[None]:
        with ExitStack() as stack:
            for each in self.observers:
                stack.enter_context(each.counted_as(component))
            yield


class Measured:
    """Two steps of a cell under the clock, and the step more of ``measure_a_layer``."""

    def __init__(self, config: Any, precision: str, patch: pytest.MonkeyPatch, **train: Any) -> None:
        cell = Cell.model_validate(
            {
                "task": {"data": "shapes.jsonl", "format": "text"},
                "precision": precision,
                "adapter": {"rank": 8, "targets": "all-linear"},
                "train": {"steps": 3, "batch_size": SHAPE.rows, **train},
            }
        )
        self.predicted: Forecast = forecast(Plan(cell, config, SHAPE))
        device = Counters()
        device.shown(patch)
        loaded = prepare(meta_model(config), Source("", "", "", None, None), cell, META, storage="quantized")
        self.clock = clock = PeakClock(META)
        with device, device_attention(), watched_by(Both(device, clock)):
            for tensor, component in base_tensors(loaded.model, loaded.assignment):
                device.adopt_new(tensor, component)
            clock.enter("attach")
            if cell.train.gradient_checkpointing:
                checkpoint_activations(loaded.model)
            who = attach(
                loaded.model, [member_of("x", cell, loaded.linears, loaded.model.config, 0)], torch.float32, META
            )
            device.adopt(who.flat.grad, "gradients")
            clock.enter("optimizer")
            rows = shape_rows(SHAPE, False) * cell.train.gradient_accumulation
            fit = Fit(who, rows, [cell.train], [0], replace(settings_for(cell, loaded, SHAPE), steps=3))
            for step in range(2):
                fit.step(step, fit.batches(step))
            clock.enter("done")
            self.before = dict(clock.phases), dict(clock.kept), clock.reserved
            clock.measure_a_layer(fit)
            self.components = measured_components(clock, loaded, fit)
        device.close()
        self.peak_phase, self.peak = clock.peak(TRAINING)

    @property
    def unexplained_share(self) -> float:
        rest = unexplained(self.peak, self.components, self.predicted.components)
        assert rest is not None
        return rest / self.peak


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("precision", ["bf16", "nf4"])
@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_checkpointed_layers_add_up_to_the_peak(
    monkeypatch: pytest.MonkeyPatch, config: Any, precision: str, accumulation: int
) -> None:
    """With the stored inputs and one layer in full: what that layer makes again for its backward pass, and without what the
    final norm and the loss have kept, which is gone by then."""
    pytest.importorskip("bitsandbytes")
    found = Measured(config, precision, monkeypatch, gradient_checkpointing=True, gradient_accumulation=accumulation)
    assert found.peak_phase == found.predicted.peak_phase == "backward"
    assert found.clock.in_layers is not None
    assert found.components["saved_activations"] == pytest.approx(  # a block has up to 1 MiB that nobody asked for
        found.predicted.components["saved_activations"], rel=0.02
    )
    assert abs(found.unexplained_share) < 0.01
    assert (found.clock.phases, found.clock.kept, found.clock.reserved) == found.before


def test_no_layer_is_there_where_the_loss_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 all logits are there, and backward peaks before it comes to a layer."""
    found = Measured(WORDY, "fp32", monkeypatch, gradient_checkpointing=True)
    assert found.peak_phase == "backward"
    assert found.clock.in_layers is None
    assert abs(found.unexplained_share) < 0.01


def test_nothing_is_measured_again_without_checkpointing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of 11 MiB in blocks of 12 MiB: a counter sees the blocks, and so do the forecast's saved activations."""
    found = Measured(LLAMA, "bf16", monkeypatch)
    assert found.clock.in_layers is None
    assert abs(found.unexplained_share) < 0.01
