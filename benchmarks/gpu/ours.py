"""Ours, as arms: a cohort of loracle's engine over a frozen base that arms of one storage share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers import PretrainedConfig

from gpu.shapes import build
from gpu.timing import Arm, clear
from loracle.adapters.batch import CohortBatch
from loracle.adapters.cohort import Cohort, attach, detach, member_of
from loracle.models.load import LoadedBase, checkpoint_activations, prepare
from loracle.models.source import Source
from loracle.spec.study import Adapter, Cell, Task, Train
from loracle.tasks.rows import Row
from loracle.train.fit import Fit, FitSettings

HORIZON = 4096
"""Optimizer steps that a benchmark's schedule is made for."""


def settings(steps: int, batch_size: int, compile: str = "auto", packing: bool = False, **more: Any) -> FitSettings:
    """``FitSettings`` with what this version of the engine knows of ``compile`` (CUDA graphs) and ``packing``."""
    known = {field.name for field in fields(FitSettings)}
    newer = {name: value for name, value in {"compile": compile, "packing": packing}.items() if name in known}
    return FitSettings(steps, batch_size, 1, 0, "benchmark", **newer, **more)


def cell_of(
    precision: str,
    rank: int,
    targets: Sequence[str] | str,
    batch_size: int,
    alpha: float | str = 16.0,
    optimizer: str = "adamw",
    checkpointing: bool = False,
    steps: int | None = None,
) -> Cell:
    """A cell as a study would have it."""
    return Cell(
        task=Task(data="-"),
        precision=precision,  # type: ignore[arg-type]
        adapter=Adapter(rank=rank, alpha=alpha, targets=targets if isinstance(targets, str) else tuple(targets)),
        train=Train(
            batch_size=batch_size,
            optimizer=optimizer,  # type: ignore[arg-type]
            gradient_checkpointing=checkpointing,
            steps=steps,
        ),
    )


def base_of(model: Any, cell: Cell, device: torch.device, storage: str) -> LoadedBase:
    """A random model in memory as a frozen base."""
    return prepare(model, Source("random", "random", "random", None, None), cell, device, storage=storage)


class Bases:
    """Frozen bases by storage: made when first asked for, shared until ``free``."""

    def __init__(self, config: PretrainedConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.loaded: dict[str, LoadedBase] = {}

    def get(self, cell: Cell, storage: str) -> LoadedBase:
        """The base of the cell's precision in ``storage``."""
        if storage not in self.loaded:
            self.loaded[storage] = base_of(build(self.config, self.device), cell, self.device, storage)
        return self.loaded[storage]

    def free(self) -> None:
        """Drop them all."""
        self.loaded.clear()
        clear(self.device)


@dataclass
class OurRun:
    """A cohort in training; closing it takes its adapters off the base again."""

    loaded: LoadedBase
    cohort: Cohort
    fit: Fit
    batches: list[list[CohortBatch]]

    def step(self, i: int) -> None:
        """One optimizer step of all members."""
        self.fit.step(i, self.batches[i % len(self.batches)])

    def close(self) -> None:
        """The base as it was."""
        detach(self.loaded.model, self.cohort)
        self.loaded.model.gradient_checkpointing_disable()
        del self.fit, self.cohort


def start(
    loaded: LoadedBase,
    cell: Cell,
    rows: Sequence[Row],
    members: int,
    fit_settings: FitSettings,
    seeds: Sequence[int] | None = None,
    prepared: int = 4,
) -> OurRun:
    """Attach a cohort and make ``prepared`` batches ahead (all arms of a benchmark get ready-made batches on the host)."""
    if cell.train.gradient_checkpointing:
        checkpoint_activations(loaded.model)
    seeds = list(seeds or range(members))
    who = [member_of(f"m{k}", cell, loaded.linears, loaded.model.config, 0, seed, seed) for k, seed in enumerate(seeds)]
    cohort = attach(loaded.model, who, torch.float32, loaded.device)
    try:
        fit = Fit(cohort, rows, [cell.train] * members, seeds, fit_settings)
        return OurRun(loaded, cohort, fit, [fit.batches(step) for step in range(prepared)])
    except Exception:
        detach(loaded.model, cohort)  # the base serves other arms
        raise


def arm(
    bases: Bases,
    name: str,
    storage: str,
    cell: Cell,
    rows: Sequence[Row],
    members: int = 1,
    compile: str = "auto",
    warmup: int = 5,
) -> Arm:
    """Ours as an arm. It is set up anew at each visit, as many cohorts take turns on one base."""
    compiled = compile if bases.device.type == "cuda" else "off"

    def begin() -> OurRun:
        fit_settings = settings(HORIZON, cell.train.batch_size, compiled)
        return start(bases.get(cell, storage), cell, rows, members, fit_settings)

    make: Callable[[], OurRun] = begin
    return Arm(name, make, storage, members, cell.train.gradient_checkpointing, warmup=warmup)
