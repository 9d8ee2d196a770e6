"""The code on a model card, run as it stands: it must give the adapter's recorded evaluation loss."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from loracle.cli import main
from tests.cli.inside import Inside

TINY = ("--set", "task.samples=60", "--set", "task.eval_samples=6", "--set", "task.generate_samples=2")
FAST = ("--steps", "2", "--batch-size", "4", "--set", "run.cohort=1", "--set", "run.threads=1")
KINDS = {
    "nf4": ("--precision", "nf4", "--rank", "2", "--targets", "q,v", "--set", "double_quant=false"),
    "classification": ("--precision", "nf4", "--rank", "2", "--targets", "q,v", "--set", "task.type=classification"),
    "full": ("--method", "full"),
    "ia3": ("--method", "ia3", "--targets", "c_attn"),
    "tokens": ("--rank", "2", "--targets", "c_attn", "--set", "base.add_tokens=[<a>,<b>]"),
    "int4": ("--precision", "int4", "--rank", "2", "--targets", "q,v"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_cards_code_gives_the_recorded_loss(tmp_path: Path, monkeypatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("loracle.study.execute.LocalLauncher", Inside)
    command = ["train", "--model", "gpt2-demo", "--task", "banking77-10", *KINDS[kind], *TINY, *FAST, "--out", "study"]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert not ended.value.code
    os.chdir("study")
    [code] = re.findall(r"```python\n(.*?)```", Path("report/MODEL_CARD.md").read_text(), flags=re.DOTALL)
    assert ("import loracle\n" in code) == (kind == "int4")
    names: dict = {}
    exec(compile(code, "MODEL_CARD.md", "exec"), names)
    [record] = [json.loads(path.read_text()) for path in Path("runs").glob("*/record.json")]
    assert not list(Path("runs").glob("*/adapter/README.md"))
    assert loss(names["model"]) == pytest.approx(record["eval_loss"], abs=1e-4)


@torch.no_grad()
def loss(model) -> float:
    """Σ loss / Σ scored positions over eval.parquet. All rows in one batch, as the record's: under bitsandbytes' kernel for
    CPUs results hang on how many rows a product has."""
    rows = pq.read_table("eval.parquet").to_pylist()
    if rows[0].get("label_id") is not None:
        logits = torch.cat([model(input_ids=torch.tensor([row["input_ids"]])).logits.float() for row in rows])
        return float(torch.nn.functional.cross_entropy(logits, torch.tensor([row["label_id"] for row in rows])))
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows])
    labels = torch.tensor([row["labels"] + [-100] * (longest - len(row["labels"])) for row in rows])
    logits = model(input_ids=ids).logits.float()[:, :-1]
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100))
