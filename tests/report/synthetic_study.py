"""A study folder as docs/files.md says, with known truth: {bf16, nf4} x ranks x seeds, null runs, hostile text."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

BESIDE = ("tables/", "figures/", "verdicts.json", "report.md", "MODEL_CARD.md", "DATA_CARD.md")
"""All that a report may link to, but for places on its own page."""
RANKS = (2, 4, 8, 16)
SEEDS = (42, 43, 44)
LABELS = (
    "card_arrival", "lost_card", "exchange_rate", "<script>alert(1)</script>", "=cmd|'/C calc'!A0",
    "![x](http://evil.example/p.png)", "top_up_failed", "pin_blocked", "cash_withdrawal", "verify_identity",
)  # fmt: skip
HOSTILE = (
    "<script>alert('run')</script>",
    '=HYPERLINK("http://evil.example","click")',
    "![x](http://evil.example/a.png) [y](javascript:alert(1)) | cell | www.evil.example",
    "</style></head><img src=http://evil.example/b.png onerror=alert(1)>\u202e `code` **bold** <http://evil.example>",
)
STEPS, ITEMS, LAYERS = 60, 80, 6
BASE_LOSS = {"bf16": 3.92, "nf4": 4.11}
LEDGER = (
    ("quantized_weights", 0), ("quantization_constants", 0), ("other_weights", 1_300_000), ("adapters", 200_000),
    ("gradients", 200_000), ("optimizer", 400_000), ("saved_activations", 21_000_000), ("logits_and_loss", 6_000_000),
    ("dequantization_workspace", 0), ("rest", 500_000),
)  # fmt: skip

PREDICTED = tuple(name for name, _ in LEDGER[:6])


def write_study(root: Path, *, ranks=RANKS, seeds=SEEDS, diagnose=True, probes=True, metric=True, states=None) -> Path:
    """Write the folder; ``states`` is ``{run id: (status, reason)}``, status "missing" for a run with no record."""
    cells = [_cell(p, r) for r in ranks for p in ("bf16", "nf4")]
    runs = [_run(c["id"], c["precision"], c["rank"], s, s, "run") for c in cells for s in seeds]
    runs += [
        _run(c["id"], "bf16", c["rank"], seeds[0], 1000 + seeds[0], "null") for c in cells if c["precision"] == "bf16"
    ]
    audit = _audit()
    plan = {
        "schema": 1,
        "cells": cells,
        "runs": runs,
        "cohorts": [
            {"id": "bf16-0", "runs": [r["id"] for r in runs], "threads": 2, "steps": STEPS, "estimated_s": 60.0}
        ],
        "null_pairs": [{"a": f"bf16-r{r}-qkv-s{seeds[0]}", "b": f"bf16-r{r}-qkv-s{seeds[0]}-null"} for r in ranks],
        "data": {"banking": audit},
        "sizing": {},
        "study_sha256": "ab" * 32,
        "plan_id": "p-1",
    }
    _json(root / "plan.json", plan)
    study = {
        "name": "demo",
        "base": {"model": "gpt2-demo", "revision": None},
        "task": {"name": "banking10"},
        "vary": {"precision": ["bf16", "nf4"], "rank": list(ranks)},
        "seeds": list(seeds),
        "questions": [
            {"name": "degradation", "margin": None, "primary": True, "compare": "factor"},
            {"name": "rank_threshold", "margin": None, "primary": False, "compare": "factor"},
            {"name": "similarity", "margin": None, "primary": False, "compare": "factor"},
            {"name": "memory", "margin": None, "primary": False, "compare": "factor"},
            {"name": "speed", "margin": None, "primary": False, "compare": "factor"},
        ],
    }
    root.joinpath("study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    for run in runs:
        status, reason = (states or {}).get(run["id"], ("done", None))
        if status != "missing":
            _write_run(root, run, next(c for c in cells if c["id"] == run["cell"]), audit, status, reason, metric)
    if diagnose:
        _write_diagnose(root, ranks, seeds)
    if probes:
        for cell in cells:
            _json(root / "probes" / cell["id"] / "record.json", _probe(cell))
    return root


def _config(precision: str, rank: int) -> dict[str, Any]:
    four_bit = precision == "nf4"
    return {
        "base": {"model": "gpt2-demo", "revision": None, "fingerprint": "f" * 64, "name": "gpt2-demo"},
        "task": {"name": "banking10", "format": "text_label", "labels": list(LABELS), "max_length": 64},
        "precision": precision,
        "double_quant": True if four_bit else None,
        "block_size": 64 if four_bit else None,
        "compute_dtype": "float32",
        "storage": "dequantized" if four_bit else "auto",
        "adapter": {
            "method": "lora",
            "rank": rank,
            "alpha": "2r",
            "dropout": 0.0,
            "targets": ["q", "k", "v"],
            "dtype": "auto",
        },
        "train": {"steps": STEPS, "batch_size": 8, "learning_rate": 8e-3, "gradient_checkpointing": False},
    }


def _cell(precision: str, rank: int) -> dict[str, Any]:
    ledger = _ledger(precision, rank)
    return {
        "id": f"{precision}-r{rank}-qkv",
        "label": f"{precision}-r{rank}-qkv",
        "config": _config(precision, rank),
        "precision": precision,
        "method": "lora",
        "rank": rank,
        "targets": ["q", "k", "v"],
        "trainable_params": 6144 * rank,
        "total_params": 3_500_000 + 6144 * rank,
        "predicted_bytes": sum(ledger[name] for name in PREDICTED),
        "ledger": {name: ledger[name] if name in PREDICTED else None for name in ledger},
        "effective_bits": 4.127 if precision == "nf4" else 16.0,
        "reference": f"bf16-r{rank}-qkv" if precision == "nf4" else None,
        "differences": ["precision"] if precision == "nf4" else [],
    }


def _ledger(precision: str, rank: int) -> dict[str, int]:
    out = dict(LEDGER)
    for name in ("adapters", "gradients", "optimizer"):
        out[name] = 6144 * rank * (8 if name == "optimizer" else 4)
    if precision == "nf4":
        out |= {"quantized_weights": 1_100_000, "quantization_constants": 35_000, "dequantization_workspace": 300_000}
    else:
        out["other_weights"] += 4_400_000
    return out


def _probe(cell: dict[str, Any]) -> dict[str, Any]:
    quantized = cell["precision"] == "nf4"
    whole = _ledger(cell["precision"], cell["rank"])
    ledger = {k: {"predicted_bytes": cell["ledger"][k], "measured_bytes": int(v * 1.04)} for k, v in whole.items()}
    ledger["rest"] = {"predicted_bytes": None, "measured_bytes": None, "measured_bytes_reason": "not told apart"}
    return {
        "schema": 1, "kind": "probe", "id": cell["id"], "cell": cell["id"], "status": "done", "reason": None,
        "device": "NVIDIA H200", "storage": "quantized" if quantized else "plain", "gradient_checkpointing": False,
        "batch_size": 8, "length": 64,
        "ms_per_step": {"median": 41.0 + 25 * quantized, "n": 9, "p10": 39.8 + 24 * quantized,
                        "p90": 44.1 + 26 * quantized},
        "tokens_per_s": 7757.0 if quantized else 12487.0,
        "peak_allocated_bytes": int(sum(whole.values()) * 1.03),
        "peak_reserved_bytes": int(sum(whole.values()) * 1.3),
        "ledger": ledger, "effective_bits": cell["effective_bits"],
    }  # fmt: skip


def _run(cell: str, precision: str, rank: int, seed: int, order_seed: int, role: str) -> dict[str, Any]:
    suffix = "" if role == "run" else "-null"
    return {
        "id": f"{cell}-s{seed}{suffix}", "cell": cell, "seed": seed, "init_seed": seed, "order_seed": order_seed,
        "role": role, "cohort": f"{precision}-0",
    }  # fmt: skip


def _audit() -> dict[str, Any]:
    return {
        "rows_read": 500, "dropped": {"empty text": 2, "=unknown label": 1}, "duplicates": 3, "train_rows": 400,
        "eval_rows": ITEMS,
        "overlap": 0, "truncated": 5, "zero_target_rows": 0, "target_token_share": 0.213,
        "tokens": {"mean": 31.2, "p95": 52, "max": 64}, "labels": list(LABELS),
        "examples": [
            {"item": i, "length": 3, "tokens": [["my card", 0], [" ->", 0], [text, 1]]}
            for i, text in enumerate(HOSTILE[:3])
        ],
    }  # fmt: skip


def _write_run(root: Path, run, cell, audit, status: str, reason: str | None, metric: bool) -> None:
    precision, rank = cell["precision"], cell["rank"]
    folder = root / "runs" / run["id"]
    folder.mkdir(parents=True)
    rng = np.random.default_rng([run["order_seed"], rank, precision == "nf4"])
    shared = np.random.default_rng([run["seed"], rank])
    items = np.random.default_rng(0).gamma(6.0, 1 / 6.0, ITEMS)
    tokens = np.random.default_rng(1).integers(2, 7, ITEMS)
    level = 0.62 * (1 + 0.25 / rank) * math.exp(shared.normal(0, 0.02) + rng.normal(0, 0.006))
    if precision == "nf4":
        level *= 1.02 + 0.09 / rank
    loss = level * items * tokens * np.exp(rng.normal(0, 0.05, ITEMS))
    eval_loss = float(loss.sum() / tokens.sum())
    base = BASE_LOSS[precision]
    record: dict[str, Any] = {
        "schema": 1, "kind": "run", "id": run["id"], "cell": cell["id"], "cohort": run["cohort"], "seed": run["seed"],
        "role": run["role"], "status": status, "reason": reason,
        "config": cell["config"] | {"init_seed": run["init_seed"], "order_seed": run["order_seed"]},
        "trainable_params": cell["trainable_params"], "total_params": cell["total_params"],
        "effective_bits": cell["effective_bits"], "eval_loss": None, "train_loss": None, "metrics": {},
        "steps": 17, "tokens_seen": 800, "wall_s": 3.1, "cohort_wall_s": 37.2, "reload": None, "adapter_sha256": None,
        "audit": audit,
        "provenance": {"engine": 1, "versions": {"loracle": "0.1.0", "torch": "2.13.0", "python": "3.11.9"},
                       "system": "Linux", "machine": "x86_64", "device": "cpu", "threads": 2},
    }  # fmt: skip
    curve = [base + (eval_loss - base) * (1 - math.exp(-5 * s / STEPS)) / (1 - math.exp(-5)) for s in range(STEPS + 1)]
    last = STEPS if status == "done" else 17
    lines: list[dict[str, Any]] = [{"step": 0, "eval_loss": base}]
    for step in range(1, last + 1):
        noise = float(rng.normal(0, 0.08))
        lines.append(
            {"step": step, "loss": curve[step] + noise, "lr": 8e-3 * (1 - step / STEPS), "grad_norm": 1.0, "tokens": 96}
        )
        if step % 10 == 0:
            lines.append({"step": step, "eval_loss": curve[step]})
    if status == "done":
        correct = rng.random(ITEMS) < 0.80 + 0.03 * math.log2(rank) - (0.02 if precision == "nf4" else 0)
        record |= {
            "eval_loss": eval_loss,
            "train_loss": eval_loss * 0.9,
            "steps": STEPS,
            "tokens_seen": 5760,
            "adapter_sha256": "c" * 64,
        }
        record["reload"] = {"passed": True, "eval_loss": eval_loss, "difference": 1e-7, "tolerance": 1e-4}
        record["metrics"] = {
            "perplexity": math.exp(eval_loss),
            "base_eval_loss": base,
            "plain_text_loss": 4.0,
            "base_plain_text_loss": 3.8,
        }
        if metric:
            score = float(correct.mean())
            record["metrics"] |= {
                "exact_match": score,
                "base_exact_match": 0.0,
                "label_accuracy": score,
                "base_label_accuracy": 0.01,
            }
        _write_predictions(folder, loss, tokens, correct, metric)
    _json(folder / "record.json", record)
    folder.joinpath("metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9')


def _write_predictions(folder: Path, loss, tokens, correct, metric: bool) -> None:
    reference = [LABELS[i % len(LABELS)] for i in range(ITEMS)]
    wrong = [HOSTILE[i % len(HOSTILE)] for i in range(ITEMS)]
    columns: dict[str, Any] = {
        "item": list(range(ITEMS)),
        "loss": loss.tolist(),
        "base_loss": (6 * loss).tolist(),
        "target_tokens": tokens.tolist(),
    }
    if metric:
        said = [r if ok else w for r, w, ok in zip(reference, wrong, correct, strict=True)]
        columns |= {"prediction": said, "prediction_ids": [[1, 2]] * ITEMS, "reference": reference}
        columns |= {"exact_match": correct.astype(int).tolist(), "label_accuracy": correct.astype(int).tolist()}
    pq.write_table(pa.table(columns), folder.joinpath("predictions.parquet"))


def _write_diagnose(root: Path, ranks, seeds) -> None:
    pairs, agreement = [], []
    for rank in ranks:
        arms = [("precision", f"bf16-r{rank}-qkv-s{s}", f"nf4-r{rank}-qkv-s{s}", s) for s in seeds]
        arms.append(("null", f"bf16-r{rank}-qkv-s{seeds[0]}", f"bf16-r{rank}-qkv-s{seeds[0]}-null", seeds[0]))
        for kind, a, b, seed in arms:
            rng = np.random.default_rng([seed, rank, kind == "null"])
            layers = []
            for layer in range(LAYERS):
                for name in ("q", "k", "v"):
                    cosine = float(0.93 - 0.01 * layer + 0.01 * (kind == "null") + rng.normal(0, 0.008))
                    found = {"cosine": cosine, "l2": 1 - cosine, "relative_difference": 2 * (1 - cosine)}
                    found |= {"principal_angle_cosine": cosine + 0.02}
                    layers.append({"layer": layer, "kind": name, "module": f"h.{layer}.attn.c_attn", **found})
            about = {"kind": kind, "rank": rank, "targets": ["q", "k", "v"], "seed": seed}
            pairs.append({"a": a, "b": b, **about, "layers": layers})
        for seed in seeds:
            match = 0.90 + 0.02 * math.log2(rank) + 0.001 * (seed % 3)
            twin = f"bf16-r{rank}-qkv-s{seed}"
            agreement.append(
                {
                    "run": f"nf4-r{rank}-qkv-s{seed}",
                    "twin": twin,
                    "token_match": match,
                    "exact": match - 0.02,
                    "embedding_cosine": match + 0.01,
                    "items": 32,
                }
            )
    _json(root / "diagnose" / "similarity.json", {"schema": 1, "pairs": pairs})
    _json(root / "diagnose" / "agreement.json", {"schema": 1, "pairs": agreement})


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
