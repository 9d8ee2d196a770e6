"""The probe: memory and speed of one cell alone, in its true storage."""

from __future__ import annotations

import time
from typing import Any

import torch

from loracle.adapters.alone import attach_alone
from loracle.adapters.cohort import CohortLoRA, attach, member_of
from loracle.adapters.trainee import Trainee
from loracle.models.census import weight_bytes
from loracle.models.ledger import COMPONENTS, predict
from loracle.models.load import LoadedBase, checkpoint_activations, device_name, load_base, pick_device
from loracle.models.source import find, load_tokenizer
from loracle.spec.factors import cell_from_config
from loracle.spec.study import UNQUANTIZED, Cell
from loracle.store.layout import StudyFolder
from loracle.store.provenance import provenance
from loracle.tasks import cache
from loracle.tasks.collate import pad_token_id
from loracle.train.fit import Fit, FitSettings

NO_PEAK = "the CPU allocator keeps no peak: measured on a GPU only"


def probe(folder: StudyFolder, job: dict[str, Any], say: Any) -> dict[str, Any]:
    """One cell's record (docs/files.md): median ms/step with spread, tokens/s, peaks, the ledger."""
    cell = cell_from_config(job["config"])
    device = pick_device(job.get("device", "auto"))
    source = find(cell.base.model, cell.base.revision)
    data = cache.load(folder.root / "data" / job["data"])
    if data is None:
        return {"status": "failed", "reason": f"data/{job['data']} is missing"}
    say("load", base=cell.base.model)
    tokenizer = load_tokenizer(source, cell.base.add_tokens)
    loaded = load_base(source, cell, device, storage="quantized", labels=data.labels, vocab=len(tokenizer))
    if cell.train.gradient_checkpointing:
        checkpoint_activations(loaded.model)
    who = trainee(cell, loaded, len(data.labels))
    ledger = predict(cell, loaded.linears, loaded.assignment, loaded.base_params, who.members[0].trainable_params)
    steps, warm_up = int(job.get("steps", 10)), int(job.get("warmup", 3))
    fit = Fit(
        who,
        data.train,
        [cell.train],
        [0],
        FitSettings(
            steps + warm_up,
            cell.train.batch_size,
            cell.train.gradient_accumulation,
            pad_token_id(tokenizer),
            identity="probe",
            group_by_length=cell.train.group_by_length,
        ),
    )
    times, tokens, length = _timed(fit, steps, warm_up, device, say)
    peaks = (
        (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()) if device.type == "cuda" else (None, None)
    )
    measured = _measured(loaded, fit)
    return {
        "status": "done",
        "reason": None,
        "cell": job.get("cell"),
        "device": device_name(device),
        "storage": loaded.storage,
        "compute_dtype": str(loaded.compute_dtype).removeprefix("torch."),
        "gradient_checkpointing": cell.train.gradient_checkpointing,
        "batch_size": cell.train.batch_size,
        "length": length,
        "ms_per_step": {
            "median": _quantile(times, 0.5),
            "p10": _quantile(times, 0.1),
            "p90": _quantile(times, 0.9),
            "n": len(times),
        },
        "tokens_per_s": tokens / sum(times) * 1000,
        "peak_allocated_bytes": peaks[0],
        "peak_reserved_bytes": peaks[1],
        "peak_reason": None if device.type == "cuda" else NO_PEAK,
        "ledger": {
            name: {"predicted_bytes": ledger[name], "measured_bytes": measured.get(name)} for name in COMPONENTS
        },
        "effective_bits": loaded.census["effective_bits"],
        "provenance": provenance(device_name(device), job.get("threads")),
    }


def trainee(cell: Cell, loaded: LoadedBase, labels: int) -> Trainee:
    """The cell's adapter on its base, as a cohort of one or trained by PEFT."""
    if cell.alone:
        return attach_alone("probe", cell, loaded, 0, 0)
    member = member_of("probe", cell, loaded.linears, loaded.model.config, labels)
    return attach(loaded.model, [member], torch.float32, loaded.device)


def _timed(fit: Fit, steps: int, warm_up: int, device: torch.device, say: Any) -> tuple[list[float], int, int]:
    """(milliseconds of each step after warm-up, real input tokens in them, longest length)."""
    times: list[float] = []
    tokens = length = 0
    for step in range(steps + warm_up):
        rows = [
            fit.rows[i]
            for i in fit.orders[0].take(
                step * fit.settings.batch_size * fit.settings.gradient_accumulation,
                fit.settings.batch_size * fit.settings.gradient_accumulation,
            )
        ]
        batches = fit.batches(step)
        if device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        fit.step(step, batches)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if step >= warm_up:
            times.append((time.perf_counter() - begin) * 1000)
            tokens += sum(len(row.input_ids) for row in rows)
            length = max(length, max(batch.input_ids.shape[1] for batch in batches))
        say("measure", step=step + 1, steps=steps + warm_up)
    return times, tokens, length


def _measured(loaded: LoadedBase, fit: Fit) -> dict[str, int]:
    """Bytes of the tensors that are really there, by component."""
    layers = [(precision, frozen_linear(loaded.model, name)) for name, precision in loaded.assignment.items()]
    packed = [weight_bytes(module) for precision, module in layers if precision not in UNQUANTIZED]
    flat = fit.cohort.flat
    everything = {id(p): p for p in loaded.model.parameters() if not p.requires_grad}
    total = sum(p.numel() * p.element_size() for p in everything.values())
    weights = sum(w for w, _ in packed)
    return {
        "quantized_weights": weights,
        "quantization_constants": sum(c for _, c in packed),
        "other_weights": total - weights,
        "adapters": flat.data.numel() * flat.data.element_size(),
        "gradients": flat.grad.numel() * flat.grad.element_size(),
        "optimizer": 2 * flat.data.numel() * flat.data.element_size(),
    }


def frozen_linear(model: Any, name: str) -> Any:
    """The base's own linear behind a cohort's or PEFT's layer."""
    layer = model.get_submodule(name)
    return layer.base if isinstance(layer, CohortLoRA) else getattr(layer, "base_layer", layer)


def _quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, round(q * (len(values) - 1)))]
