"""A run's files after training: ``predictions.parquet`` and ``record.json`` (docs/files.md)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from loracle.adapters.alone import Alone
from loracle.adapters.cohort import Cohort
from loracle.evaluate.run import Evaluation
from loracle.models.census import resident_bytes
from loracle.models.load import LoadedBase, device_name
from loracle.store.files import SCHEMA, read_jsonl, replacing, write_json
from loracle.store.provenance import provenance
from loracle.tasks.rows import Tokenized
from loracle.train.fit import Fit

if TYPE_CHECKING:
    from loracle.worker.train import MemberJob, TrainJob


def write_run(
    job: TrainJob,
    m: MemberJob,
    k: int,
    loaded: LoadedBase,
    cohort: Cohort | Alone,
    fit: Fit,
    data: Tokenized,
    evaluation: Evaluation,
    sha256: str,
    reload: dict[str, Any],
) -> str:
    """Write member ``k``'s predictions and record; returns its status."""
    folder = job.folder.run(m.run)
    with replacing(folder / "predictions.parquet") as temporary:
        pd.DataFrame(evaluation.predictions(k)).to_parquet(temporary, index=False)
    status, reason = state(fit, k, reload)
    losses = [row["loss"] for row in read_jsonl(folder / "metrics.jsonl") if row.get("loss") is not None]
    tail = losses[-max(1, len(losses) // 10) :]
    trainable = cohort.members[k].trainable_params
    write_json(
        folder / "record.json",
        {
            "schema": SCHEMA,
            "kind": "run",
            "id": m.run,
            "cell": m.cell_id,
            "cohort": job.job["id"],
            "label": m.label,
            "seed": m.seed,
            "role": m.role,
            "status": status,
            "reason": reason,
            "config": {**m.config, "storage": loaded.storage, "init_seed": m.init_seed, "order_seed": m.order_seed},
            "trainable_params": trainable,
            "total_params": loaded.base_params
            + (trainable if m.cell.adapter.method != "full" else head_params(loaded)),
            "vocab_size": getattr(loaded.model.config, "vocab_size", None),
            "effective_bits": loaded.census["effective_bits"],
            "census": loaded.census,
            "eval_loss": float(evaluation.losses.mean[k]),
            "train_loss": sum(tail) / len(tail) if tail else None,
            "metrics": evaluation.metrics(k),
            "steps": fit.taken(k) if status != "diverged" else int(fit.diverged_at[k]),
            "stopped_at": fit.patience.stopped_at[k],
            "best_step": fit.best_step[k] if fit.best_data is not None else None,
            "tokens_seen": fit.tokens_seen(k),
            "wall_s": fit.elapsed_s / len(job.members),
            "cohort_wall_s": fit.elapsed_s,
            "cohort_size": len(job.members),
            "reload": reload,
            "adapter_sha256": sha256,
            **peak(job.peak, cohort.size),
            **job.energy.share(len(job.members)),
            "tensor_bytes": tensor_bytes(loaded, cohort, fit),
            "modules": adapted_modules(loaded, cohort, k),
            "eval_file": job.job.get("eval_file"),
            "audit": {key: value for key, value in data.audit.items() if key != "examples"}
            | {"labels": list(data.labels)},
            "notes": job.notes + training_notes(job, loaded),
            "provenance": provenance(device_name(loaded.device), job.job.get("threads")),
        },
    )
    return status


def adapted_modules(loaded: LoadedBase, cohort: Cohort | Alone, k: int) -> dict[str, Any]:
    """Module → its layer and named output rows, of a LoRA; empty for other methods, which have no such ΔW."""
    if isinstance(cohort, Alone):
        return {}
    linears = {linear.name: linear for linear in loaded.linears}
    return {
        site.module: {"layer": site.layer, "slices": linears[site.module].slices or {site.kind: (0, site.d_out)}}
        for site in cohort.members[k].sites
    }


def peak(measured: int | None, members: int) -> dict[str, Any]:
    """Peak memory of a run that trained by itself, up to its last step; otherwise why there is none."""
    if measured is None:
        return {"peak_allocated_bytes": None, "peak_reason": "the CPU allocator keeps no peak: measured on a GPU only"}
    if members > 1:
        return {"peak_allocated_bytes": None, "peak_reason": f"shared with {members - 1} runs: the probe has its own"}
    return {"peak_allocated_bytes": measured, "peak_reason": None}


def head_params(loaded: LoadedBase) -> int:
    """Parameters of the classification head that full fine-tuning trains with the base, which is counted without it."""
    score = getattr(loaded.model, "score", None)
    return int(score.weight.numel()) if score is not None else 0


def tensor_bytes(loaded: LoadedBase, cohort: Cohort | Alone, fit: Fit) -> dict[str, int]:
    """Bytes of the tensors that outlive a step, as they are there after training: the base (in quantized storage), and one
    run's share of what is trained, its gradients and its optimizer state."""
    flat = cohort.flat
    own = {p.data_ptr() for p in loaded.model.parameters() if p.requires_grad}
    optimizer = sum(t.numel() * t.element_size() for t in fit.optimizer.tensors().values() if t.dtype != torch.bool)
    return {
        "base": resident_bytes(loaded.model, own),
        "trainable": flat.data[0].numel() * flat.data.element_size(),
        "gradients": flat.grad[0].numel() * flat.grad.element_size(),
        "optimizer": optimizer // cohort.size,
    }


def state(fit: Fit, k: int, reload: dict[str, Any]) -> tuple[str, str | None]:
    """The named end state of one run and why."""
    step = int(fit.diverged_at[k])
    if step >= 0:
        return "diverged", f"loss or gradient not finite at step {step}; the adapter is that of the step before"
    if reload["passed"] is False:
        shown = reload["eval_loss"] if reload["eval_loss"] is not None else math.nan
        return (
            "failed",
            f"reload: the saved adapter gives {shown:.6f} nats, off by {reload['difference']:.2e} (tolerance {reload['tolerance']:.0e})",
        )
    return "done", None


def training_notes(job: TrainJob, loaded: LoadedBase) -> list[str]:
    """What a reader of the record should know about how it came about."""
    notes = []
    if loaded.device.type == "cpu" and job.cell.train.optimizer.startswith("paged"):
        notes.append(f"{job.cell.train.optimizer} on a CPU: the same optimizer without paging")
    if loaded.device.type == "cpu" and "int8" in job.cell.precision_names:
        notes.append(
            "int8 on a CPU: in training bitsandbytes quantizes the weights only, in evaluation the activations too"
        )
    return notes
