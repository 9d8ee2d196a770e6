"""A finished classification run by plain Transformers and PEFT, in batches of several sizes: which predictions differ from its record.

    python benchmarks/plain_reload.py runs/banking77-cpu/runs/RUN test.csv

The batches are padded, in the file's order; the record's are of rows of like length. Writes a dated file here.
"""

from __future__ import annotations

import csv
import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig

HERE = Path(__file__).parent
SIZES = (1, 8, 32, 64)


def main() -> None:
    """Load, classify, compare."""
    run, test = Path(sys.argv[1]), Path(sys.argv[2])
    record = json.loads((run / "record.json").read_text())
    load, base = record["reload"]["load"], record["config"]["base"]["model"]
    with open(test, encoding="utf-8", newline="") as handle:
        texts = [row["text"] for row in csv.DictReader(handle)]
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="right")
    model = AutoModelForSequenceClassification.from_pretrained(
        base,
        config=AutoConfig.from_pretrained(run / "adapter"),
        dtype=getattr(torch, load["dtype"]),
        quantization_config=BitsAndBytesConfig(**load["quantization_config"]),
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    model = PeftModel.from_pretrained(model, run / "adapter").eval()
    recorded = pd.read_parquet(run / "predictions.parquet")["prediction"].tolist()
    found: dict[str, Any] = {}
    for size in SIZES:
        logits = torch.cat([classify(model, tokenizer, texts[i : i + size]) for i in range(0, len(texts), size)])
        best = logits.topk(2, -1)
        guesses = [model.config.id2label[int(i)] for i in best.indices[:, 0]]
        margins = (best.values[:, 0] - best.values[:, 1]).tolist()
        unlike = [i for i, (a, b) in enumerate(zip(guesses, recorded, strict=True)) if a != b]
        found[str(size)] = {"differ": len(unlike), "margins_in_logits": [round(margins[i], 4) for i in unlike]}
        print(size, found[str(size)], flush=True)
    result = {
        "command": "python benchmarks/plain_reload.py runs/banking77-cpu/runs/RUN test.csv",
        "rows": len(texts),
        "by_batch_size": found,
        "provenance": record["provenance"],
    }
    path = HERE / f"{date.today().isoformat()}-banking77-plain-reload.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)


@torch.no_grad()
def classify(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Logits ``[n, C]`` of one padded batch."""
    batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=128)
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()


if __name__ == "__main__":
    main()
