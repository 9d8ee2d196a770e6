"""Synthetic studies with known truth, as plan, records and scores (no files)."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from loracle.verdict import RunScores, StudyEvidence

BASE_LOSS = 4.0


def config(precision: str, rank: int, alpha: int = 16, **train: Any) -> dict[str, Any]:
    blocks = (
        {"double_quant": True, "block_size": 64} if precision == "nf4" else {"double_quant": None, "block_size": None}
    )
    return {
        "base": {"model": "/models/gpt2-demo", "revision": None, "fingerprint": "f00", "name": "gpt2-demo"},
        "task": {"name": "banking77", "samples": 100, "path": "/data/here"},
        "precision": precision,
        **blocks,
        "compute_dtype": "fp32",
        "storage": "dequantized" if precision == "nf4" else "true",
        "adapter": {
            "method": "lora",
            "rank": rank,
            "alpha": alpha,
            "dropout": 0.0,
            "targets": ["c_attn"],
            "dtype": "fp32",
        },
        "train": {"learning_rate": 5e-3, "steps": 60, "gradient_checkpointing": False, **train},
    }


def cell(precision: str, rank: int, reference: str | None, **settings: Any) -> dict[str, Any]:
    return {
        "id": f"{precision}-r{rank}",
        "label": f"{precision} r{rank}",
        "config": config(precision, rank, **settings),
        "precision": precision,
        "method": "lora",
        "rank": rank,
        "targets": ["c_attn"],
        "predicted_bytes": (300 if precision == "nf4" else 1000) * 10**6 + rank * 10**6,
        "reference": reference,
        "differences": ["precision"] if reference else [],
    }


def study(
    cost: dict[int, float],
    seeds: int = 3,
    items: int = 60,
    seed_sd: float = 0.002,
    rank_cost: dict[int, float] | None = None,
    accuracy_loss: float = 0.0,
    rng: int = 0,
    **given: Any,
) -> StudyEvidence:
    """{bf16, nf4} x ranks; ``cost`` is the true log ratio of nf4 by rank, ``rank_cost`` that of a rank."""
    random = np.random.default_rng(rng)
    names = list(range(42, 42 + seeds))
    cells = [c for r in cost for c in (cell("bf16", r, None), cell("nf4", r, f"bf16-r{r}"))]
    tokens = random.integers(4, 20, items)
    hard = random.gamma(4.0, 0.25, items) * tokens
    right = random.random(items)
    runs, records, scores = [], [], {}
    for c in cells:
        for seed in names:
            run = f"{c['id']}-s{seed}"
            runs.append({"id": run, "cell": c["id"], "seed": seed, "role": "run", "cohort": "c0"})
            shift = cost[c["rank"]] if c["precision"] == "nf4" else 0.0
            shift += (rank_cost or {}).get(c["rank"], 0.0) + random.normal(0, seed_sd)
            loss = 2.0 * hard * np.exp(shift + random.normal(0, 0.01, items))
            threshold = 0.8 - (accuracy_loss if c["precision"] == "nf4" else 0.0)
            accuracy = (right < threshold).astype(float)
            accuracy[: items // 10] = np.nan
            scores[run] = RunScores(np.arange(items), loss, tokens, {"label_accuracy": accuracy})
            records.append(
                {
                    "id": run, "cell": c["id"], "seed": seed, "role": "run", "status": "done",
                    "config": copy.deepcopy(c["config"]) | {"init_seed": seed, "order_seed": seed},
                    "eval_loss": float(loss.sum() / tokens.sum()),
                    "metrics": {"base_eval_loss": BASE_LOSS, "base_label_accuracy": 0.0},
                }
            )  # fmt: skip
    questions = [
        {"name": n, "margin": None, "primary": n == "degradation", "compare": None}
        for n in ("degradation", "rank_threshold")
    ]
    values: dict[str, Any] = {
        "plan": {"cells": cells, "runs": runs, "null_pairs": []},
        "records": records, "scores": scores, "similarity": None, "agreement": None, "probes": [],
        "questions": questions, "seeds": names,
    }  # fmt: skip
    return StudyEvidence(**(values | given))


def changed(found: StudyEvidence, **given: Any) -> StudyEvidence:
    """A copy with some fields replaced."""
    fields = ("plan", "records", "scores", "similarity", "agreement", "probes", "questions", "seeds", "sensitivity")
    return StudyEvidence(**({name: copy.deepcopy(getattr(found, name)) for name in fields} | given))


def only(entries: list[dict[str, Any]], question: str, **scope: Any) -> dict[str, Any]:
    found = [e for e in entries if e["question"] == question and all(e["scope"].get(k) == v for k, v in scope.items())]
    assert len(found) == 1, [e["scope"] for e in found]
    return found[0]
