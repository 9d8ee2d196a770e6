"""Memory of LoRA and QLoRA on GPT-2 medium's shape as the 2 × 2 of {bf16, nf4} × {checkpointing off, on}, ours and PEFT's.

    python benchmarks/memory_table_cuda.py [--quick] [--ranks 2 4 8 16]

Published tables compare 16-bit LoRA without checkpointing with QLoRA as ``prepare_model_for_kbit_training`` sets it up, with it: the
saving of that diagonal is split here into what quantization and what checkpointing saves, in both orders, and averaged over them
(Shapley). Then, at rank 8, each thing that the recipe adds to the matched setting, one at a time: milliseconds and bytes. Last, paged
optimizers: what they cost with memory to spare, and how many bytes are managed.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu import ours, results, rivals, shapes
from gpu.timing import Arm, Bench, ratio

TARGETS = ("c_attn",)
CELLS = (("bf16", False), ("bf16", True), ("nf4", False), ("nf4", True))
USUAL_ARM = "peft usual: nf4, checkpointing on"
PRESSURE = "not measured: asking for more managed memory than the card has free can hang the GPU, so it is never done"
STEPS_OF_RECIPE: dict[str, dict[str, Any]] = {
    "16-bit base (no dequantization)": {"quantized": False},
    "+ checkpointing": {"checkpointing": True},
    "+ upcasts to float32": {"helper": True},
    "+ upcasts to float32, autocast": {"helper": True, "autocast": True},
    "+ paged optimizer": {"optimizer": "paged_adamw_32bit"},
    "+ base dropout": {"base_dropout": True},
    "+ adapter dropout 0.05": {"adapter_dropout": 0.05},
    "+ attention mask": {"mask": True},
}


def word(checkpointing: bool) -> str:
    """How a cell's name ends."""
    return f"checkpointing {'on' if checkpointing else 'off'}"


def attribution(cells: dict[tuple[str, bool], int]) -> dict[str, Any]:
    """The saving from (bf16, off) to (nf4, on) in bytes and shares: both orders and their mean."""
    start, end = cells["bf16", False], cells["nf4", True]
    orders = {
        "quantization first": (start - cells["nf4", False], cells["nf4", False] - end),
        "checkpointing first": (cells["bf16", True] - end, start - cells["bf16", True]),
    }
    whole = start - end
    shown = {
        name: {"quantization_bytes": q, "checkpointing_bytes": c, "quantization_share": q / whole if whole else None}
        for name, (q, c) in orders.items()
    }
    mean = sum(q for q, _ in orders.values()) / 2
    return {
        "from_bytes": start,
        "to_bytes": end,
        "saving_percent": round(100 * whole / start, 1),
        "by_quantization_percent": round(100 * mean / start, 1),
        "by_checkpointing_percent": round(100 * (whole - mean) / start, 1),
        "orders": shown,
    }


class Table:
    """All arms over one base: the cells by rank, the recipe's additions, paged optimizers."""

    def __init__(self, asked: Any, device: torch.device, folder: Path, rows: Any, bench: Bench) -> None:
        self.asked, self.device, self.folder, self.rows, self.bench = asked, device, folder, rows, bench
        self.batch = asked.batch
        self.bases = ours.Bases(shapes.config_of("gpt2-medium", asked.tiny), device)

    def rival(self, name: str, recipe: rivals.Recipe, rank: int = 8) -> Arm:
        """A rival's arm."""
        return rivals.arm(name, self.folder, recipe, TARGETS, rank, self.rows, self.batch, self.device)

    def ours(self, precision: str, checkpointing: bool, rank: int = 8, optimizer: str | None = None) -> Arm:
        """Ours, in the storage that memory is claimed for."""
        cell = ours.cell_of(
            precision, rank, TARGETS, self.batch, optimizer=optimizer or "adamw", checkpointing=checkpointing
        )
        storage = "quantized" if precision == "nf4" else "unquantized"
        name = f"ours: {precision}, {word(checkpointing)}{f', {optimizer}, eager' if optimizer else ''}"
        compile = "off" if optimizer else self.asked.compile  # bitsandbytes' optimizers are not captured: none is then
        return ours.arm(self.bases, name, storage, cell, self.rows, 1, compile, warmup=3)

    def cells(self) -> list[dict[str, Any]]:
        """Peaks by rank; ours by base, so that each is made once."""
        arms: list[tuple[int, str, tuple[str, bool], Arm]] = []
        for precision in ("bf16", "nf4"):
            for rank in self.asked.ranks:
                for checkpointing in (False, True):
                    arms.append((rank, "ours", (precision, checkpointing), self.ours(precision, checkpointing, rank)))
            self.bench.memory([arm for _, _, cell, arm in arms if cell[0] == precision])
            self.bases.free()
        for rank in self.asked.ranks:
            some = self.asked.quick and rank != 8
            theirs = []
            for precision, checkpointing in CELLS if not some else ():
                recipe = rivals.Recipe(quantized=precision == "nf4", checkpointing=checkpointing)
                name = f"peft matched: {precision}, {word(checkpointing)}"
                theirs.append((rank, "peft matched", (precision, checkpointing), self.rival(name, recipe, rank)))
            theirs.append((rank, "peft usual", ("nf4", True), self.rival(USUAL_ARM, rivals.USUAL, rank)))
            lora = self.rival("peft usual: bf16, checkpointing off", rivals.USUAL_LORA, rank)
            theirs.append((rank, "peft usual", ("bf16", False), lora))
            self.bench.memory([arm for *_, arm in theirs])
            self.close(arm for *_, arm in theirs)
            arms += theirs
        return [
            {"rank": rank, "by": by, "precision": cell[0], **without_times(arm.row())} for rank, by, cell, arm in arms
        ]

    def close(self, arms: Any) -> None:
        """The last rival stays set up after its peak: not here."""
        for arm in arms:
            self.bench.close(arm)

    def additions(self) -> tuple[list[Arm], list[dict[str, Any]]]:
        """From the matched setting to the recipe, one thing at a time."""
        matched = self.rival("peft matched: nf4", rivals.MATCHED)
        arms = [matched, self.rival("peft usual recipe: nf4, all of them", rivals.USUAL)]
        for name, change in STEPS_OF_RECIPE.items():
            arms.append(self.rival(name, replace(rivals.MATCHED, **change)))
        self.bench.memory(arms, stay=True)
        self.bench.rounds(arms, self.asked.rounds)
        found = []
        for arm in arms[1:]:
            times = ratio(arm, matched)
            peak, base = (one.peak.get("peak_allocated_bytes") for one in (arm, matched))
            found.append(
                {
                    "what": arm.name,
                    "times_matched": times,
                    "bytes_more": peak - base if peak is not None and base is not None else None,
                }
            )
        return arms, found

    def paging(self) -> tuple[list[Arm], dict[str, Any]]:
        """bitsandbytes' paged optimizers against the same unpaged and torch's, ours, with memory to spare."""
        kinds = ["adamw", "paged_adamw_32bit"]
        kinds += [] if self.asked.quick else ["adamw_8bit", "paged_adamw_8bit"]
        arms = [self.ours("nf4", False, 8, kind) for kind in kinds]
        self.bench.memory(arms)
        managed = managed_bytes()
        self.bench.rounds(arms, self.asked.rounds)
        self.bases.free()
        cell = ours.cell_of("nf4", 8, TARGETS, self.batch)
        loaded = self.bases.get(cell, "quantized")
        run = ours.start(loaded, cell, self.rows, 1, ours.settings(4, self.batch, "off"), prepared=1)
        trained = int(run.cohort.members[0].trainable_params)
        run.close()
        self.bases.free()
        return arms, {
            "times_adamw": {arm.name: ratio(arm, arms[0]) for arm in arms[1:]},
            "state_bytes_32bit": 8 * trained,
            "managed_bytes_seen": managed,
            "peft_managed_bytes": 0,
            "peft_reason": "bitsandbytes pages tensors of 100,000 numbers or more; each of PEFT's A and B here is smaller",
            "under_pressure": None,
            "under_pressure_reason": PRESSURE,
        }


def managed_bytes() -> int | None:
    """Bytes of managed memory that bitsandbytes has asked for in this process so far."""
    from bitsandbytes.functional import GlobalPageManager

    if not torch.cuda.is_available():
        return None
    return sum(t.numel() * t.element_size() for t in GlobalPageManager.get_instance().paged_tensors)


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    """A row of which only the peaks were asked for."""
    return {
        k: v
        for k, v in row.items()
        if k not in ("ms_per_step", "ms_per_member_step", "p10", "p90", "repeats", "steps_timed")
    }


def split(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Attributions by rank and side; the usual recipe's diagonal beside them."""
    found = []
    for rank, by in dict.fromkeys((cell["rank"], cell["by"]) for cell in cells):
        mine = {
            (c["precision"], c["checkpointing"]): c["peak_allocated_bytes"]
            for c in cells
            if (c["rank"], c["by"]) == (rank, by) and c["peak_allocated_bytes"]
        }
        if len(mine) == 4:
            found.append({"rank": rank, "by": by, **attribution(mine)})
        elif ("bf16", False) in mine and ("nf4", True) in mine:
            start, end = mine["bf16", False], mine["nf4", True]
            saving = round(100 * (start - end) / start, 1)
            found.append({"rank": rank, "by": by, "from_bytes": start, "to_bytes": end, "saving_percent": saving})
    return found


def main() -> None:
    """Cells, additions, paging; the file and the tables."""
    parser = results.options(__doc__)
    parser.add_argument("--ranks", nargs="+", type=int)
    parser.add_argument("--shape", help="batch x length (default 8x512)")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    device = results.device_of(asked)
    asked.ranks = asked.ranks or ([2, 8] if asked.tiny else [2, 4, 8, 16])
    asked.batch, length = map(int, (asked.shape or ("2x32" if asked.tiny else "8x512")).split("x"))
    bench = Bench(device, 0.02 if asked.tiny else 0.15 if asked.quick else 1.0, least=2, most=20, debug=asked.debug)
    config = shapes.config_of("gpt2-medium", asked.tiny)
    rows = shapes.full_rows(config, length, 4 * asked.batch)
    path = results.stem(asked.out, "memory-table", device, asked.tiny)
    with tempfile.TemporaryDirectory() as temporary:
        folder = shapes.saved(config, Path(temporary) / "base", device)
        table = Table(asked, device, folder, rows, bench)
        cells = table.cells()
        results.write_csv(path, cells)  # what is measured is kept, whatever comes
        added, additions = table.additions()
        paged, paging = table.paging()
    data = results.header("memory-table", device)
    data |= {
        "shape": f"{asked.batch}x{length}",
        "cells": cells,
        "attribution": split(cells),
        "additions": additions,
        "paging": paging,
    }
    data["rows"] = [arm.row() for arm in [*added, *paged]]
    written = [results.write_json(path, data), results.write_csv(path, cells)]
    show(data)
    print(f"{bench.elapsed:.0f} s", *written, sep="\n")


def show(data: dict[str, Any]) -> None:
    """The tables."""
    places = [("bf16", False), ("bf16", True), ("nf4", False), ("nf4", True)]
    peaks = {(c["rank"], c["by"], c["precision"], c["checkpointing"]): c["peak_allocated_bytes"] for c in data["cells"]}
    lines = []
    for rank, by in dict.fromkeys((c["rank"], c["by"]) for c in data["cells"]):
        found = next((a for a in data["attribution"] if (a["rank"], a["by"]) == (rank, by)), {})
        shares = (found.get(k) for k in ("saving_percent", "by_quantization_percent", "by_checkpointing_percent"))
        lines.append(
            (
                f"r = {rank}, {by}",
                *(results.mib(peaks.get((rank, by, *p))) for p in places),
                *map(results.number, shares),
            )
        )
    print(results.table(("MiB", "bf16", "bf16 ckpt", "nf4", "nf4 ckpt", "saved %", "by nf4", "by ckpt"), lines))
    print(results.arms_table(data["rows"]))


if __name__ == "__main__":
    main()
