"""Peaks of a real training on a CUDA device, phase by phase, from torch's own counters; and what can be known of their components.

Reading the counters needs no synchronisation: the allocator keeps them on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from loracle.diagnose.caching_allocator import rounded
from loracle.diagnose.components import base_bytes
from loracle.diagnose.forecast import TRAINING
from loracle.models.ledger import COMPONENTS
from loracle.models.load import LoadedBase
from loracle.train.fit import Fit

LAYERS = "layers"
"""The part of backward that begins with the last layer's."""


@dataclass
class PeakClock:
    """An ``Observer`` of ``memory_labels`` on ``device`` (CUDA). ``phases``: phase → ``{peak_bytes, end_bytes}``.

    A phase that comes again keeps its highest peak and its last end. ``kept``: component → bytes that the forward pass has left
    there by its end, by label. ``in_layers``: bytes of saved activations while the last checkpointed layer is there in full, where
    backward peaks then (``measure_a_layer``).
    """

    device: torch.device
    phase: str = "load"
    phases: dict[str, dict[str, int]] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    reserved: int = 0
    in_layers: int | None = None
    _begun: int = 0  # bytes when the phase began
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
        self.phase, self._begun = phase, now

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

    def measure_a_layer(self, fit: Fit, step: int = 0) -> None:
        """``in_layers`` of a checkpointed model, by step ``step`` of ``fit`` once more, in which the last layer is computed once and
        stays. What else the clock shows stays as it was.

        The last, because with it all inputs of layers are there. Not covered: layers before it that keep more than it does, and a
        peak while a layer is still being computed again (LLM.int8() has it).
        """
        layers: list[Any] = [m for m in fit.cohort.model.modules() if isinstance(m, GradientCheckpointingLayer)]
        last = next((layer for layer in reversed(layers) if layer.gradient_checkpointing), None)
        if last is None:
            return
        shown = self.phases, self.kept, self.reserved
        found: list[int] = []
        checkpoint, captured = last._gradient_checkpointing_func, fit.graphs.on
        last._gradient_checkpointing_func, fit.graphs.on = self._staying(found), False
        self.phases = {}
        try:
            fit.step(step, fit.batches(step))
            peaks = [self.phases[phase]["peak_bytes"] for phase in ("backward", LAYERS) if phase in self.phases]
            self.in_layers = found[-1] if peaks[-1] > peaks[0] else None
        finally:
            last._gradient_checkpointing_func, fit.graphs.on = checkpoint, captured
            self.phases, self.kept, self.reserved = shown

    def _staying(self, found: list[int]) -> Callable[..., Any]:
        """In place of a layer's checkpoint function: nothing is dropped. ``found`` gets what forward has left by the layer's end.

        That is read here and not after forward: what comes after the layers is gone when backward reaches them. The layer's result
        is, too.
        """

        def compute(function: Callable[..., Any], *args: Any) -> Any:
            # Computed again, a layer saves through hooks, under which the engine keeps more (``made_again``): so here.
            with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved.detach(), lambda kept: kept):
                out = function(*args)
            hidden = out if isinstance(out, torch.Tensor) else out[0]
            now = torch.cuda.memory_allocated(self.device)
            found.append(now - self._begun - rounded(hidden.untyped_storage().nbytes()))
            if hidden.requires_grad:  # else backward comes to no layer
                hidden.register_hook(lambda _: self.enter(LAYERS))
            return out

        return compute

    def peak(self, phases: tuple[str, ...]) -> tuple[str, int]:
        """(phase, bytes) of the highest peak among ``phases``."""
        top = max((p for p in phases if p in self.phases), key=lambda p: self.phases[p]["peak_bytes"])
        return top, self.phases[top]["peak_bytes"]


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
    allocated after a forward pass and was not before, without what it holds for logits and loss; where backward peaks in
    checkpointed layers, what is there when the last of them is there in full.
    """
    found = lasting_components(loaded, fit)
    ends = {phase: entry["end_bytes"] for phase, entry in clock.phases.items()}
    found["adapters"] = ends["attach"] - ends["load"] - int(found["gradients"] or 0)
    found["optimizer"] = ends["optimizer"] - ends["attach"]
    before = ends.get("idle", ends["optimizer"])
    saved = ends["forward"] - before - clock.kept.get("logits_and_loss", 0)
    in_layers = clock.in_layers if clock.peak(TRAINING)[0] == "backward" else None
    found["saved_activations"] = saved if in_layers is None else in_layers
    return found


def unexplained(peak: int, measured: Mapping[str, int | None], predicted: Mapping[str, int | None]) -> int | None:
    """Bytes of the measured peak that no component accounts for: those that were measured as measured, the others as predicted;
    null where one is neither."""
    parts = [predicted[name] if measured[name] is None else measured[name] for name in COMPONENTS]
    known = [part for part in parts if part is not None]
    return peak - sum(known) if len(known) == len(parts) else None
