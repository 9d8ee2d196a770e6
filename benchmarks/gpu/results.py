"""What the scripts write and print: dated JSON and CSV files with hardware, versions and command; short tables; options."""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from loracle.models.load import device_name, pick_device
from loracle.store.provenance import provenance

HERE = Path(__file__).resolve().parent.parent


def options(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """The options that all scripts have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny shapes and few steps: a trial of the script, no result"
    )
    parser.add_argument("--quick", action="store_true", help="fewer arms and shorter visits")
    parser.add_argument("--out", type=Path, default=HERE, help="where the dated files go")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="on", help="CUDA graphs of our step")
    parser.add_argument("--debug", action="store_true", help="stop at the first failure of an arm")
    parser.set_defaults(**defaults)
    return parser


def device_of(asked: argparse.Namespace) -> torch.device:
    """The device that was asked for; float32 products stay float32 there (the default, stated)."""
    return pick_device(asked.device)


def slug(device: torch.device) -> str:
    """The hardware as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")


def header(benchmark: str, device: torch.device) -> dict[str, Any]:
    """What every file begins with."""
    found: dict[str, Any] = {
        "benchmark": benchmark,
        "date": date.today().isoformat(),
        "command": command(),
        "device": device_name(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["device_bytes"] = properties.total_memory
        found["cuda"] = torch.version.cuda
    else:
        found["cpu"] = _cpu()
    found["provenance"] = provenance(device_name(device), torch.get_num_threads())
    return found


def command() -> str:
    """The command line, absolute paths cut to their last part."""
    words = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "cpu"
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "cpu")


def stem(out: Path, benchmark: str, device: torch.device, tiny: bool = False) -> Path:
    """``OUT/DATE-BENCHMARK-DEVICE`` without an ending; a trial's files say ``tiny``."""
    out.mkdir(parents=True, exist_ok=True)
    return out / f"{date.today().isoformat()}-{benchmark}-{slug(device)}{'-tiny' if tiny else ''}"


def write_json(path: Path, data: Mapping[str, Any]) -> Path:
    """``path.json``."""
    target = path.with_name(path.name + ".json")
    target.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return target


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """``path.csv``, the columns those of all rows, in order of appearance; lists are joined by spaces."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    target = path.with_name(path.name + ".csv")
    with open(target, "w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()})
    return target


def mib(value: int | None) -> str:
    """Bytes as MiB, or a dash."""
    return "-" if value is None else f"{value / 2**20:,.0f}"


def number(value: float | None, digits: int = 1) -> str:
    """A number, or a dash."""
    return "-" if value is None else f"{value:,.{digits}f}"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Lines in columns: the first to the left, the others to the right."""
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    shown = []
    for line in [head, *lines]:
        first = line[0].ljust(widths[0])
        shown.append("  ".join([first, *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))]))
    return "\n".join(shown)


def arms_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of ``Arm.row`` as a short table."""
    head = ("arm", "storage", "runs", "ckpt", "ms/run-step", "p10", "p90", "alloc MiB", "reserved MiB", "status")
    lines = []
    for row in rows:
        members = row["members"]
        spread = [number(row[key] / members if row[key] is not None else None) for key in ("p10", "p90")]
        lines.append(
            (
                row["arm"],
                row["storage"],
                str(members),
                "on" if row["checkpointing"] else "off",
                number(row["ms_per_member_step"]),
                *spread,
                mib(row["peak_allocated_bytes"]),
                mib(row["peak_reserved_bytes"]),
                row["status"],
            )
        )
    return table(head, lines)
