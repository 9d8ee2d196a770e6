"""Shared helpers: the built-in base, made-up rows, and reference bases that may be absent."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference models and data that development machines have; tests that need it skip elsewhere."""
    if not (SHARED / "models").is_dir():
        pytest.skip("the reference models and data are not on this machine")
    return SHARED


def text_rows(count: int) -> list:
    """Rows of the built-in task under the built-in base's tokenizer, prompts not scored."""
    from loracle.models.source import find, load_tokenizer
    from loracle.spec.study import Task
    from loracle.tasks.library import load_task
    from loracle.tasks.rows import Row

    tokenizer = load_tokenizer(find("gpt2-demo"))
    rows = []
    for item, record in enumerate(csv_rows(load_task(Task(name="banking77-10")).data, count)):
        prompt = tokenizer(f"Query: {record['text']}\nIntent:")["input_ids"]
        answer = [*tokenizer(" " + record["category"].replace("_", " "))["input_ids"], tokenizer.eos_token_id]
        rows.append(
            Row(item, prompt + answer, [-100] * len(prompt) + answer, prompt, record["category"], record["category"])
        )
    return rows


def csv_rows(path: str | None, count: int) -> list[dict[str, str]]:
    """``count`` rows spread over a CSV file."""
    with open(str(path), encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    return rows[:: max(1, len(rows) // count)][:count]
