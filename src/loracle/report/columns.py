"""The CSV tables' columns, and what every table needs: rows to text, the columns of a cell, a mean over seeds.

Columns are fixed (``COLUMNS``); an empty cell is a figure that does not exist. Rates are fractions of 1, losses nats per
token, sizes bytes, times seconds unless a column ends in ``_ms``. Intervals (``_low``, ``_high``) are two-sided 95% over
seeds (Student's t), empty below three seeds.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loracle.report.evidence import ALL_STATES, CellData
from loracle.report.inert import csv_cell
from loracle.report.wording import FRACTIONS, mean, t_interval

LATENCY = (
    "latency_mean_s", "latency_median_s", "latency_p95_s", "first_token_mean_s", "first_token_median_s",
    "first_token_p95_s", "answer_words_mean",
)  # fmt: skip
RUN_METRICS = (
    "eval_loss", "train_loss", "perplexity", "exact_match", "label_accuracy", "plain_text_loss",
    "base_eval_loss", "base_exact_match", "base_label_accuracy", "base_plain_text_loss",
    "accuracy", "macro_f1", "weighted_f1", "majority_accuracy", "f1", "base_f1", "embedding_cosine",
    "base_embedding_cosine", *LATENCY,
)  # fmt: skip
CELL_METRICS = (
    "eval_loss", "perplexity", "exact_match", "label_accuracy", "plain_text_loss", "accuracy", "macro_f1",
    "weighted_f1", "f1", "embedding_cosine",
)  # fmt: skip
TENSORS = ("base", "trainable", "gradients", "optimizer")
COMPONENTS = (
    "quantized_weights", "quantization_constants", "other_weights", "adapters", "gradients", "optimizer",
    "saved_activations", "logits_and_loss", "dequantization_workspace", "rest",
)  # fmt: skip
_CELL = ("cell", "label", "precision", "method", "rank", "targets")
COLUMNS: dict[str, tuple[str, ...]] = {
    "runs": (
        "run", "role", *_CELL, "seed", "status", "reason", *RUN_METRICS, "trainable_params", "total_params",
        "effective_bits", "steps", "stopped_at", "tokens_seen", "wall_s", "cohort_wall_s", "peak_allocated_bytes",
        "reload_passed", "reload_difference", "adapter_sha256",
    ),
    "cells": (
        *_CELL, "reference", "trainable_params", "total_params", "effective_bits", "planned",
        *(state.replace(" ", "_") for state in ALL_STATES),
        *(f"{name}_{part}" for name in CELL_METRICS for part in ("mean", "low", "high", "n")), "wall_s_mean",
        "knowledge_lost",
    ),
    "degradation": (
        "question", "precision", "rank", "arm", "reference", "metric", "n", "estimate", "low", "high", "level",
        "margin", "change_percent", "change_low_percent", "change_high_percent", "verdict", "difference", "confounds",
    ),
    "similarity_by_layer": (
        *_CELL, "layer", "place", "n", "cosine_mean", "cosine_low", "cosine_high", "null_mean", "null_min", "null_max",
        "null_n", "null_same_cell", "l2_mean", "relative_difference_mean", "principal_angle_cosine_mean",
    ),
    "agreement": (
        *_CELL, "reference", "n", "items", "token_match_mean", "token_match_low", "token_match_high", "exact_mean",
        "at_least_0_95", "embedding_cosine_mean", "embedding_cosine_at_least_0_95",
    ),
    "memory": (
        *_CELL, "storage", "gradient_checkpointing", "device", "component", "predicted_bytes", "measured_bytes",
        "reason",
    ),
    "speed": (
        *_CELL, "storage", "gradient_checkpointing", "device", "batch_size", "length", "ms_per_step_median",
        "ms_per_step_p10", "ms_per_step_p90", "s_per_step", "reference", "relative_speed", "steps_timed", "tokens_per_s",
        "reason",
    ),
    "learning": (
        "run", *_CELL, "seed", "status", "base_eval_loss", "eval_loss", "eval_loss_change", "chance",
        "base_label_accuracy", "label_accuracy", "base_exact_match", "exact_match", "base_plain_text_loss",
        "plain_text_loss", "majority_accuracy", "accuracy", "macro_f1", "base_f1", "f1", "base_embedding_cosine",
        "embedding_cosine",
    ),
    "methods": (
        *_CELL, "trainable_params", "trainable_percent", "effective_bits",
        *(f"eval_loss_{part}" for part in ("mean", "low", "high", "n")),
        "metric", *(f"metric_{part}" for part in ("mean", "low", "high", "n")),
        "against", "against_differs_in", "difference_n", "difference_vs_lora", "low", "high",
        "eval_loss_change_percent", "eval_loss_change_low_percent", "eval_loss_change_high_percent",
        "wall_s_mean", "ms_per_step", *(f"{name}_bytes" for name in TENSORS), "tensor_bytes_sum",
        "peak_allocated_bytes", "peak_reason", "reload_passed",
    ),
    "confusion": (*_CELL, "reference", "prediction", "count", "runs"),
    "classes": (*_CELL, "class", "precision_mean", "recall_mean", "f1_mean", "support", "runs"),
    "latency": (*_CELL, "device", "runs", *LATENCY),
    "groups": (
        *_CELL, "reference", "metric", "group", "items", "ungrouped", "n", "reference_mean", "arm_mean", "change",
        "change_low", "change_high", "gap", "gap_low", "gap_high", "gap_level", "gap_shown", "confounds",
    ),
    "layer_variants": (
        "basis", "parameters_apart_percent", *_CELL, "trainable_params", "reference", "drop_percent", "drop_low_percent",
        "drop_high_percent", "drop_n", *(f"eval_loss_{part}" for part in ("mean", "low", "high", "n")),
        "peak_allocated_bytes", "predicted_bytes", "best", "differs_in",
    ),
    "layer_sensitivity": (
        "base", "codec", "double_quant", "block_size", "text", "when", "run", "tokens", "base_loss", "unit", "place", "module", "layer",
        "kind", "delta_loss", "kl", "agreement", "params",
    ),
    "rank_allocation": (
        *_CELL, "name", "module", "layer", "kind", "params_per_rank", "width", "learned_cell", "frobenius_mean",
        "stable_rank_mean", "effective_rank_mean", "gradient_norm", "uniform_rank", "spectrum_rank", "gradient_rank",
    ),
    "rank_patterns": (
        *_CELL, "trainable_params", *(f"eval_loss_{part}" for part in ("mean", "low", "high", "n")), "against",
        "against_trainable_params", "against_differs_in", "difference_n", "eval_loss_change_percent",
        "eval_loss_change_low_percent", "eval_loss_change_high_percent",
    ),
    "mixed_precision": (
        "base", "codec", "sensitive", "budget", "margin", "text", "tokens", "needed", "reason", "step", "added", "chosen",
        "kept_share", "bits_per_weight", "extra_bytes", "delta_loss", "kl", "agreement",
    ),
    "failure_modes": ("mode", "state", "symptom", "cause", "mitigation", "records"),
    "comparisons": ("arm", "reference", "compared_for", "differences", "confounded", "recipe", "judged"),
    "memory_by_rank": (
        *_CELL, "reference", "basis", "device", "storage", "reference_bytes", "bytes", "reduction_percent",
        "also_differs_in", "reason",
    ),
    "quality_memory": (
        *_CELL, "base", "task", "metric", "mean", "low", "high", "n", "memory_bytes", "memory_basis", "device",
        "frontier_probability",
    ),
    "data_audit": ("data", "field", "value"),
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Rows of raw values under ``COLUMNS[name]``."""

    name: str
    rows: Sequence[Mapping[str, Any]]

    @property
    def columns(self) -> tuple[str, ...]:
        return COLUMNS[self.name]

    def to_csv(self) -> str:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(self.columns)
        for row in self.rows:
            writer.writerow([csv_cell(row.get(column)) for column in self.columns])
        return buffer.getvalue()


def named(cell: CellData | None, cell_id: str) -> dict[str, Any]:
    """The columns that say which cell a row is about."""
    if cell is None:
        return {"cell": cell_id}
    return {
        "cell": cell.id,
        "label": cell.label,
        "precision": cell.precision,
        "method": cell.method,
        "rank": cell.rank,
        "targets": cell.targets,
    }


def summary(name: str, values: Sequence[float]) -> dict[str, Any]:
    """``{name}_mean, _low, _high, _n`` over seeds."""
    low, high = t_interval(values, fraction=name in FRACTIONS) or (None, None)
    return {f"{name}_mean": mean(values), f"{name}_low": low, f"{name}_high": high, f"{name}_n": len(values)}
