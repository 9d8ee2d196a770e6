"""Synthetic studies with known truth for the verdicts' simulation: losses by seed and item, records and a plan.

A run's loss on an item is ``hard · exp(cost + seed + item + residual)``: ``item`` is the arm's own (mean of exp 1, so that the
truth stays the cost), the same at every seed; ``unequal`` times the reference's spread over seeds is the arm's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from loracle.verdict import RunScores, StudyEvidence, decide_primary

Array = npt.NDArray[np.float64]
BASE_LOSS = 6.0


@dataclass(frozen=True)
class Spread:
    """Standard deviations of log losses: between seeds, of the arm's own items, and how much wider the arm's seeds are."""

    seed: float
    item: float
    unequal: float = 2.0
    residual: float = 0.03
    items: int = 80


def losses(rng: np.random.Generator, n: int, cost: float, s: Spread, hard: Array | None = None) -> tuple[Array, Array]:
    """Losses of arm and reference ``[n, items]``."""
    hard = rng.gamma(2.0, 1.0, s.items) if hard is None else hard
    own = rng.normal(0, s.item, s.items) - 0.5 * s.item**2
    reference = np.exp(rng.normal(0, s.seed, (n, 1)) + rng.normal(0, s.residual, (n, s.items)))
    arm = np.exp(cost + own + rng.normal(0, s.unequal * s.seed, (n, 1)) + rng.normal(0, s.residual, (n, s.items)))
    return hard * arm, hard * reference


def _cell(precision: str, rank: int) -> dict[str, Any]:
    config = {
        "base": {"name": "synthetic"},
        "task": {"name": "synthetic"},
        "precision": precision,
        "adapter": {"method": "lora", "rank": rank, "alpha": 2 * rank, "targets": ["q"]},
        "train": {"steps": 1},
    }
    reference = f"bf16-r{rank}" if precision != "bf16" else None
    named = {"id": f"{precision}-r{rank}", "label": f"{precision} r{rank}", "reference": reference}
    return {**named, "config": config, "precision": precision, "method": "lora", "rank": rank, "targets": ["q"]}


def study(
    rng: np.random.Generator,
    costs: Mapping[int, float],
    n: int,
    s: Spread,
    question: str = "degradation",
    looks: Sequence[int] | None = None,
) -> StudyEvidence:
    """bf16 and nf4 at each rank of ``costs`` (true log ratio of nf4), ``n`` seeds, all runs done."""
    hard, items = rng.gamma(2.0, 1.0, s.items), np.arange(s.items)
    tokens = np.ones(s.items, np.int64)
    cells, runs, scores = [], [], {}
    for rank, cost in costs.items():
        pair = losses(rng, n, cost, s, hard)
        for precision, matrix in zip(("nf4", "bf16"), pair, strict=True):
            cell = _cell(precision, rank)
            cells.append(cell)
            for seed in range(n):
                run = {"id": f"{cell['id']}-s{seed}", "cell": cell["id"], "seed": seed, "role": "run", "status": "done"}
                metrics = {"base_eval_loss": BASE_LOSS}
                runs.append({**run, "config": {**cell["config"], "init_seed": seed}, "metrics": metrics})
                scores[run["id"]] = RunScores(items, matrix[seed], tokens, {})
    plan: dict[str, Any] = {"cells": cells, "runs": runs, **({"looks": list(looks)} if looks else {})}
    asked = [{"name": question, "margin": None, "primary": True, "compare": "factor"}]
    return StudyEvidence(plan, runs, scores, None, None, [], asked, range(n))


def first(found: StudyEvidence, n: int) -> StudyEvidence:
    """The study when only its first ``n`` seeds have been trained."""
    runs = [run for run in found.records if run["seed"] < n]
    plan = {**found.plan, "runs": runs}
    return StudyEvidence(plan, runs, found.scores, None, None, [], found.questions, range(n))


def until_decided(found: StudyEvidence, looks: Sequence[int]) -> tuple[list[dict[str, Any]], int]:
    """What ``run --decide`` ends with: the entries of the primary question and the number of seeds.

    "Needs" is left out, which takes nine tenths of the time and on which no verdict depends.
    """
    entries: list[dict[str, Any]] = []
    with patch("loracle.verdict.noninferiority.further_seeds", return_value=None):
        for n in looks:
            entries = decide_primary(first(found, n))
            if all(entry["verdict"] != "undecided" for entry in entries):
                return entries, n
    return entries, looks[-1]
