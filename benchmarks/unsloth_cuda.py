"""unsloth's QLoRA run against ours, in turn: TinyLlama-1.1B's shape (random weights), all linear layers, r = 16, nf4.

    python benchmarks/unsloth_cuda.py --unsloth-site FOLDER [--quick] [--rounds 5]

``FOLDER`` holds unsloth, unsloth_zoo, trl, torchao and what else the environment lacks (``pip install --target``); it comes first in
the import path of a process of its own, which answers "time some steps" while ours waits. Both sides: 4 × 512 and 4 × 64 full rows,
every position scored, AdamW, clipped to 1. unsloth trains one run (adapters float32, bfloat16 autocast); ours one, and sixteen.
Peaks are per process; unsloth's are less what its other models take.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu import ours, results, shapes
from gpu.timing import Arm, Bench, ratio

from loracle.models.source import BUILTIN

RANK = 16
WORKER = Path(__file__).resolve().parent / "gpu" / "unsloth_worker.py"


class Unsloth:
    """The other process. ``ask`` sends one request and waits for its answer."""

    def __init__(self, site: Path, place: Path, log: Path) -> None:
        paths = [
            str(site.resolve()),
            *(str(Path(p).resolve()) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p),
        ]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "HF_HUB_OFFLINE": "1",
            "UNSLOTH_DISABLE_STATISTICS": "1",
            "UNSLOTH_SKIP_TRANSFORMERS_DEPENDENCY_CHECK": "1",
            "UNSLOTH_COMPILE_LOCATION": str(place / "unsloth_compiled_cache"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(log, "w", encoding="utf-8"),  # noqa: SIM115
            text=True,
            cwd=place,
            env=environment,
        )

    def ask(self, what: str, **request: Any) -> dict[str, Any]:
        """One answer; an error of the other side is raised here."""
        assert self.process.stdin
        assert self.process.stdout
        try:
            print(json.dumps({"what": what, **request}), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            tail = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-12:]
            raise RuntimeError("unsloth's process ended: " + " | ".join(tail))
        answer: dict[str, Any] = json.loads(line)
        if answer.get("oom"):
            raise torch.OutOfMemoryError(answer["error"])
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def close(self) -> None:
        """End it."""
        if self.process.stdin:
            with contextlib.suppress(BrokenPipeError):  # it may have ended by itself
                self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


@dataclass
class Remote:
    """An arm of the other process: it times and measures itself."""

    other: Unsloth
    name: str
    shape: dict[str, int]
    facts: dict[str, Any]

    def step(self, i: int) -> None:
        """Not stepped from here."""
        raise NotImplementedError

    def times(self, warmup: int, bench: Bench) -> list[float]:
        """Milliseconds of the steps of one visit."""
        asked = {"warmup": warmup, "seconds": bench.seconds, "least": bench.least, "most": bench.most}
        found: list[float] = self.other.ask("time", name=self.name, **self.shape, **asked)["ms"]
        return found

    def peaks(self, steps: int) -> dict[str, Any]:
        """Its process's peaks."""
        return self.other.ask("peak", name=self.name, **self.shape, steps=steps)

    def close(self) -> None:
        """The model stays: other arms use it."""


class Models:
    """unsloth's models by checkpointing, loaded when first needed."""

    def __init__(self, other: Unsloth, folder: Path, length: int, four_bit: bool) -> None:
        self.other, self.folder, self.length, self.four_bit = other, folder, length, four_bit
        self.loaded: dict[str, dict[str, Any]] = {}

    def arm(self, checkpointing: bool | str, batch: int, length: int, vocab: int) -> Arm:
        """One run at one shape."""
        name = f"checkpointing {checkpointing}"

        def begin() -> Remote:
            if name not in self.loaded:
                asked = {"rank": RANK, "checkpointing": checkpointing, "length": self.length, "four_bit": self.four_bit}
                self.loaded[name] = self.other.ask("load", name=name, folder=str(self.folder), **asked)
            return Remote(self.other, name, {"batch": batch, "length": length, "vocab": vocab}, self.loaded[name])

        label = f"unsloth, {name}, {batch}x{length}"
        return Arm(label, begin, "quantized", 1, bool(checkpointing), keep=True, warmup=3)


def our_arms(bases: ours.Bases, asked: Any, short: int, long: int) -> list[Arm]:
    """One member at both lengths, many at the short one; both storages, checkpointing on where unsloth has it."""
    arms = []
    for storage in ("quantized", "dequantized"):
        for checkpointing in (False, True) if storage == "quantized" else (False,):
            cell = ours.cell_of("nf4", RANK, "all-linear", asked.batch, checkpointing=checkpointing)
            for members, length in ((1, long), (1, short), (asked.cohort, short)):
                rows = shapes.full_rows(bases.config, length, 4 * asked.batch * members)
                word = ", checkpointing" if checkpointing else ""
                name = f"ours, {storage}{word}, {members} of {asked.batch}x{length}"
                arms.append(ours.arm(bases, name, storage, cell, rows, members, asked.compile, warmup=4))
    return arms


def with_tokenizer(folder: Path) -> Path:
    """unsloth wants a tokenizer beside the weights; no text is read with it."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUILTIN / "gpt2-demo" / name, folder / name)
    return folder


def main() -> None:
    """Peaks, times in turn, the files and the table."""
    parser = results.options(__doc__)
    parser.add_argument("--unsloth-site", type=Path, help="a folder with unsloth and its needs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cohort", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--sixteen-bit", action="store_true", help="unsloth without 4 bits (a trial on a CPU)")
    parser.add_argument("--extra", action="store_true", help="also unsloth's own offloading checkpointing")
    asked = parser.parse_args()
    device = results.device_of(asked)
    seconds = 0.02 if asked.tiny else 0.3 if asked.quick else 1.0
    bench = Bench(device, seconds, least=2 if asked.tiny else 3, most=20, debug=asked.debug)
    config = shapes.config_of("tinyllama-1.1b", asked.tiny)
    long, short = (64, 32) if asked.tiny else (512, 64)
    log = results.stem(asked.out, "unsloth", device, asked.tiny).with_suffix(".log")
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        other = Unsloth(asked.unsloth_site, place, log) if asked.unsloth_site else None
        try:
            theirs: list[Arm] = []
            if other:
                folder = with_tokenizer(shapes.saved(config, place / "base", device))
                models = Models(other, folder, long, not asked.sixteen_bit)
                kinds = (False, True, "unsloth") if asked.extra else (False, True)
                vocab = int(config.vocab_size)
                theirs = [models.arm(kind, asked.batch, length, vocab) for kind in kinds for length in (long, short)]
            bases = ours.Bases(config, device)
            mine = our_arms(bases, asked, short, long)
            bench.memory(theirs)
            bench.memory(mine, between=bases.free)
            bench.rounds([*theirs, *mine], asked.rounds, 110.0 if asked.quick else None)
            bases.free()
        finally:
            if other:
                other.close()
    pairs = [(a, b) for a in theirs for b in mine if a.checkpointing == b.checkpointing]
    found = [r for a, b in pairs if (r := ratio(a, b))]
    data = results.header("unsloth", device) | {
        "rank": RANK,
        "ratios": found,
        "rows": [arm.row() for arm in [*theirs, *mine]],
    }
    if not other:
        data["unsloth"] = None
        data["reason"] = "no --unsloth-site was given"
    path = results.stem(asked.out, "unsloth", device, asked.tiny)
    written = [results.write_json(path, data), results.write_csv(path, data["rows"])]
    print(results.arms_table(data["rows"]))
    lines = [
        (f"{r['of']} / {r['over']}", *(results.number(r[k], 2) for k in ("median", "least", "greatest"))) for r in found
    ]
    print(results.table(("times as long a run and step", "median", "least", "greatest"), lines))
    print(f"{bench.elapsed:.0f} s", *written, log if other else "", sep="\n")


if __name__ == "__main__":
    main()
