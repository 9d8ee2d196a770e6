"""Study folders of classification, of methods on SQuAD, of integer precisions and of chat, with known truth."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from synthetic_study import HOSTILE, LABELS

SEEDS = (42, 43, 44)
ITEMS, STEPS = 60, 60
METHODS = {"lora": (0.60, 24_576), "full": (0.58, 3_500_000), "dora": (0.61, 26_000), "prefix_tuning": (0.90, 7_680)}
INTEGER_LOSS = {"fp32": 2.875, "int8": 2.875, "int4": 2.929, "int3": 3.201, "int2": 7.546}
"""Measured losses of one untrained base with a vocabulary of 8,192, by precision."""
VOCABULARY = 8192


def write_classification(root: Path, seeds=SEEDS, labels=LABELS) -> Path:
    """{bf16, nf4} with heads of their own: accuracy 0.9 and 0.85, hostile label names."""
    cells = [_cell(p, "lora", 8, {"type": "classification", "format": "text_label"}) for p in ("bf16", "nf4")]
    words = [label.replace("_", " ") for label in labels]

    def fill(cell: dict[str, Any], seed: int, rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
        right = [words[i % len(words)] for i in range(ITEMS)]
        known = np.random.default_rng(1).random(ITEMS) < (0.9 if cell["precision"] == "bf16" else 0.85)
        known[rng.integers(0, ITEMS, 2)] ^= True
        said = [r if ok else words[(words.index(r) + 1) % len(words)] for r, ok in zip(right, known, strict=True)]
        columns = {"prediction": said, "reference": right, "accuracy": known.astype(int).tolist()}
        accuracy = float(known.mean())
        metrics = {
            "accuracy": accuracy,
            "macro_f1": accuracy - 0.01 + float(rng.normal(0, 0.004)),
            "weighted_f1": accuracy,
        }
        return columns, metrics | {"majority_accuracy": 1 / len(words), "base_eval_loss": math.log(len(words))}

    return _write(root, cells, seeds, fill, labels=list(labels), questions=["task_metric", "degradation"])


def write_methods(root: Path, seeds=SEEDS) -> Path:
    """Methods on SQuAD in bf16, and QLoRA; DoRA has a learning rate of its own."""
    task = {"type": "generation", "format": "squad"}
    cells = [_cell("bf16", method, 8, task) for method in METHODS] + [_cell("nf4", "lora", 8, task)]
    cells[2]["config"]["train"]["learning_rate"] = 1e-4

    def fill(cell: dict[str, Any], seed: int, rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
        f1 = np.random.default_rng(3).choice([0.0, 0.5, 1.0], ITEMS)
        f1[: seed % 3 + (4 if cell["method"] == "prefix_tuning" else 1)] = 0.0
        exact = (f1 == 1).astype(float)
        answers = [HOSTILE[i % len(HOSTILE)] if x < 1 else "the answer" for i, x in enumerate(f1)]
        passage = "A passage. " * 80
        columns = {
            "prompt": [f"{passage}Question: what is {i}?\nAnswer:" for i in range(ITEMS)], "prediction": answers,
            "reference": ["the answer"] * ITEMS, "references": [["the answer", "answer"]] * ITEMS,
            "exact_match": exact.tolist(), "f1": f1.tolist(),
        }  # fmt: skip
        metrics = {"exact_match": float(exact.mean()), "f1": float(f1.mean()), "base_exact_match": 0.0, "base_f1": 0.05}
        return columns, metrics | {"base_eval_loss": 3.0}

    return _write(root, cells, seeds, fill, questions=["degradation", "task_metric"])


def write_integers(root: Path, seeds=SEEDS) -> Path:
    """One base in fp32 and as integers; int2 has lost most of it before training."""
    cells = [_cell(p, "lora", 8, {"type": "generation", "format": "alpaca"}) for p in INTEGER_LOSS]

    def fill(cell: dict[str, Any], seed: int, rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
        answer = {"latency_mean_s": 1.25, "latency_median_s": 1.2, "latency_p95_s": 2.0, "answer_words_mean": 31.5}
        first = {"first_token_mean_s": 0.06, "first_token_median_s": 0.05, "first_token_p95_s": 0.1}
        return {}, answer | first | {"base_eval_loss": INTEGER_LOSS[cell["precision"]]}

    return _write(root, cells, seeds, fill, questions=["degradation"])


def _cell(precision: str, method: str, rank: int, task: dict[str, Any]) -> dict[str, Any]:
    block = {"nf4": 64, "int4": 64, "int3": 64, "int2": 64}.get(precision)
    ranked = method in ("lora", "dora")
    name = "-".join([precision, *([] if method == "lora" else [method.replace("_", "-")]), *([f"r{rank}"] * ranked)])
    options = {"num_virtual_tokens": 20} if method == "prefix_tuning" else {}
    adapter = {"method": method, "rank": rank, "alpha": 16.0, "dropout": 0.0, "targets": ["q", "v"], "dtype": "auto"}
    config = {
        "base": {"model": "gpt2-demo", "fingerprint": "f" * 64, "name": "gpt2-demo"},
        "task": {"name": "task", **task}, "precision": precision,
        "double_quant": True if precision == "nf4" else None, "block_size": block, "compute_dtype": "float32",
        "adapter": adapter | ({"options": options} if options else {}),
        "train": {"steps": STEPS, "learning_rate": 2e-4, "gradient_checkpointing": False},
    }  # fmt: skip
    reference = {"nf4": "bf16-r8"}.get(precision, "fp32-r8" if block or precision == "int8" else None)
    return {
        "id": name, "label": name, "config": config, "precision": precision, "method": method, "rank": rank,
        "targets": ["q", "v"], "trainable_params": METHODS.get(method, (0, 0))[1], "total_params": 3_524_576,
        "predicted_bytes": 10**7 if block else 2 * 10**7, "ledger": {}, "effective_bits": 4.5 if block else None,
        "reference": reference, "differences": ["precision"] if reference else [],
    }  # fmt: skip


def _write(root: Path, cells, seeds, fill, *, labels=None, questions=()) -> Path:
    runs = [{"id": f"{c['id']}-s{s}", "cell": c["id"], "seed": s, "role": "run"} for c in cells for s in seeds]
    _json(root / "plan.json", {"schema": 1, "cells": cells, "runs": runs, "data": {}})
    asked = [{"name": name, "primary": i == 0} for i, name in enumerate(questions)]
    study = {"name": "part-two", "seeds": list(seeds), "questions": asked}
    root.joinpath("study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    for run in runs:
        _write_run(root, run, next(c for c in cells if c["id"] == run["cell"]), fill, labels)
    return root


def _write_run(root: Path, run: dict[str, Any], cell: dict[str, Any], fill, labels) -> None:
    folder = root / "runs" / run["id"]
    folder.mkdir(parents=True)
    rng = np.random.default_rng([run["seed"], zlib.crc32(cell["id"].encode())])
    level = METHODS[cell["method"]][0] * (1.02 if cell["reference"] else 1.0) * math.exp(rng.normal(0, 0.004))
    loss = level * np.random.default_rng(0).gamma(6.0, 1 / 6.0, ITEMS) * np.exp(rng.normal(0, 0.05, ITEMS))
    columns, metrics = fill(cell, run["seed"], rng)
    eval_loss, base = float(loss.mean()), metrics["base_eval_loss"]
    whole = {"base": 14_000_000, "trainable": 4 * cell["trainable_params"]}
    record = {
        **run, "schema": 1, "kind": "run", "status": "done", "reason": None, "config": cell["config"],
        "trainable_params": cell["trainable_params"], "total_params": cell["total_params"], "eval_loss": eval_loss,
        "metrics": metrics | {"perplexity": math.exp(eval_loss)}, "steps": STEPS, "stopped_at": None, "wall_s": 3.0,
        "tensor_bytes": whole | {"gradients": whole["trainable"], "optimizer": 2 * whole["trainable"]},
        "peak_allocated_bytes": None, "peak_reason": "a CPU keeps no count of peak memory", "vocab_size": VOCABULARY,
        "reload": {"passed": True, "difference": 1e-7}, "audit": {"labels": labels} if labels else {},
        "provenance": {"device": "cpu"},
    }  # fmt: skip
    _json(folder / "record.json", record)
    table = {"item": list(range(ITEMS)), "loss": loss.tolist(), "target_tokens": [1] * ITEMS, **columns}
    pq.write_table(pa.table(table | {"base_loss": [base] * ITEMS}), folder / "predictions.parquet")
    curve = [base + (eval_loss - base) * (1 - math.exp(-6 * s / STEPS)) for s in range(STEPS + 1)]
    lines: list[dict[str, Any]] = [{"step": 0, "eval_loss": base}]
    for step in range(1, STEPS + 1):
        lines.append({"step": step, "loss": 0.95 * curve[step] + float(rng.normal(0, 0.1)), "tokens": 60})
        lines += [{"step": step, "eval_loss": curve[step]}] if step % 15 == 0 else []
    folder.joinpath("metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
