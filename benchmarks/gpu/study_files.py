"""What a study needs on disk, made on the spot: a base of random weights with a tokenizer, instruction rows, a study file."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch

from gpu import shapes
from loracle.models.source import BUILTIN, find, load_tokenizer

_GPT2_FILES = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}
_TOKENIZER_CONFIG = {
    "tokenizer_class": "GPT2Tokenizer",
    "model_max_length": 1024,
    "unk_token": "<|endoftext|>",
    "bos_token": "<|endoftext|>",
    "eos_token": "<|endoftext|>",
}


def base_folder(folder: Path, tokenizer: Path | None, tiny: bool, device: torch.device) -> str:
    """GPT-2 medium's shape with random weights and a tokenizer (GPT-2's own, where its files are given). Says which."""
    folder.mkdir(parents=True)
    if tokenizer is None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(BUILTIN / "gpt2-demo" / name, folder / name)
        used = "the package's (8,192 tokens)"
    else:
        for path in tokenizer.iterdir():
            if path.is_file() and path.suffix in (".json", ".txt", ".bpe") and path.name != "config.json":
                shutil.copy(path, folder / _GPT2_FILES.get(path.name, path.name))
        if not (folder / "tokenizer_config.json").is_file():
            (folder / "tokenizer_config.json").write_text(json.dumps(_TOKENIZER_CONFIG))
        used = "GPT-2's" if (folder / "vocab.json").is_file() else "the given one"
    config = shapes.config_of("gpt2-medium", tiny)
    if tiny:
        (folder / "config.json").write_text(config.to_json_string())
        config.vocab_size = len(load_tokenizer(find(str(folder))))
        (folder / "config.json").unlink()
    shapes.saved(config, folder, device)
    return used


def reduced(data: Path | None, target: Path, count: int) -> str:
    """``count`` rows of an Alpaca file, drawn once; without one, rows whose lengths are spread alike. Says which."""
    draw = random.Random(0)
    if data is not None:
        rows = json.loads(data.read_text(encoding="utf-8"))
        if len(rows) > count:
            rows = draw.sample(rows, count)
        target.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        return f"{len(rows)} rows of {data.name}"
    words = [f"{a}{b}" for a in ("ba", "ke", "lo", "mi", "nu", "ra", "se", "to") for b in ("n", "r", "st", "l", "m")]

    def text(median: float, spread: float) -> str:
        return " ".join(draw.choices(words, k=max(1, int(median * draw.lognormvariate(0.0, spread)))))

    made = [{"instruction": text(7, 0.4), "input": "", "output": text(20, 0.9)} for _ in range(count)]
    target.write_text(json.dumps(made), encoding="utf-8")
    return f"{count} synthetic rows, lengths log-normal (no --data given)"


def study_tree(name: str, base: Path, data: Path, asked: Any) -> dict[str, Any]:
    """The study: two precisions, four ranks, three seeds; evaluation on a tenth of the rows, no generation."""
    return {
        "name": name,
        "base": {"model": str(base)},
        "task": {
            "name": "alpaca",
            "data": str(data),
            "samples": asked.samples,
            "eval_fraction": 0.1,
            "max_length": asked.max_length,
            "generate": False,
        },
        "adapter": {"rank": 8, "alpha": 16, "dropout": asked.dropout, "targets": ["c_attn"]},
        "train": {"steps": asked.steps, "batch_size": asked.batch_size, "learning_rate": 2e-4},
        "vary": {"precision": ["bf16", "nf4"], "rank": asked.ranks},
        "seeds": asked.seeds,
        "questions": ["degradation", "rank_threshold"],
    }
