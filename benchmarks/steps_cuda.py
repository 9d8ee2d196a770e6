"""Optimizer steps of GPT-2 medium (random weights), r = 8 on ``c_attn``: ours against Transformers + PEFT + bitsandbytes, in one run.

    python benchmarks/steps_cuda.py [--quick] [--shapes 8x512 8x64] [--members 1 4 8] [--rounds 5]

Full rows, every position scored. Peaks are each arm's alone on the device; then all arms are timed in turn, round by round. Rivals:
the usual QLoRA recipe, the same matched to ours, matched and compiled, 16-bit LoRA with and without checkpointing. Ours: quantized
storage, dequantized storage and bf16, alone and in cohorts. All arms get ready-made batches on the host, and clip to a norm of 1.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu import figures, ours, results, rivals, shapes
from gpu.timing import Arm, Bench, ratio

TARGETS = ("c_attn",)
RANK = 8
STORAGES = {"quantized": "nf4", "dequantized": "nf4", "unquantized": "bf16"}


def rival_arms(folder: Path, rows: Any, batch: int, device: torch.device, compiled: bool, graphs: bool) -> list[Arm]:
    """The compiled one comes last: it stays set up after its peak is taken, as compiling takes long."""
    recipes = {
        "peft: usual QLoRA recipe": rivals.USUAL,
        "peft: QLoRA matched": rivals.MATCHED,
        "peft: LoRA bf16": rivals.LORA,
        "peft: LoRA bf16, checkpointing": replace(rivals.LORA, checkpointing=True),
    }
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if graphs:
        recipes["peft: QLoRA matched, compiled, CUDA graphs"] = replace(
            rivals.MATCHED, adapter_dtype=dtype, compile="reduce-overhead"
        )
    if compiled:
        recipes["peft: QLoRA matched, compiled"] = replace(rivals.MATCHED, adapter_dtype=dtype, compile="default")
    return [rivals.arm(name, folder, recipe, TARGETS, RANK, rows, batch, device) for name, recipe in recipes.items()]


def our_arms(bases: ours.Bases, rows: Any, batch: int, members: list[int], compile: str, warmup: int) -> list[Arm]:
    """Three storages, each alone and in cohorts."""
    arms = []
    for storage, precision in STORAGES.items():
        cell = ours.cell_of(precision, RANK, TARGETS, batch)
        for count in members:
            name = f"ours: {precision} {storage}, {count}"
            arms.append(ours.arm(bases, name, storage, cell, rows, count, compile, warmup))
    return arms


def ratios(arms: list[Arm]) -> list[dict[str, Any]]:
    """Each rival over each of ours by milliseconds a run and step, and QLoRA over LoRA within either."""
    by = {arm.name: arm for arm in arms}
    theirs = [name for name in by if name.startswith("peft")]
    mine = [name for name in by if name.startswith("ours")]
    pairs = [(a, b) for a in theirs for b in mine if ("LoRA bf16" in a) == ("bf16" in b)]
    pairs += [(a, b) for a in mine for b in mine if "nf4" in a and "bf16" in b and by[a].members == by[b].members]
    pairs += [("peft: QLoRA matched", "peft: LoRA bf16")]
    found = [ratio(by[a], by[b]) for a, b in pairs if a in by and b in by]
    return [value for value in found if value]


def shape_run(
    asked: Any, shape: str, device: torch.device, folder: Path, deadline: float, bench: Bench
) -> dict[str, Any]:
    """Peaks and times of one shape."""
    batch, length = map(int, shape.split("x"))
    config = shapes.config_of("gpt2-medium", asked.tiny)
    rows = shapes.full_rows(config, length, 4 * batch * max(asked.members))
    bases = ours.Bases(config, device)
    compiled = not asked.no_compiled and (shape == asked.shapes[0] or not asked.quick)
    graphs = compiled and not asked.quick and device.type == "cuda" and batch * length <= 1024
    mine = our_arms(bases, rows, batch, asked.members, asked.compile, asked.warmup)
    theirs = rival_arms(folder, rows, batch, device, compiled, graphs)
    print(f"{shape}: peaks, each arm alone", flush=True)
    for storage in STORAGES:
        bench.memory([arm for arm in mine if arm.storage == storage])
        bases.free()
    bench.memory(theirs)
    print(f"{shape}: times, in turn", flush=True)
    bench.rounds([*theirs, *mine], asked.rounds, deadline)
    bases.free()
    rows_out = [{"shape": shape, **arm.row()} for arm in [*theirs, *mine]]
    return {"shape": shape, "rows": rows_out, "ratios": ratios([*theirs, *mine])}


def main() -> None:
    """All shapes, then the files and the table."""
    parser = results.options(__doc__)
    parser.add_argument("--shapes", nargs="+", help="batch x length (default 8x512 8x64)")
    parser.add_argument("--members", nargs="+", type=int, default=[1, 4, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=4, help="steps of ours that do not count, after each set-up")
    parser.add_argument("--seconds", type=float, help="of steps timed at each visit")
    parser.add_argument("--deadline", type=float, help="no new round after so many seconds")
    parser.add_argument("--no-compiled", action="store_true", help="leave the compiled rival out")
    asked = parser.parse_args()
    asked.shapes = asked.shapes or (["2x32", "2x16"] if asked.tiny else ["8x512", "8x64"])
    device = results.device_of(asked)
    seconds = asked.seconds or (0.02 if asked.tiny else 0.3 if asked.quick else 1.0)
    bench = Bench(device, seconds, least=2 if asked.tiny or asked.quick else 3, most=20, debug=asked.debug)
    limit = asked.deadline or (150.0 if asked.quick else 1e9)
    found: list[dict[str, Any]] = []
    data = results.header("steps", device)
    data["settings"] = {
        "base": "gpt2-medium shape, random weights" if not asked.tiny else "tiny",
        "rank": RANK,
        "targets": list(TARGETS),
        "rounds": asked.rounds,
        "cuda_graphs": asked.compile,
        "float32_products": torch.get_float32_matmul_precision(),
    }
    data["shapes"] = found
    path = results.stem(asked.out, "steps", device, asked.tiny)
    with tempfile.TemporaryDirectory() as temporary:
        folder = shapes.saved(shapes.config_of("gpt2-medium", asked.tiny), Path(temporary) / "base", device)
        for number, shape in enumerate(asked.shapes, 1):
            deadline = limit * (0.75 + 0.25 * (number - 1)) if len(asked.shapes) > 1 else limit
            found.append(shape_run(asked, shape, device, folder, deadline, bench))
            results.write_json(path, data)  # what is measured is kept, whatever comes
    written = [results.write_json(path, data), results.write_csv(path, [row for part in found for row in part["rows"]])]
    written.append(figures.steps(path, found, data["device"]))
    for part in found:
        lines = [
            (f"{r['of']} / {r['over']}", *(results.number(r[key], 2) for key in ("median", "least", "greatest")))
            for r in part["ratios"]
        ]
        print(results.table(("times as long a run and step", "median", "least", "greatest"), lines))
        print(f"\n{part['shape']}\n{results.arms_table(part['rows'])}")
    print(f"\n{bench.elapsed:.0f} s", *written, sep="\n")


if __name__ == "__main__":
    main()
