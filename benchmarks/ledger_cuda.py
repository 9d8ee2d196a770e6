"""The ledger's forecasts against what torch measures on a GPU: predicted and measured peaks, component by component.

    python benchmarks/ledger_cuda.py [--quick] [--only TinyLlama]
    python benchmarks/ledger_cuda.py --forecast     (no GPU: the predictions alone)

Shapes are built on the spot with random weights: bytes do not hang on values, except the outlier columns of LLM.int8(). Three
steps a cell. Writes DATE-ledger-DEVICE.json and .csv; the last lines are a table.
"""

from __future__ import annotations

import gc
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from gpu.results import device_of, header, options, stem, write_csv, write_json
from gpu.shapes import build, config_of
from transformers import PretrainedConfig

from loracle.adapters.cohort import attach, detach, member_of
from loracle.base.errors import ModelError, one_line
from loracle.diagnose.forecast import (
    TRAINING,
    Forecast,
    Geometry,
    Plan,
    forecast,
    settings_for,
    shape_rows,
)
from loracle.diagnose.peak_clock import PeakClock, measured_components, unexplained
from loracle.models.ledger import COMPONENTS
from loracle.models.load import LoadedBase, checkpoint_activations, prepare
from loracle.models.memory_labels import watched_by
from loracle.models.source import Source
from loracle.spec.study import Cell
from loracle.train.fit import Fit

STEPS = 3
QUICK = ("gpt2-medium", "TinyLlama-1.1B")


@dataclass(frozen=True)
class Case:
    """One cell of the table."""

    shape: str
    precision: str
    batch: int
    length: int
    checkpointing: bool = False
    optimizer: str = "adamw"
    members: int = 1
    rank: int = 8
    targets: str = "all-linear"
    accumulation: int = 1

    @property
    def geometry(self) -> Geometry:
        """Half of a row's positions are scored."""
        return Geometry(self.batch, self.length, self.length // 2)

    @property
    def config(self) -> PretrainedConfig:
        return config_of(self.shape.lower())

    @property
    def cell(self) -> Cell:
        """The same as loracle has it."""
        return Cell.model_validate(
            {
                "task": {"data": "shapes.jsonl", "format": "text"},
                "precision": self.precision,
                "adapter": {"rank": self.rank, "targets": self.targets},
                "train": {
                    "steps": STEPS, "batch_size": self.batch, "optimizer": self.optimizer,
                    "gradient_checkpointing": self.checkpointing, "gradient_accumulation": self.accumulation,
                },
            },
            strict=False,
        )  # fmt: skip


def cases() -> Iterator[Case]:
    """All cells, those of one base one after another."""
    for shape in ("gpt2-medium", "TinyLlama-1.1B", "Qwen2.5-0.5B"):
        for precision in ("bf16", "nf4"):
            yield Case(shape, precision, 8, 512)
            yield Case(shape, precision, 8, 512, checkpointing=True)
            yield Case(shape, precision, 1, 1024, optimizer="adamw_8bit", rank=64)
            yield Case(shape, precision, 4, 256, members=4, optimizer="paged_adamw_32bit")
        yield Case(shape, "nf4", 16, 128, members=4)
        yield Case(shape, "nf4", 16, 256, checkpointing=True, optimizer="paged_adamw_32bit", rank=64)
        yield Case(shape, "int8", 4, 256)
        yield Case(shape, "int4", 4, 512, checkpointing=True)
    yield Case("gpt2-medium", "bf16", 8, 512, targets="c_attn")
    yield Case("gpt2-medium", "fp32", 4, 512)
    yield Case("gpt2-medium", "fp16", 4, 512, accumulation=2)
    for precision in ("bf16", "nf4"):
        yield Case("Llama-7B", precision, 1, 512)
        yield Case("Llama-7B", precision, 4, 512)
        yield Case("Llama-7B", precision, 4, 1024, checkpointing=True)
        yield Case("Llama-7B", precision, 2, 256, members=4, rank=16, optimizer="adamw_8bit")
    yield Case("Llama-7B", "int8", 1, 256)


# -- measuring --------------------------------------------------------------------------------------------------------


def load(case: Case) -> LoadedBase:
    """The case's base on the GPU, with random weights."""
    device = torch.device("cuda")
    return prepare(
        build(case.config, device),
        Source(case.shape, case.shape, case.shape, None, None),
        case.cell,
        device,
        storage="quantized",
    )


def clean() -> None:
    """Give all cached memory back, cuBLAS's workspaces too."""
    gc.collect()
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()


def train(case: Case, loaded: LoadedBase) -> tuple[PeakClock, dict[str, int | None]]:
    """Three steps under the clock; (phases, components measured)."""
    cell, model = case.cell, loaded.model
    if case.checkpointing:
        checkpoint_activations(model)
    else:
        model.gradient_checkpointing_disable()
    clock = PeakClock(loaded.device)
    clock.enter("attach")
    member = member_of("ledger", cell, loaded.linears, model.config, 0)
    cohort = attach(model, [member] * case.members, torch.float32, loaded.device)
    try:
        with watched_by(clock):
            clock.enter("optimizer")
            rows = shape_rows(case.geometry, False) * case.accumulation
            settings_ = settings_for(cell, loaded, case.geometry, STEPS)
            fit = Fit(cohort, rows, [cell.train] * case.members, [0] * case.members, settings_)
            for step in range(STEPS):
                fit.step(step, fit.batches(step))
            clock.enter("done")
            clock.measure_a_layer(fit)
        return clock, measured_components(clock, loaded, fit)
    finally:
        detach(model, cohort)


def predict(case: Case) -> tuple[Forecast, float]:
    """(the forecast, seconds that it took)."""
    begun = time.perf_counter()
    found = forecast(Plan(case.cell, case.config, case.geometry, case.members))
    return found, time.perf_counter() - begun


def entry(case: Case, loaded: LoadedBase) -> dict[str, Any]:
    """One cell's figures."""
    predicted, seconds = predict(case)
    clean()
    try:
        clock, measured = train(case, loaded)
    except torch.OutOfMemoryError:
        return {**vars(case), "status": "oom", "predicted_bytes": predicted.peak_bytes}
    phase, peak = clock.peak(TRAINING)
    rest = unexplained(peak, measured, predicted.components)
    return {
        **vars(case),
        "status": "done",
        "predicted_bytes": predicted.peak_bytes,
        "measured_bytes": peak,
        "error": predicted.peak_bytes / peak - 1,
        "predicted_reserved_bytes": predicted.reserved_bytes,
        "measured_reserved_bytes": clock.reserved,
        "peak_phase": {"predicted": predicted.peak_phase, "measured": phase},
        "unexplained_bytes": rest,
        "unexplained_share": (rest or 0) / peak,
        "phases": {p: {"predicted": predicted.phases.get(p), "measured": clock.phases.get(p)} for p in TRAINING},
        "components": {c: {"predicted": predicted.components[c], "measured": measured[c]} for c in COMPONENTS},
        "managed_bytes": predicted.managed_bytes,
        "forecast_s": seconds,
    }


def measure_all(chosen: list[Case]) -> Iterator[list[dict[str, Any]]]:
    """All rows so far, after each base; bases are shared by neighbours of one shape and precision."""
    found: list[dict[str, Any]] = []
    for _, neighbours in groupby(chosen, key=lambda case: (case.shape, case.precision)):
        loaded: LoadedBase | None = None  # the last base goes before the next comes
        clean()
        for case in neighbours:
            try:
                loaded = loaded or load(case)
                found.append(entry(case, loaded))
            except ModelError as error:  # int4 without HQQ
                found.append({**vars(case), "status": "skipped", "reason": one_line(error)})
            print(line(found[-1]), flush=True)
        yield found


# -- showing ----------------------------------------------------------------------------------------------------------


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    what = (
        f"{row['shape']:<15} {row['precision']:<5} {row['members']} × {row['batch']:>2} × {row['length']:>4} "
        f"r{row['rank']:<3}{row['optimizer']:<18}{'ckpt' if row['checkpointing'] else '    '}"
    )
    if row["status"] != "done":
        return f"{what} {row['status']}: {row.get('reason') or ''}"
    return (
        f"{what} predicted {row['predicted_bytes'] / 1e6:>9.1f} MB measured {row['measured_bytes'] / 1e6:>9.1f} MB "
        f"{row['error']:>+7.2%}  unexplained {row['unexplained_share']:>+7.2%}  reserved "
        f"{row['predicted_reserved_bytes'] / row['measured_reserved_bytes'] - 1:>+6.1%}"
    )


def write(rows: list[dict[str, Any]], out: Path, seconds: float) -> str:
    """The JSON and CSV files; returns a summary in words."""
    device = torch.device("cuda")
    done = [row for row in rows if row["status"] == "done"]
    if not done:
        return "nothing was measured"
    errors = [abs(row["error"]) for row in done]
    summary = {
        "cells": len(done),
        "largest_error": max(errors),
        "median_error": statistics.median(errors),
        "largest_unexplained_share": max(abs(row["unexplained_share"]) for row in done),
        "seconds": seconds,
    }
    path = stem(out, "ledger", device)
    write_json(path, {**header("ledger", device), "summary": summary, "cells": rows})
    write_csv(path, [flat(row) for row in rows])
    return f"{path.name}: " + ", ".join(f"{name} {value:.4g}" for name, value in summary.items())


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the CSV file."""
    fixed = [part.name for part in fields(Case)] + ["status"]
    figures = ["predicted_bytes", "measured_bytes", "error", "unexplained_bytes", "unexplained_share"]
    components = row.get("components", {})
    split = {f"{c}_{kind}": components.get(c, {}).get(kind) for c in COMPONENTS for kind in ("predicted", "measured")}
    return {name: row.get(name) for name in (*fixed, *figures)} | split


def main() -> None:
    """Measure, or only predict."""
    parser = options(__doc__)
    parser.add_argument("--forecast", action="store_true", help="predictions alone; needs no GPU")
    parser.add_argument("--only", default="", help="cells whose shape or precision has this in its name")
    parser.add_argument("--checkpointed", action="store_true", help="cells with gradient checkpointing alone")
    asked = parser.parse_args()
    if not asked.forecast and device_of(asked).type != "cuda":
        raise SystemExit("the counters are a CUDA allocator's: --forecast prints the predictions without a GPU")
    warnings.filterwarnings("ignore")
    chosen = [
        case
        for case in cases()
        if asked.only in f"{case.shape} {case.precision}"
        and (case.checkpointing or not asked.checkpointed)
        and (case.shape in QUICK or not asked.quick)
    ]
    begun = time.perf_counter()
    if not asked.forecast:
        said = ""
        for rows in measure_all(chosen):  # files after each base: a run that is cut short keeps what it has
            said = write(rows, asked.out, time.perf_counter() - begun)
        print(said)
        return
    for case in chosen:
        found, seconds = predict(case)
        print(f"{case.shape} {case.precision} {case.members} × {case.batch} × {case.length}", end=" ")
        print(f"{found.peak_bytes / 1e6:.1f} MB in {found.peak_phase}, {seconds:.2f} s", flush=True)


if __name__ == "__main__":
    main()
