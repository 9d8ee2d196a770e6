"""The probe: memory and speed of one cell alone, in its true storage."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

import torch

from loracle.adapters.alone import attach_alone
from loracle.adapters.cohort import attach, member_of
from loracle.adapters.trainee import Trainee
from loracle.diagnose.forecast import PHASES, TRAINING, Forecast, Geometry, Plan, forecast
from loracle.diagnose.peak_clock import PeakClock, lasting_components, measured_components, unexplained
from loracle.diagnose.predictions import evaluation_rows
from loracle.evaluate.loss import item_losses
from loracle.models.ledger import COMPONENTS
from loracle.models.load import LoadedBase, checkpoint_activations, device_name, load_base, pick_device
from loracle.models.memory_labels import reached, watched_by
from loracle.models.source import find, load_config, load_tokenizer
from loracle.spec.factors import cell_from_config
from loracle.spec.study import Cell
from loracle.store.layout import StudyFolder
from loracle.store.provenance import provenance
from loracle.tasks import cache
from loracle.tasks.collate import pad_token_id
from loracle.train.fit import Fit, FitSettings

NO_PEAK = "the CPU allocator keeps no peak: measured on a GPU only"


def probe(folder: StudyFolder, job: dict[str, Any], say: Any) -> dict[str, Any]:
    """One cell's record (docs/files.md): median ms/step with spread, tokens/s, peaks by phase, the ledger."""
    cell = cell_from_config(job["config"])
    device = pick_device(job.get("device", "auto"))
    source = find(cell.base.model, cell.base.revision)
    data = cache.load(folder.root / "data" / job["data"])
    if data is None:
        return {"status": "failed", "reason": f"data/{job['data']} is missing"}
    say("load", base=cell.base.model)
    tokenizer = load_tokenizer(source, cell.base.add_tokens)
    clock = PeakClock(device) if device.type == "cuda" else None
    with watched_by(clock) if clock else nullcontext():
        loaded = load_base(source, cell, device, storage="quantized", labels=data.labels, vocab=len(tokenizer))
        reached("attach")
        if cell.train.gradient_checkpointing:
            checkpoint_activations(loaded.model)
        who = trainee(cell, loaded, len(data.labels))
        reached("optimizer")
        steps, warm_up = int(job.get("steps", 10)), int(job.get("warmup", 3))
        fit = Fit(who, data.train, [cell.train], [0], _settings(cell, steps + warm_up, pad_token_id(tokenizer)))
        times, tokens, geometry, longest = _timed(fit, steps, warm_up, device, say)
        if clock:
            clock.measure_a_layer(fit, longest)
        reached("evaluation")
        if clock:
            first = evaluation_rows(data.eval, 1)
            item_losses(who, first, pad_token_id(tokenizer), device)
        reached("done")
    labels = len(data.labels) if cell.task.classifies else None
    ahead = cell if clock else cell.model_copy(update={"compute_dtype": "auto"})  # a CPU's choice is not a GPU's
    plan = Plan(
        ahead, load_config(source), geometry, labels=labels, added=len(tokenizer) if cell.base.add_tokens else None
    )
    return {
        "status": "done",
        "reason": None,
        "cell": job.get("cell"),
        "device": device_name(device),
        "storage": loaded.storage,
        "compute_dtype": str(loaded.compute_dtype).removeprefix("torch."),
        "gradient_checkpointing": cell.train.gradient_checkpointing,
        "batch_size": cell.train.batch_size,
        "length": geometry.length,
        "ms_per_step": {
            "median": _quantile(times, 0.5),
            "p10": _quantile(times, 0.1),
            "p90": _quantile(times, 0.9),
            "n": len(times),
        },
        "tokens_per_s": tokens / sum(times) * 1000,
        **_memory(forecast(plan), clock, loaded, fit),
        "effective_bits": loaded.census["effective_bits"],
        "provenance": provenance(device_name(device), job.get("threads")),
    }


def _settings(cell: Cell, steps: int, pad_id: int) -> FitSettings:
    train = cell.train
    return FitSettings(
        steps,
        train.batch_size,
        train.gradient_accumulation,
        pad_id,
        identity="probe",
        group_by_length=train.group_by_length,
    )


def _memory(predicted: Forecast, clock: PeakClock | None, loaded: LoadedBase, fit: Fit) -> dict[str, Any]:
    """The record's keys about memory: the forecast of the longest batch that was trained on, beside what was measured."""
    if clock is None:  # the tensors that are there can be counted all the same
        measured: dict[str, int | None] = lasting_components(loaded, fit)
        phase, peak, reserved, rest = None, None, None, None
    else:
        phase, peak = clock.peak(TRAINING)
        measured, reserved = measured_components(clock, loaded, fit), clock.reserved
        rest = unexplained(peak, measured, predicted.components)
    phases = {
        name: {"predicted": predicted.phases.get(name), "measured": clock.phases.get(name) if clock else None}
        for name in PHASES
    }
    return {
        "peak_allocated_bytes": peak,
        "peak_reserved_bytes": reserved,
        "peak_reason": None if clock else NO_PEAK,
        "peak_phase": {"predicted": predicted.peak_phase, "measured": phase},
        "predicted_bytes": predicted.peak_bytes,
        "predicted_reason": predicted.reason,
        "unexplained_bytes": rest,
        "managed_bytes": predicted.managed_bytes,
        "phases": phases,
        "ledger": {
            name: {"predicted_bytes": predicted.components[name], "measured_bytes": measured[name]}
            for name in COMPONENTS
        },
    }


def trainee(cell: Cell, loaded: LoadedBase, labels: int) -> Trainee:
    """The cell's adapter on its base, as a cohort of one or trained by PEFT."""
    if cell.alone:
        return attach_alone("probe", cell, loaded, 0, 0)
    member = member_of("probe", cell, loaded.linears, loaded.model.config, labels)
    return attach(loaded.model, [member], torch.float32, loaded.device)


def _timed(
    fit: Fit, steps: int, warm_up: int, device: torch.device, say: Any
) -> tuple[list[float], int, Geometry, int]:
    """(milliseconds of each step after warm-up, real input tokens in them, the largest batch of all steps, a step of that length). A
    packed batch is one row."""
    times: list[float] = []
    tokens = size = length = positions = longest = 0
    count = fit.settings.batch_size * fit.settings.gradient_accumulation
    for step in range(steps + warm_up):
        rows = [fit.rows[i] for i in fit.orders[0].take(step * count, count)]
        batches = fit.batches(step)
        _synchronize(device)
        begin = time.perf_counter()
        fit.step(step, batches)
        _synchronize(device)
        if step >= warm_up:
            times.append((time.perf_counter() - begin) * 1000)
            tokens += sum(len(row.input_ids) for row in rows)
        size = max(size, *(batch.input_ids.shape[0] for batch in batches), 0)
        here = max(batch.input_ids.shape[1] for batch in batches)
        length, longest = (here, step) if here > length else (length, longest)
        positions = max(positions, *(batch.positions.shape[1] for batch in batches), 0)
        say("measure", step=step + 1, steps=steps + warm_up)
    return times, tokens, Geometry(size, length, -(-positions // size)), longest


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, round(q * (len(values) - 1)))]
