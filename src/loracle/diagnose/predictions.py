"""Forecasts for a study's cells: of the largest batch of its rows, each made once; what fits on the study's GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from loracle.adapters.batch import Row, scored
from loracle.diagnose import fitting
from loracle.diagnose.fitting import Budget, Change
from loracle.diagnose.forecast import Forecast, Geometry, Plan, forecast
from loracle.evaluate.loss import batches_by_length
from loracle.models.load import device_name, pick_storage
from loracle.spec.load import tuples
from loracle.spec.methods import METHODS
from loracle.spec.study import UNQUANTIZED, Cell, parse_bytes
from loracle.train.order import DataOrder
from loracle.train.shapes import SCORED_STEP, STEP, up

LOOKED_AT = 2_000_000  # rows of a training, over all data orders, whose batches are counted


@dataclass(frozen=True)
class Setting:
    """What a cell stands on: its base's config, its rows (null where they could not be read), how many labels it has, the length of
    the tokenizer with added tokens, the largest rank that its layers bear (null for methods without one), the ``seeds`` of the data
    orders of runs whose rows may be packed (none: they may not), and by how much orders lie off a seed that the cell itself names."""

    config: Any
    train: Sequence[Row] | None
    evaluation: Sequence[Row] | None
    labels: int | None
    vocab: int | None
    most_rank: int | None
    seeds: tuple[int, ...] = ()
    offsets: tuple[int, ...] = (0,)


class Predictions:
    """Forecasts, kept by what they depend on: not by learning rates or schedules."""

    def __init__(self) -> None:
        self._known: dict[str, Forecast] = {}

    def of(
        self,
        cell: Cell,
        setting: Setting,
        *,
        members: int = 1,
        storage: str = "quantized",
        evaluated: bool = False,
        beside: Sequence[Cell] = (),
    ) -> Forecast:
        """The forecast of ``members`` runs of ``cell``, and of cells ``beside``, side by side; ``evaluated``: with an evaluation after
        the step."""
        plan = Plan(
            cell,
            setting.config,
            training_geometry(cell, setting.train),
            members,
            evaluation_geometry(setting.evaluation, members) if evaluated and setting.evaluation else None,
            setting.labels,
            setting.vocab,
            pick_storage(cell, storage),
            packed_geometry(cell, setting.train, setting.seeds, setting.offsets),
            tuple(beside),
        )
        key = _key(plan)
        if key not in self._known:
            found = self._known[key] = forecast(plan)
            if plan.evaluation is not None and found.reason is None:  # what its training takes is known with it
                self._known.setdefault(_key(replace(plan, evaluation=None)), found)
        return self._known[key]

    def fit(self, cell: Cell, setting: Setting, budget: Budget, *, grow: bool = True) -> dict[str, Any]:
        """The cell's ``fit`` in the inspect record: one run alone, in quantized storage; with ``grow`` how far it could grow."""

        def needs(change: Change) -> int | None:
            if not change:
                return self.of(cell, setting, evaluated=True).needs_bytes
            try:
                other = Cell.model_validate(tuples(fitting.changed(cell.model_dump(), change)))
            except ValueError:  # the change does not go with the cell
                return None
            return self.of(other, setting).needs_bytes

        return fitting.judge(_settings(cell, setting), budget, needs, grow=grow)

    def group(self, cells: Sequence[Cell], settings: Sequence[Setting], budget: Budget, runs: int) -> dict[str, Any]:
        """A group's ``sizing`` in the inspect record: as many of its ``runs`` as fit side by side in the storage that they train in,
        all taken for the cell that needs most, with room for the adapters of the others: a cohort has room for all at each layer.
        Where dequantized weights do not fit even one, ``quantized`` is the sizing in that storage."""
        pairs = list(zip(cells, settings, strict=True))
        cell, setting = max(pairs, key=lambda pair: self.of(*pair).peak_bytes or 0)
        storage = pick_storage(cell)
        others = list({_adapter(c): c for c in cells if _adapter(c) != _adapter(cell)}.values())
        alone = cell.train.base_dropout or "int8" in cell.precision_names  # neighbours would be felt

        def sized(storage: str) -> dict[str, Any]:
            def needs(n: int) -> int | None:
                return self.of(cell, setting, members=n, storage=storage, beside=others if n > 1 else ()).needs_bytes

            found = fitting.members(budget, needs, 1 if alone else runs)
            return {"ms_per_step": None, "candidates": [], "storage": storage, **found}

        found = sized(storage)
        if storage == "dequantized" and found["size"] == 1:
            one = self.of(cell, setting, storage=storage).needs_bytes
            if one is not None and one > budget.bytes:
                found["quantized"] = sized("quantized")
        return found


def budget_of(gpu_memory: str | None, device: torch.device) -> Budget | None:
    """The GPU to plan for: the one that the study names, else the card present; null on a CPU without either."""
    if gpu_memory is not None:
        return Budget(parse_bytes(gpu_memory), "run.gpu_memory")
    if device.type == "cuda":
        return Budget(torch.cuda.get_device_properties(device).total_memory, device_name(device))
    return None


_sized: list[tuple[Sequence[Row], np.ndarray, np.ndarray]] = []


def _sizes(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and scored positions of each row. Those of the rows last asked for are kept: a plan asks for every change it tries."""
    if not _sized or _sized[0][0] is not rows:
        lengths = np.array([len(row.input_ids) for row in rows])
        _sized[:] = [(rows, lengths, np.array([scored(row)[0].size for row in rows]))]
    return _sized[0][1:]


def training_geometry(cell: Cell, rows: Sequence[Row] | None) -> Geometry:
    """The largest batch that the rows can make: all as long as the longest, with as many scored positions as those that have most."""
    size, limit = cell.train.batch_size, cell.task.max_length
    if not rows:
        return Geometry(size, limit, limit - 1)
    lengths, positions = _sizes(rows)
    most = np.sort(positions)[::-1][:size]
    return Geometry(size, min(limit, int(lengths.max())), max(1, math.ceil(int(most.sum()) / len(most))))


def packed_geometry(
    cell: Cell, rows: Sequence[Row] | None, seeds: Sequence[int], offsets: Sequence[int] = (0,)
) -> Geometry | None:
    """The largest packed batch of the runs of these seeds, as their data orders have it, rounded as ``train.shapes`` does; None
    without seeds, and where all rows are equally long, which no run packs."""
    if not rows or not seeds:
        return None
    lengths, positions = _sizes(rows)
    if lengths.min() == lengths.max():
        return None
    train = cell.train
    own = seeds if train.order_seed is None else tuple(train.order_seed + offset for offset in offsets)
    batches = (steps_of(cell, len(rows)) or 1) * train.gradient_accumulation
    batches = max(1, min(batches, LOOKED_AT // (train.batch_size * len(own))))
    tokens = most = 0
    for seed in own:
        order = DataOrder(seed, len(rows), lengths.tolist() if train.group_by_length else None, train.batch_size)
        picked = order.numbers(0, batches * train.batch_size).reshape(-1, train.batch_size)
        tokens = max(tokens, int(lengths[picked].sum(1).max()))
        most = max(most, int(positions[picked].sum(1).max()))
    return Geometry(1, int(up(tokens, STEP)), int(up(most, SCORED_STEP)))


def steps_of(cell: Cell, train_rows: int | None) -> int | None:
    """Optimizer steps: as given, or from epochs (1 where neither is given)."""
    if cell.train.steps is not None:
        return cell.train.steps
    if train_rows is None:
        return None
    per_step = cell.train.batch_size * cell.train.gradient_accumulation
    return max(1, math.ceil((cell.train.epochs or 1.0) * train_rows / per_step))


def evaluation_rows(rows: Sequence[Row], members: int) -> list[Row]:
    """Those of the first pass of an evaluation on a GPU, which has the longest rows."""
    return [rows[i] for i in batches_by_length([len(row.input_ids) for row in rows], members, "cuda")[0]]


def evaluation_geometry(rows: Sequence[Row], members: int) -> Geometry:
    """The first pass of an evaluation on a GPU."""
    first = evaluation_rows(rows, members)
    positions = sum(scored(row)[0].size for row in first)
    return Geometry(len(first), len(first[0].input_ids), max(1, math.ceil(positions / len(first))))


def _settings(cell: Cell, setting: Setting) -> fitting.Settings:
    four_bit = cell.adapter.method != "full" and cell.precision_names <= UNQUANTIZED | {"int8"}
    return fitting.Settings(
        cell.train.batch_size,
        cell.train.gradient_accumulation,
        cell.adapter.rank,
        setting.most_rank if METHODS[cell.adapter.method].rank else None,
        cell.train.gradient_checkpointing,
        cell.adapter.method != "prefix_tuning",
        cell.train.optimizer,
        cell.default_precision,
        four_bit,
    )


def _adapter(cell: Cell) -> str:
    """What of the cell's adapter its memory hangs on."""
    adapter = cell.adapter.model_dump(exclude={"alpha", "alpha_pattern", "rslora"})
    return repr(adapter | {"dropout": cell.adapter.dropout > 0})


def _key(plan: Plan) -> str:
    cell = plan.cell
    train = cell.train
    parts = (
        plan.config.to_json_string(),
        (cell.precision, cell.double_quant, cell.block_size, cell.compute_dtype, cell.base.add_tokens, _adapter(cell)),
        (train.optimizer, train.gradient_checkpointing, train.gradient_accumulation, train.base_dropout),
        (train.best_checkpoint, cell.task.classifies, plan.geometry, plan.members, plan.evaluation),
        (plan.labels, plan.added, plan.storage, plan.packed, [_adapter(c) for c in plan.beside]),
    )
    return repr(parts)
