"""Where QLoRA saves memory and what that costs in time: peak and ms a step of bf16 LoRA and nf4 QLoRA, over model size and tokens a step.

    python benchmarks/crossover_cuda.py [--quick] [--models gpt2 gpt2-medium tinyllama-1.1b llama-7b]
    python benchmarks/crossover_cuda.py --redraw FILE.json ... (no GPU: one table, CSV file and figure of results, beside the first)

Ours on both sides, so that nothing but the precision differs: r = 8 on all linear layers, full rows, no checkpointing, quantized
storage. Weights shrink with 4 bits, activations do not: with enough tokens a step the saving is a small share, or none. Peaks are
each point's alone on the device; times are taken in turn. A point that does not fit is a row, and larger ones are not tried. All
files are written after each model: a run that is cut leaves those that it has measured. With ``--models`` they are named after these.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from gpu import figures, ours, results, shapes
from gpu.timing import Arm, Bench, ratio

POINTS = ("4x64", "4x128", "8x128", "8x256", "8x512", "16x512", "24x512", "32x512")
QUICK = ("4x64", "8x128", "8x512", "32x512")
SIDES = {"bf16": "unquantized", "nf4": "quantized"}


def tokens_of(point: str) -> int:
    """Tokens a step."""
    batch, length = map(int, point.split("x"))
    return batch * length


def model_run(name: str, asked: Any, device: torch.device, bench: Bench) -> list[dict[str, Any]]:
    """All points of one model."""
    config = shapes.config_of(name, asked.tiny)
    bases = ours.Bases(config, device)
    arms: dict[tuple[str, str], Arm] = {}
    for precision, storage in SIDES.items():
        full = False
        for point in asked.points:
            batch, length = map(int, point.split("x"))
            cell = ours.cell_of(precision, 8, "all-linear", batch)
            rows = shapes.full_rows(config, length, 2 * batch)
            arm = ours.arm(bases, f"{name} {precision} {point}", storage, cell, rows, 1, asked.compile, warmup=3)
            arms[precision, point] = arm
            if full:
                arm.status, arm.facts["reason"] = "oom", "a smaller point did not fit"
                continue
            bench.memory([arm], steps=1)
            full = arm.status == "oom"
        bases.free()
    both = [p for p in asked.points if all(arms[side, p].status == "done" for side in SIDES)]
    bench.rounds([arms[side, p] for p in both for side in SIDES], asked.rounds)
    alone = [arm for (_, p), arm in arms.items() if p not in both and arm.status == "done"]
    bases.free()
    bench.rounds(alone, 1 if asked.quick else asked.rounds)
    bases.free()
    rows_out = []
    for (precision, point), arm in arms.items():
        slower = ratio(arm, arms["bf16", point]) if precision == "nf4" else None
        rows_out.append(
            {
                "model": name,
                "precision": precision,
                "tokens_per_step": tokens_of(point),
                "point": point,
                **arm.row(),
                "ms_over_bf16": slower["median"] if slower else None,
            }
        )
    return rows_out


def savings(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Bytes and share that 4 bits save at each point where both fit."""
    peaks = {(r["model"], r["tokens_per_step"], r["precision"]): r["peak_allocated_bytes"] for r in rows}
    found = []
    for model, tokens in dict.fromkeys((r["model"], r["tokens_per_step"]) for r in rows):
        bf16, nf4 = (peaks.get((model, tokens, side)) for side in SIDES)
        if bf16 and nf4:
            saved = {"saved_bytes": bf16 - nf4, "saved_percent": round(100 * (bf16 - nf4) / bf16, 1)}
            found.append({"model": model, "tokens_per_step": tokens, **saved})
    return found


def joined(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Results of one device as one; the rows of each model keep their file's order."""
    if len({one["device"] for one in found}) > 1:
        raise SystemExit("--redraw: these results are of unlike devices")
    return found[0] | {key: [row for one in found for row in one[key]] for key in ("savings", "rows")}


def drawn(path: Path, data: dict[str, Any]) -> list[Path]:
    """The CSV file and the figure of what was measured."""
    return [results.write_csv(path, data["rows"]), figures.crossover(path, data["rows"], data["device"])]


def show(data: dict[str, Any]) -> None:
    """The table."""
    saved = {(s["model"], s["tokens_per_step"]): s["saved_percent"] for s in data["savings"]}
    lines = [
        (
            f"{r['model']}, {r['point']} ({r['tokens_per_step']} tokens), {r['precision']}",
            r["storage"],
            results.mib(r["peak_allocated_bytes"]),
            results.mib(r["peak_reserved_bytes"]),
            results.number(saved.get((r["model"], r["tokens_per_step"])) if r["precision"] == "nf4" else None),
            results.number(r["ms_per_step"]),
            results.number(r["ms_over_bf16"], 2),
            r["status"],
        )
        for r in data["rows"]
    ]
    print(
        results.table(
            ("point", "storage", "alloc MiB", "reserved MiB", "saved %", "ms/step", "x bf16", "status"), lines
        )
    )


def main() -> None:
    """All models, the files, the figure and the table."""
    parser = results.options(__doc__)
    parser.add_argument("--models", nargs="+", choices=shapes.NAMES)
    parser.add_argument("--points", nargs="+", help="batch x length")
    parser.add_argument("--rounds", type=int)
    parser.add_argument(
        "--redraw", type=Path, nargs="+", metavar="FILE.json", help="measure nothing: draw these results as one"
    )
    asked = parser.parse_args()
    if asked.redraw:
        data = joined([json.loads(path.read_text(encoding="utf-8")) for path in asked.redraw])
        show(data)
        print(*drawn(asked.redraw[0].with_suffix(""), data), sep="\n")
        return
    device = results.device_of(asked)
    path = results.stem(asked.out, "-".join(["crossover", *(asked.models or ())]), device, asked.tiny)
    asked.models = asked.models or (
        ["gpt2", "tinyllama-1.1b"] if asked.tiny else ["gpt2", "gpt2-medium", "tinyllama-1.1b", "llama-7b"]
    )
    asked.points = asked.points or (["2x16", "2x32"] if asked.tiny else list(QUICK if asked.quick else POINTS))
    asked.rounds = asked.rounds or (2 if asked.tiny else 3 if asked.quick else 5)
    bench = Bench(device, 0.02 if asked.tiny else 0.1 if asked.quick else 0.5, least=2, most=20, debug=asked.debug)
    rows: list[dict[str, Any]] = []
    data = results.header("crossover", device) | {"rank": 8, "targets": "all-linear"}
    for name in asked.models:
        rows += model_run(name, asked, device, bench)
        data |= {"savings": savings(rows), "rows": rows}
        written = [results.write_json(path, data), *drawn(path, data)]  # what is measured is kept, whatever comes
    show(data)
    print(f"{bench.elapsed:.0f} s", *written, sep="\n")


if __name__ == "__main__":
    main()
