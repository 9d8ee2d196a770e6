"""SST-2 and SQuAD v1.1 on small bases under NF4, three seeds: the task's metrics with intervals over seeds.

    python benchmarks/tasks_cuda.py --task sst2 --model FOLDER --train train.tsv --eval dev.tsv
    python benchmarks/tasks_cuda.py --task squad --model FOLDER --train train.json --eval dev.json

Learning rates were chosen on held-out training rows. Writes a dated file here. (On a CPU it runs too, in hours.)
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COMMON: dict[str, Any] = {
    "precision": "nf4",
    "adapter": {"rank": 16, "alpha": 32, "targets": "all-linear"},
    "seeds": [42, 43, 44],
}
SETTINGS: dict[str, dict[str, Any]] = {
    "sst2": {
        "task": {"max_length": 128},
        "train": {
            "steps": 2000,
            "batch_size": 32,
            "learning_rate": 1e-3,
            "warmup_ratio": 0.06,
            "group_by_length": True,
        },
    },
    "squad": {
        "task": {"max_length": 512, "max_new_tokens": 24, "generate_samples": None, "samples": 20000},
        "train": {"steps": 2000, "batch_size": 16, "learning_rate": 1.5e-3, "warmup_ratio": 0.06},
    },
}
SHOWN = ("accuracy", "macro_f1", "exact_match", "f1", "eval_loss")


def main() -> None:
    """Run one study and write what came of it."""
    from loracle.report import write_report
    from loracle.spec import parse_study
    from loracle.study import run_study
    from loracle.study.progress import for_stream

    parser = argparse.ArgumentParser()
    parser.add_argument("--task", choices=SETTINGS, required=True)
    for name in ("model", "train", "eval"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=HERE)
    asked = parser.parse_args()
    settings = SETTINGS[asked.task]
    task = {"name": asked.task, "data": str(asked.train), "eval": str(asked.eval), **settings["task"]}
    tree = {"name": f"{asked.task}-reference", "base": {"model": str(asked.model)}, **COMMON, "task": task}
    tree |= {"train": settings["train"], "questions": ["task_metric"]}
    study = parse_study(tree)
    folder = asked.out / study.name
    begin = time.perf_counter()
    outcome = run_study(study, folder, progress=for_stream(), report=write_report)
    wall = time.perf_counter() - begin
    records = [json.loads((folder / "runs" / run / "record.json").read_text()) for run in outcome.states]
    with open(folder / "report" / "tables" / "cells.csv", encoding="utf-8", newline="") as handle:
        [cell] = csv.DictReader(handle)
    result = {
        "task": asked.task,
        "base": records[0]["config"]["base"]["name"],
        "settings": {**COMMON, **settings},
        "status": [record["status"] for record in records],
        "train_rows": records[0]["audit"]["train_rows"],
        "eval_rows": records[0]["audit"]["eval_rows"],
        "truncated": records[0]["audit"]["truncated"],
        "truncated_prompts": records[0]["audit"]["truncated_prompts"],
        "by_seed": {record["seed"]: {"eval_loss": record["eval_loss"], **record["metrics"]} for record in records},
        "interval_over_seeds": {
            name: {part: float(cell[f"{name}_{part}"]) for part in ("mean", "low", "high")}
            for name in SHOWN
            if cell.get(f"{name}_low")
        },
        "reload_difference": [record["reload"]["difference"] for record in records],
        "train_s": [round(record["cohort_wall_s"], 1) for record in records],
        "wall_s": round(wall, 1),
        "provenance": records[0]["provenance"],
    }
    path = asked.results / f"{date.today().isoformat()}-{asked.task}-reference.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["interval_over_seeds"], indent=1))
    print(path)


if __name__ == "__main__":
    main()
