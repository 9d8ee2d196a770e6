"""Banking77 classification on a small base under NF4, on a CPU: macro F1 on the whole test split, beside two plain lines.

    python benchmarks/banking77_cpu.py --model FOLDER --train train.csv --test test.csv

One run, r = 16, the full training split, learning rate and steps chosen on a tenth of the training rows. Beside it: always the
commonest label, and TF-IDF with logistic regression (scikit-learn's defaults but for word pairs). Writes a dated file here.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import time
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SETTINGS: dict[str, Any] = {
    "precision": "nf4",
    "adapter": {"rank": 16, "alpha": 32, "targets": ["c_attn", "c_proj", "c_fc"]},
    "train": {
        "steps": 1400,
        "batch_size": 32,
        "learning_rate": 2e-3,
        "schedule": "linear",
        "warmup_ratio": 0.06,
        "group_by_length": True,
    },
    "seeds": [42],
    "questions": ["task_metric"],
}


def rows(path: Path) -> tuple[list[str], list[str]]:
    """(texts, labels) of a file with columns text, category."""
    with open(path, encoding="utf-8", newline="") as handle:
        found = list(csv.DictReader(handle))
    return [row["text"] for row in found], [row["category"] for row in found]


def baselines(train: Path, test: Path) -> dict[str, dict[str, float]]:
    """Accuracy and macro F1 of the commonest label and of TF-IDF + logistic regression."""
    from sklearn.dummy import DummyClassifier
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score
    from sklearn.pipeline import make_pipeline

    (texts, labels), (asked, true) = rows(train), rows(test)
    models = {
        "majority class": DummyClassifier(strategy="most_frequent"),
        "TF-IDF + logistic regression": make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10.0, max_iter=2000)
        ),
    }
    out = {}
    for name, model in models.items():
        begin = time.perf_counter()
        guesses = model.fit(texts, labels).predict(asked)
        out[name] = {
            "accuracy": float(accuracy_score(true, guesses)),
            "macro_f1": float(f1_score(true, guesses, average="macro", zero_division=0)),
            "wall_s": round(time.perf_counter() - begin, 1),
        }
    return out


def main() -> None:
    """Train, evaluate, reload, write."""
    from loracle.spec import parse_study
    from loracle.study import run_study
    from loracle.study.progress import for_stream

    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--threads", type=int, help="CPU threads; on a busy machine 1 is faster than 2")
    parser.add_argument("--out", type=Path, default=Path("runs/banking77-cpu"))
    asked = parser.parse_args()
    task = {"name": "banking77", "data": str(asked.train), "eval": str(asked.test), "max_length": 128}
    run = {"run": {"threads": asked.threads}} if asked.threads else {}
    study = parse_study({"name": "banking77-cpu", "base": {"model": str(asked.model)}, "task": task, **SETTINGS, **run})
    begin = time.perf_counter()
    outcome = run_study(study, asked.out, progress=for_stream())
    wall = time.perf_counter() - begin
    [name] = outcome.states
    record = json.loads((asked.out / "runs" / name / "record.json").read_text())
    result = {
        "command": "python benchmarks/banking77_cpu.py --model gpt2-ref --train train.csv --test test.csv",
        "base": record["config"]["base"]["name"],
        "settings": SETTINGS,
        "status": record["status"],
        "train_rows": record["audit"]["train_rows"],
        "test_rows": record["audit"]["eval_rows"],
        "trainable_params": record["trainable_params"],
        "effective_bits": record["effective_bits"],
        "eval_loss": record["eval_loss"],
        "metrics": record["metrics"],
        "reload": {key: value for key, value in record["reload"].items() if key != "load"},
        "train_s": round(record["wall_s"], 1),
        "wall_s": round(wall, 1),
        "beside": baselines(asked.train, asked.test),
        "hardware": {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "threads": record["provenance"].get("threads"),
        },
        "provenance": record["provenance"],
    }
    path = HERE / f"{date.today().isoformat()}-banking77-cpu.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("metrics", "reload", "beside", "wall_s")}, indent=1))
    print(path)


if __name__ == "__main__":
    main()
