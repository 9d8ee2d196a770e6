"""A run's files after training: ``predictions.parquet`` and ``record.json`` (docs/files.md)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from loracle.adapters.cohort import Member
from loracle.evaluate.run import Evaluation
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
    member: Member,
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
    linears = {linear.name: linear for linear in loaded.linears}
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
            "trainable_params": member.trainable_params,
            "total_params": loaded.base_params + member.trainable_params,
            "effective_bits": loaded.census["effective_bits"],
            "census": loaded.census,
            "eval_loss": float(evaluation.losses.mean[k]),
            "train_loss": sum(tail) / len(tail) if tail else None,
            "metrics": evaluation.metrics(k),
            "steps": fit.done_steps if status != "diverged" else int(fit.diverged_at[k]),
            "best_step": fit.best_step[k] if fit.best_data is not None else None,
            "tokens_seen": int(fit.tokens[:, k].sum()),
            "wall_s": fit.elapsed_s / len(job.members),
            "cohort_wall_s": fit.elapsed_s,
            "cohort_size": len(job.members),
            "reload": reload,
            "adapter_sha256": sha256,
            "modules": {
                site.module: {
                    "layer": site.layer,
                    "slices": linears[site.module].slices or {site.kind: (0, site.d_out)},
                }
                for site in member.sites
            },
            "eval_file": job.job.get("eval_file"),
            "audit": {key: value for key, value in data.audit.items() if key != "examples"}
            | {"labels": list(data.labels)},
            "notes": job.notes + training_notes(job, loaded),
            "provenance": provenance(device_name(loaded.device), job.job.get("threads")),
        },
    )
    return status


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
        notes.append("int8 on a CPU: bitsandbytes quantizes the weights only, not the activations")
    return notes
