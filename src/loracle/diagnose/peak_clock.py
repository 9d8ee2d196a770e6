"""Peaks of a real training on a CUDA device, phase by phase, from torch's own counters; and what can be known of their components.

Reading the counters needs no synchronisation: the allocator keeps them on the host.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from loracle.diagnose.components import base_bytes
from loracle.models.ledger import COMPONENTS
from loracle.models.load import LoadedBase
from loracle.train.fit import Fit


@dataclass
class PeakClock:
    """An ``Observer`` of ``memory_labels`` on ``device`` (CUDA). ``phases``: phase → ``{peak_bytes, end_bytes}``.

    A phase that comes again keeps its highest peak and its last end. ``kept``: component → bytes that the forward pass has left
    there by its end, by label.
    """

    device: torch.device
    phase: str = "load"
    phases: dict[str, dict[str, int]] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    recomputed: int = 0  # what one checkpointed layer keeps beyond its input when it is computed again
    reserved: int = 0
    _within: bool = False  # a label: the outermost counts

    def __post_init__(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)

    def enter(self, phase: str) -> None:
        """``phase`` begins; the one before is written down."""
        now = torch.cuda.memory_allocated(self.device)
        before = self.phases.get(self.phase, {"peak_bytes": 0})
        peak = max(before["peak_bytes"], torch.cuda.max_memory_allocated(self.device))
        self.phases[self.phase] = {"peak_bytes": peak, "end_bytes": now}
        self.reserved = max(self.reserved, torch.cuda.max_memory_reserved(self.device))
        torch.cuda.reset_peak_memory_stats(self.device)
        self.phase = phase

    def reached(self, moment: str) -> None:
        """A moment of the training step."""
        self.enter(moment)
        if moment == "forward":
            self.kept = {}

    @contextmanager
    def counted_as(self, component: str) -> Iterator[None]:
        """What the forward pass leaves within the block is ``component``."""
        if self._within:
            yield
            return
        before = torch.cuda.memory_allocated(self.device)
        self._within = True
        try:
            yield
        finally:
            self._within = False
            if self.phase == "forward":
                grown = torch.cuda.memory_allocated(self.device) - before
                self.kept[component] = self.kept.get(component, 0) + grown

    def measure_a_layer(self, fit: Fit) -> None:
        """``recomputed`` of a checkpointed model, by one more step of ``fit`` in which its first layer keeps what it saves. What else
        the clock shows stays as it was. The step runs under hooks on what autograd saves, as a recomputed layer does: without any
        ``frozen.made_again`` would leave out the gated product, which a recomputed layer keeps."""
        layers = [m for m in fit.cohort.model.modules() if isinstance(m, GradientCheckpointingLayer)]
        if not any(layer.gradient_checkpointing for layer in layers):
            return
        shown = dict(self.phases)
        captured, fit.graphs.on = fit.graphs.on, False
        layers[0].gradient_checkpointing = False
        try:
            with torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is):
                fit.step(0, fit.batches(0))
        finally:
            layers[0].gradient_checkpointing, fit.graphs.on = True, captured
        self.recomputed = self.phases["forward"]["end_bytes"] - shown["forward"]["end_bytes"]
        self.phases = shown

    def peak(self, phases: tuple[str, ...]) -> tuple[str, int]:
        """(phase, bytes) of the highest peak among ``phases``."""
        top = max((p for p in phases if p in self.phases), key=lambda p: self.phases[p]["peak_bytes"])
        return top, self.phases[top]["peak_bytes"]


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def lasting_components(loaded: LoadedBase, fit: Fit) -> dict[str, int | None]:
    """Component → bytes of the tensors that outlive a step, counted one by one on any device; null for the others."""
    found: dict[str, int | None] = dict.fromkeys(COMPONENTS, None)
    found |= base_bytes(loaded.model, loaded.assignment, loaded.device.type)
    flat = fit.cohort.flat
    found["gradients"] = flat.grad.numel() * flat.grad.element_size()
    found["adapters"] = flat.data.numel() * flat.data.element_size()
    found["optimizer"] = sum(t.numel() * t.element_size() for t in fit.optimizer.tensors().values())
    return found


def measured_components(clock: PeakClock, loaded: LoadedBase, fit: Fit) -> dict[str, int | None]:
    """Component → bytes at the peak of a step; null for what no counter can tell apart.

    Weights and constants: the tensors that are there. Adapters and optimizer: what their phases added. Saved activations: what is
    allocated after a forward pass and was not before, without what it holds for logits and loss; under checkpointing also what
    one layer keeps when it is computed again.
    """
    found = lasting_components(loaded, fit)
    ends = {phase: entry["end_bytes"] for phase, entry in clock.phases.items()}
    found["adapters"] = ends["attach"] - ends["load"] - int(found["gradients"] or 0)
    found["optimizer"] = ends["optimizer"] - ends["attach"]
    before = ends.get("idle", ends["optimizer"])
    saved = ends["forward"] - before - clock.kept.get("logits_and_loss", 0)
    in_full = clock.peak(tuple(clock.phases))[0] == "backward"  # one checkpointed layer is there in full
    found["saved_activations"] = saved + (clock.recomputed if in_full else 0)
    return found


def unexplained(peak: int, measured: Mapping[str, int | None], predicted: Mapping[str, int | None]) -> int | None:
    """Bytes of the measured peak that no component accounts for: those that were measured as measured, the others as predicted;
    null where one is neither."""
    parts = [predicted[name] if measured[name] is None else measured[name] for name in COMPONENTS]
    known = [part for part in parts if part is not None]
    return peak - sum(known) if len(known) == len(parts) else None
