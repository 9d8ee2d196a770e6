"""Do ranks by layer help? The proposal's own study, run as the report writes it, on a CPU.

    python benchmarks/rank_pattern_cpu.py

First a study with one rank for all (bf16, question `allocation`), whose report proposes ranks by spectrum and by gradient; then the
proposed study file as it is, but for `vary.precision`. Patterns and arms have the same seeds, so the spectrum has seen them. Writes
a dated file here: the patterns, each arm's loss and its paired difference from one rank for all.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SETTINGS: dict[str, Any] = {
    "base": "gpt2-demo",
    "task": {"name": "banking77-10", "samples": 1000, "eval_samples": 150, "max_length": 64, "generate_samples": 16},
    "adapter": {"alpha": "2r", "targets": "all-linear"},
    "train": {"steps": 80, "batch_size": 8, "learning_rate": 2.5e-3, "warmup_ratio": 0.1},
    "questions": ["allocation"],
}
SHOWN = ("cell", "label", "precision", "trainable_params", "eval_loss_mean", "against", "against_trainable_params",
         "against_differs_in", "difference_n", "eval_loss_change_percent", "eval_loss_change_low_percent",
         "eval_loss_change_high_percent")  # fmt: skip


def table(folder: Path, name: str) -> list[dict[str, Any]]:
    """A table of a report, numbers as numbers."""
    with open(folder / "report" / "tables" / f"{name}.csv", encoding="utf-8", newline="") as handle:
        return [{key: _value(text) for key, text in row.items()} for row in csv.DictReader(handle)]


def _value(text: str) -> Any:
    try:
        return json.loads(text) if text else None
    except json.JSONDecodeError:
        return text


def main() -> None:
    """Measure, propose, try, write."""
    from loracle.report import write_report
    from loracle.spec import parse_study
    from loracle.spec.load import load_study
    from loracle.study import run_study
    from loracle.study.progress import for_stream

    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44, 45, 46])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/rank-pattern-cpu"))
    asked = parser.parse_args()
    run = {"run": {"threads": asked.threads}, "seeds": asked.seeds}
    first = parse_study({"name": "one-rank", **SETTINGS, "vary": {"rank": [asked.rank]}, **run})
    run_study(first, asked.out / "one-rank", progress=for_stream(), report=write_report)
    proposal = asked.out / "one-rank" / "report" / "proposals" / "rank_pattern.yaml"
    tried = load_study(proposal, ["vary.precision=[bf16, nf4]"])
    outcome = run_study(tried, asked.out / "ranks", progress=for_stream(), report=write_report)
    record = json.loads((asked.out / "ranks" / "runs" / next(iter(outcome.states)) / "record.json").read_text())
    result = {
        "command": f"python benchmarks/rank_pattern_cpu.py --rank {asked.rank} --seeds {' '.join(map(str, asked.seeds))}",
        "settings": SETTINGS,
        "runs": len(outcome.states),
        "states": sorted({state.status for state in outcome.states.values()}),
        "patterns": [
            {key: row[key] for key in ("name", "effective_rank_mean", "gradient_norm", "uniform_rank", "spectrum_rank", "gradient_rank")}
            for row in table(asked.out / "one-rank", "rank_allocation")
        ],
        "arms": [{key: row[key] for key in SHOWN} for row in table(asked.out / "ranks", "rank_patterns")],
        "one_rank": [
            {key: row[key] for key in ("cell", "precision", "trainable_params", "eval_loss_mean", "eval_loss_n", "label_accuracy_mean")}
            for row in table(asked.out / "ranks", "cells")
        ],
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "threads": asked.threads},
        "provenance": record["provenance"],
    }  # fmt: skip
    path = HERE / f"{date.today().isoformat()}-rank-pattern-cpu-r{asked.rank}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["arms"], indent=1))
    print(path)


if __name__ == "__main__":
    main()
