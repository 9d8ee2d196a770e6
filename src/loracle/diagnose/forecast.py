"""The forecast: where the bytes go on a CUDA device, by component and phase, before anything runs and on any machine.

The real training step runs on PyTorch's meta device: the same base, adapters, optimizer and loop, tensors of shapes alone. What it
allocates and frees is followed, in the order of the device (``tracking_memory``). So the forecast follows the engine as it changes.

Not covered: CUDA graphs' private pools, fragmentation over many steps of different lengths, a base's outliers under LLM.int8().
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from loracle.adapters.alone import attach_alone
from loracle.adapters.cohort import attach, member_of
from loracle.adapters.trainee import Trainee
from loracle.base.errors import LoracleError, one_line
from loracle.diagnose.components import base_tensors, quantized_layers
from loracle.diagnose.stand_ins import CONTEXT, device_attention
from loracle.diagnose.tracking_memory import MemoryTracker
from loracle.evaluate.loss import item_losses
from loracle.models.ledger import COMPONENTS
from loracle.models.load import LoadedBase, meta_model, prepare
from loracle.models.memory_labels import watched_by
from loracle.models.source import Source
from loracle.spec.study import Cell
from loracle.train.fit import Fit, FitSettings

META = torch.device("meta")
PHASES = ("load", "attach", "optimizer", "forward", "backward", "step", "evaluation")
TRAINING = PHASES[:-1]


@dataclass(frozen=True)
class Geometry:
    """Rows of one batch: ``rows`` of ``length`` tokens, ``scored`` positions in each; ``classes`` of a classification."""

    rows: int
    length: int
    scored: int


@dataclass(frozen=True)
class Shape:
    """A row that is only a shape, as ``adapters.batch.Row``."""

    input_ids: Sequence[int]
    labels: Sequence[int]
    label_id: int | None


@dataclass(frozen=True)
class Forecast:
    """``peak_bytes``: the most that torch has allocated from loading to the last training step; ``components`` add up to it.

    ``phases``: phase → ``{peak_bytes, end_bytes}``; ``reserved_bytes``: what torch has taken from the device for it,
    ``managed_bytes``: optimizer state in managed memory, which is in no other figure; ``peak_phase``: where the peak is.
    """

    peak_bytes: int
    reserved_bytes: int
    managed_bytes: int
    peak_phase: str
    components: dict[str, int]
    phases: dict[str, dict[str, int]]

    @property
    def needs_bytes(self) -> int:
        """Memory of a GPU that can do it all: what torch takes, evaluation included, and the CUDA context."""
        return self.reserved_bytes + CONTEXT


def forecast(
    cell: Cell,
    config: Any,
    *,
    members: int = 1,
    geometry: Geometry,
    evaluation: Geometry | None = None,
    labels: int | None = None,
    storage: str = "quantized",
    compute_dtype: str = "auto",
) -> Forecast:
    """What ``members`` runs of ``cell``, trained side by side, allocate. ``config`` is the base's (Transformers').

    ``labels``: how many a cell that classifies has. Raises ``LoracleError`` for what cannot be followed without a device.
    """
    if compute_dtype != "auto":
        cell = cell.model_copy(update={"compute_dtype": compute_dtype})
    try:
        return _replay(cell, config, members, geometry, evaluation, labels, storage)
    except LoracleError:
        raise
    except (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError) as error:
        raise LoracleError(f"not predicted: {one_line(error)}") from error


def _replay(
    cell: Cell,
    config: Any,
    members: int,
    geometry: Geometry,
    evaluation: Geometry | None,
    labels: int | None,
    storage: str,
) -> Forecast:
    loaded = prepare(meta_model(config, labels=labels), _nowhere(), cell, META, storage=storage, vocab=None)
    tracker = MemoryTracker()
    with tracker, device_attention(), watched_by(tracker):
        _count_base(tracker, loaded)
        tracker.enter("attach")
        if cell.train.gradient_checkpointing:
            _checkpoint(tracker, loaded.model)
        who = _trainee(cell, loaded, labels, members)
        _name_adapters(tracker, who)
        tracker.enter("optimizer")
        rows = shape_rows(geometry, cell.task.classifies) * cell.train.gradient_accumulation
        fit = Fit(who, rows, [cell.train] * members, [0] * members, settings_for(cell, loaded, geometry))
        tracker.name_phase("optimizer", "optimizer")
        fit.step(0, fit.batches(0))
        if evaluation is not None:
            tracker.enter("evaluation")
            item_losses(who, shape_rows(evaluation, cell.task.classifies), 0, META)
            tracker.enter("idle")
    tracker.close()
    return _result(tracker)


def _nowhere() -> Source:
    return Source("", "", "", None, None)


def _count_base(tracker: MemoryTracker, loaded: LoadedBase) -> None:
    """Allocate the base as ``prepare`` does on a device: quantized layers one by one, each beside its dense weight; then the rest."""
    for module, tensors in quantized_layers(loaded.model, loaded.assignment):
        with tracker.held(module.in_features * module.out_features * loaded.compute_dtype.itemsize, "rest"):
            for tensor, component in tensors:
                tracker.adopt_new(tensor, component)
    for tensor, component in base_tensors(loaded.model, loaded.assignment):
        tracker.adopt_new(tensor, component)


def _checkpoint(tracker: MemoryTracker, model: Any) -> None:
    settings = {"use_reentrant": False, "preserve_rng_state": False}
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False) and not hasattr(module, "layers") and module is not model:
            tracker.watch_recomputation(module)


def _trainee(cell: Cell, loaded: LoadedBase, labels: int | None, members: int) -> Trainee:
    if cell.alone:
        return attach_alone("forecast", cell, loaded, 0, 0)
    member = member_of("forecast", cell, loaded.linears, loaded.model.config, labels or 0)
    return attach(loaded.model, [member] * members, torch.float32, loaded.device)


def _name_adapters(tracker: MemoryTracker, who: Trainee) -> None:
    """Everything made since the base is adapters but their gradients."""
    tracker.adopt(who.flat.grad, "gradients")
    tracker.name_phase("attach", "adapters")


def settings_for(cell: Cell, loaded: LoadedBase, geometry: Geometry, steps: int = 1) -> FitSettings:
    """Settings of ``steps`` optimizer steps over rows that are only shapes."""
    half = loaded.compute_dtype == torch.float16
    accumulation = cell.train.gradient_accumulation
    return FitSettings(steps, geometry.rows, accumulation, 0, identity="forecast", loss_scaling=half)


def shape_rows(geometry: Geometry, classifies: bool) -> list[Shape]:
    """Rows of zeros, all as long and with as many scored positions as the geometry says."""
    ids = [0] * geometry.length
    scored = min(geometry.scored, geometry.length - 1)
    row = Shape(ids, [-100] * (geometry.length - scored) + [0] * scored, 0 if classifies else None)
    return [row] * geometry.rows


def _result(tracker: MemoryTracker) -> Forecast:
    there = [phase for phase in TRAINING if phase in tracker.peaks]
    top = max(there, key=lambda phase: tracker.peaks[phase].bytes)
    found = tracker.components(top)
    return Forecast(
        tracker.peaks[top].bytes,
        max(peak.reserved for peak in tracker.peaks.values()),
        tracker.managed,
        top,
        {name: found.get(name, 0) for name in COMPONENTS},
        {
            phase: {"peak_bytes": tracker.peaks[phase].bytes, "end_bytes": tracker.peaks[phase].end}
            for phase in PHASES
            if phase in tracker.peaks
        },
    )
