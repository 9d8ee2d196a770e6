"""How long a sweep of layer sensitivity takes: every matrix, slice, kind and layer of a base quantized by itself, over plain text.

    python benchmarks/sensitivity_cuda.py [--quick] [--models gpt2-medium llama-7b]

Random weights, so the figures of the sweep mean nothing and are not written; its time hangs on shapes alone. The text is as much as a
study's sweep has: 6 rows of 512 tokens. Files are written after each model.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from gpu import ours, results, shapes
from gpu.timing import clear, peaks, synchronize

from loracle.diagnose.sensitivity import sweep
from loracle.diagnose.units import Codec

CODEC = Codec("nf4", True, 64)


def timed(name: str, asked: Any, device: torch.device) -> dict[str, Any]:
    """One model's row: seconds of each repeat, the first with what it sets up."""
    config = shapes.config_of(name, asked.tiny)
    rows = shapes.full_rows(config, 32 if asked.tiny else 512, 6)
    loaded = ours.base_of(shapes.build(config, device), ours.cell_of("bf16", 8, "all-linear", 1), device, "unquantized")
    seconds, found = [], None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(asked.rounds):
        synchronize(device)
        begun = time.perf_counter()
        found = sweep(loaded, CODEC, rows, 0)
        synchronize(device)
        seconds.append(round(time.perf_counter() - begun, 3))
    assert found is not None
    measured = {
        "tokens": found.tokens,
        "units": len(found.units),
        "seconds": statistics.median(seconds),
        "repeats": seconds,
    }
    return {"model": name, "codec": CODEC.name, **measured, **peaks(device)}


def main() -> None:
    """All models, the files and the table."""
    parser = results.options(__doc__)
    parser.add_argument("--models", nargs="+", choices=shapes.NAMES)
    parser.add_argument("--rounds", type=int)
    asked = parser.parse_args()
    device = results.device_of(asked)
    asked.rounds = asked.rounds or (2 if asked.quick or asked.tiny else 3)
    data = results.header("sensitivity", device)
    path = results.stem(asked.out, "sensitivity", device, asked.tiny)
    rows: list[dict[str, Any]] = []
    for name in asked.models or ["gpt2-medium", "tinyllama-1.1b", "llama-7b"]:
        rows.append(timed(name, asked, device))
        clear(device)
        written = [results.write_json(path, data | {"rows": rows}), results.write_csv(path, rows)]
    shown = [
        (r["model"], str(r["units"]), str(r["tokens"]), f"{r['seconds']:.1f}", results.mib(r["peak_allocated_bytes"]))
        for r in rows
    ]
    print(results.table(("model", "units", "tokens", "seconds", "alloc MiB"), shown), *written, sep="\n")


if __name__ == "__main__":
    main()
