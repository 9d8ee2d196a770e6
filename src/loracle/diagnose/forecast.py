"""The forecast: where the bytes go on a CUDA device, by component and phase, before anything runs and on any machine.

The real training step runs on PyTorch's meta device: the same base, adapters, optimizer and loop, tensors of shapes alone. What it
allocates and frees is followed, in the order of the device (``tracking_memory``). So the forecast follows the engine as it changes.

Not covered: CUDA graphs' private pools, fragmentation over many steps of different lengths, a base's outliers under LLM.int8().
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from loracle.adapters.alone import attach_alone
from loracle.adapters.cohort import Member, attach, member_of
from loracle.adapters.ranks import Size
from loracle.adapters.trainee import Trainee
from loracle.base.errors import LoracleError, one_line
from loracle.base.gpu import CONTEXT
from loracle.diagnose.autocast_shapes import AutocastShapes
from loracle.diagnose.components import base_tensors, quantized_layers, rewrap_checkpoints
from loracle.diagnose.stand_ins import device_attention
from loracle.diagnose.tracking_memory import MemoryTracker
from loracle.evaluate.loss import item_losses
from loracle.models.ledger import COMPONENTS
from loracle.models.load import LoadedBase, checkpoint_activations, meta_model, prepare
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

    ``phases``: phase → ``{peak_bytes, end_bytes}``; ``peak_phase``: where the peak is. ``reserved_bytes``: what torch has taken from
    the device by then; ``managed_bytes``: optimizer state in managed memory, which is in no other figure.
    With a ``reason`` the step could not be followed: the peak is null, and so are components that it would have told.
    """

    peak_bytes: int | None
    reserved_bytes: int | None
    managed_bytes: int
    peak_phase: str | None
    components: dict[str, int | None]
    phases: dict[str, dict[str, int]]
    reason: str | None = None

    @property
    def needs_bytes(self) -> int | None:
        """Memory of a GPU that can train it: what torch takes, and the CUDA context. Evaluation takes what there is
        (``evaluate.loss``)."""
        return None if self.reserved_bytes is None else self.reserved_bytes + CONTEXT


@dataclass(frozen=True)
class Plan:
    """What is to be forecast: ``members`` runs of ``cell`` side by side over the base of ``config`` (Transformers').

    ``labels``: how many a cell that classifies has. ``added``: the tokenizer's length, for a cell that adds tokens. ``packed``: the
    batch that stands in the place of ``geometry`` where the trainee packs its rows. ``beside``: other cells of the cohort: every
    member has room at each layer that any of them adapts, of the largest rank there.
    """

    cell: Cell
    config: Any
    geometry: Geometry
    members: int = 1
    evaluation: Geometry | None = None
    labels: int | None = None
    added: int | None = None
    storage: str = "quantized"
    packed: Geometry | None = None
    beside: tuple[Cell, ...] = ()


def forecast(plan: Plan) -> Forecast:
    """What the plan allocates on a CUDA device; partial, with a reason, where the step cannot be followed without one."""
    tracker = MemoryTracker()
    reason = None
    try:
        _replay(plan, tracker)
    except (
        LoracleError,
        RuntimeError,
        NotImplementedError,
        ValueError,
        TypeError,
        AttributeError,
        IndexError,
    ) as error:
        reason = f"cannot be followed without a device: {one_line(error)}"
    tracker.close()
    return _result(tracker) if reason is None else _partial(tracker, reason)


def _replay(plan: Plan, tracker: MemoryTracker) -> None:
    """Load, attach, train one step and evaluate, watched by ``tracker``."""
    cell = plan.cell
    model = meta_model(plan.config, labels=plan.labels)
    loaded = prepare(model, _nowhere(), cell, META, storage=plan.storage, vocab=plan.added)
    with tracker, device_attention(), watched_by(tracker):
        _count_base(tracker, loaded)
        tracker.enter("attach")
        if cell.train.gradient_checkpointing:
            checkpoint_activations(loaded.model)
        who = _trainee(plan, loaded)
        _watch_checkpoints(tracker, loaded, who)
        tracker.adopt(who.flat.grad, "gradients")
        tracker.name_phase("attach", "adapters")
        tracker.enter("optimizer")
        geometry = plan.packed if plan.packed is not None and who.packs else plan.geometry
        rows = shape_rows(geometry, cell.task.classifies) * cell.train.gradient_accumulation
        settings = settings_for(cell, loaded, geometry)
        fit = Fit(who, rows, [cell.train] * plan.members, [0] * plan.members, settings)
        tracker.name_phase("optimizer", "optimizer")
        fit.step(0, fit.batches(0))
        if plan.evaluation is not None:
            tracker.enter("evaluation")
            item_losses(who, shape_rows(plan.evaluation, cell.task.classifies), 0, META)
            tracker.enter("idle")


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


def _trainee(plan: Plan, loaded: LoadedBase) -> Trainee:
    if not plan.cell.alone:
        cells = (plan.cell, *plan.beside)
        member = widest(
            [member_of("forecast", c, loaded.linears, loaded.model.config, plan.labels or 0) for c in cells]
        )
        return attach(loaded.model, [member] * plan.members, torch.float32, loaded.device)
    with META:
        who = attach_alone("forecast", plan.cell, loaded, 0, 0)
    if loaded.compute_dtype != torch.float32:
        who.autocast = lambda: AutocastShapes(loaded.compute_dtype)  # type: ignore[method-assign]
    return who


def widest(members: Sequence[Member]) -> Member:
    """The first of them with parameters wherever any has some, of the largest rank there."""
    first = members[0]
    sites = tuple(dict.fromkeys(site for member in members for site in member.sites))
    sizes = {site: Size(max(m.rank_at(site) for m in members), first.alpha) for site in sites}
    dropout = max(member.dropout for member in members)
    return replace(first, sites=sites, sizes=sizes, dropout=dropout) if len(members) > 1 else first


def _watch_checkpoints(tracker: MemoryTracker, loaded: LoadedBase, who: Trainee) -> None:
    within = getattr(who, "autocast", nullcontext)
    rewrap_checkpoints(loaded.model, lambda checkpoint: tracker.watching_recomputation(checkpoint, within))


def settings_for(cell: Cell, loaded: LoadedBase, geometry: Geometry, steps: int = 1) -> FitSettings:
    """Settings of ``steps`` optimizer steps over rows that are only shapes."""
    half = loaded.compute_dtype == torch.float16
    accumulation = cell.train.gradient_accumulation
    return FitSettings(
        steps,
        geometry.rows,
        accumulation,
        0,
        identity="forecast",
        best_checkpoint=cell.train.best_checkpoint,
        loss_scaling=half,
    )


def shape_rows(geometry: Geometry, classifies: bool) -> list[Shape]:
    """Rows of zeros, all as long and with as many scored positions as the geometry says."""
    ids = [0] * geometry.length
    scored = min(geometry.scored, geometry.length - 1)
    row = Shape(ids, [-100] * (geometry.length - scored) + [0] * scored, 0 if classifies else None)
    return [row] * geometry.rows


def _result(tracker: MemoryTracker) -> Forecast:
    top = max((p for p in TRAINING if p in tracker.peaks), key=lambda phase: tracker.peaks[phase].bytes)
    found = tracker.components(top)
    reserved = max(tracker.peaks[phase].reserved for phase in TRAINING if phase in tracker.peaks)
    components: dict[str, int | None] = {name: found.get(name, 0) for name in COMPONENTS}
    return Forecast(tracker.peaks[top].bytes, reserved, tracker.managed, top, components, _phases(tracker, PHASES))


def _partial(tracker: MemoryTracker, reason: str) -> Forecast:
    """What lasts, of the phases that were reached."""
    reached = [phase for phase in ("load", "attach", "optimizer") if phase in tracker.peaks]
    components: dict[str, int | None] = dict.fromkeys(COMPONENTS, None)
    complete = reached[: -1 if reached and tracker.phase == reached[-1] else None]
    if complete:
        found = tracker.components(complete[-1])
        lasting = {"load": COMPONENTS[:3], "attach": COMPONENTS[:5], "optimizer": COMPONENTS[:6]}[complete[-1]]
        components |= {name: found.get(name, 0) for name in lasting}
    return Forecast(None, None, tracker.managed, None, components, _phases(tracker, complete), reason)


def _phases(tracker: MemoryTracker, names: Sequence[str]) -> dict[str, dict[str, int]]:
    peaks = {phase: tracker.peaks[phase] for phase in names if phase in tracker.peaks}
    return {phase: {"peak_bytes": peak.bytes, "end_bytes": peak.end} for phase, peak in peaks.items()}
