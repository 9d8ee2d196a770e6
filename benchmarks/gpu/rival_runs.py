"""A process of its own that trains runs one after another as a script over PEFT would: ``python -m gpu.rival_runs JOB.json``.

Each run: load the base, attach, train, evaluate, save the adapter. Writes the seconds of each part to ``out`` of the job. Rows are
tokenized before the clock of a run starts (by our tokenizer code, the same rows as ours), which is to the rival's advantage.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gpu import rivals
from gpu.timing import clear, peaks, synchronize
from loracle.models.source import find, load_tokenizer, tokenizer_fingerprint
from loracle.spec.study import Task, Train
from loracle.tasks.collate import pad_token_id
from loracle.tasks.dataset import build
from loracle.tasks.rows import Tokenized
from loracle.train.order import DataOrder
from loracle.train.schedule import learning_rates

KINDS = {
    "usual LoRA": rivals.USUAL_LORA,
    "usual QLoRA": rivals.USUAL,
    "matched LoRA": rivals.LORA,
    "matched QLoRA": rivals.MATCHED,
}


def one_run(
    job: dict[str, Any], kind: str, rank: int, seed: int, data: Tokenized, pad_id: int, steps: int
) -> dict[str, Any]:
    """Seconds of one run's parts, and its losses."""
    device, batch = torch.device(job["device"]), job["batch_size"]
    recipe = KINDS[kind]
    if not kind.startswith("usual"):
        recipe = replace(recipe, adapter_dropout=job["dropout"])
    torch.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    marks = [time.perf_counter()]

    def mark() -> None:
        synchronize(device)
        marks.append(time.perf_counter())

    base = rivals.load(Path(job["base"]), recipe, device)
    model = rivals.adapt(base, recipe, job["targets"], rank, job["alpha"])
    mark()
    order = DataOrder(seed, len(data.train))
    batches = ([data.train[i] for i in order.take(step * batch, batch)] for step in range(steps))
    rates = learning_rates(Train(steps=steps, learning_rate=job["learning_rate"]), steps)
    losses = rivals.train(model, recipe, batches, rates, pad_id, device)
    mark()
    loss = rivals.evaluate(model, recipe, data.eval, 8, pad_id, device)
    mark()
    folder = Path(tempfile.mkdtemp())
    model.save_pretrained(folder)
    mark()
    shutil.rmtree(folder)
    del model, base
    clear(device)
    parts = [b - a for a, b in itertools.pairwise(marks)]
    names = ("setup_s", "train_s", "evaluate_s", "save_s")
    return {
        "kind": kind,
        "rank": rank,
        "seed": seed,
        **{name: round(part, 3) for name, part in zip(names, parts, strict=True)},
        "run_s": round(marks[-1] - marks[0], 3),
        "storage": rivals.storage_of(recipe),
        "checkpointing": recipe.checkpointing,
        **peaks(device),
        "last_loss": losses[-1],
        "eval_loss": loss,
    }


def main() -> None:
    """Warm up (counted nowhere), then the job's runs in order."""
    job = json.loads(Path(sys.argv[1]).read_text())
    source = find(job["base"])
    tokenizer = load_tokenizer(source)
    data = build(Task(**job["task"]), tokenizer, tokenizer_fingerprint(source), Path(job["cache"]))
    pad_id = pad_token_id(tokenizer)
    begun = time.perf_counter()
    one_run(job, "matched QLoRA", 8, 0, data, pad_id, 3)
    warmup = time.perf_counter() - begun
    runs = []
    for kind, rank, seed in job["runs"]:
        found = one_run(job, kind, rank, seed, data, pad_id, job["steps"])
        print(f"  {kind}, r = {rank}: {found['run_s']:.1f} s ({found['train_s']:.1f} of it steps)", flush=True)
        runs.append(found)
    Path(job["out"]).write_text(json.dumps({"warmup_s": round(warmup, 3), "runs": runs}))


if __name__ == "__main__":
    main()
