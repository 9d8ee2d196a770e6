"""The sensitivity job: every sweep that the study asks for, each made once and kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from loracle.base.errors import ModelError, StoreError, one_line
from loracle.diagnose.sensitivity import sweep, worst_first
from loracle.diagnose.units import UNITS, Codec
from loracle.models.load import LoadedBase, device_name, load_base, pick_device
from loracle.models.source import find, load_tokenizer
from loracle.spec.study import Base, Cell, Task
from loracle.store.files import SCHEMA, read_json, write_json
from loracle.store.layout import StudyFolder
from loracle.tasks.collate import pad_token_id
from loracle.tasks.dataset import plain_text

TEXT = "plain text"
MAX_LENGTH = 512


def sensitivity(folder: StudyFolder, job: dict[str, Any], say: Callable[..., None]) -> dict[str, Any]:
    """Write ``diagnose/sensitivity.json`` and ``diagnose/sensitivity_sweeps.json``; sweeps that are there already stay."""
    wanted, bases = job["sweeps"], Bases(pick_device(job.get("device", "auto")))
    known = {one["inputs_sha256"]: one for one in _made(folder)}
    for i, asked in enumerate(wanted):
        say("sensitivity", step=i + 1, steps=len(wanted))
        if asked["inputs_sha256"] not in known:
            known[asked["inputs_sha256"]] = made(asked, bases)
        _write(folder, [known[one["inputs_sha256"]] for one in wanted if one["inputs_sha256"] in known])
    return {"status": "done", "sweeps": len(wanted)}


class Bases:
    """The 16-bit base that was loaded last, with its tokenizer: sweeps of one base follow one another."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.last: tuple[Base, LoadedBase, Any] | None = None

    def of(self, base: Base) -> tuple[LoadedBase, Any]:
        """(loaded base, tokenizer)."""
        if self.last is None or self.last[0] != base:
            self.last = None  # never two in memory
            source = find(base.model, base.revision)
            cell = Cell(base=base, task=Task(data=TEXT), precision="bf16")
            self.last = base, load_base(source, cell, self.device), load_tokenizer(source)
        return self.last[1:]


def made(asked: dict[str, Any], bases: Bases) -> dict[str, Any]:
    """One sweep as the file has it: what was asked, what it was measured on, and its units, worst first within each kind of unit.

    A base or codec that cannot be swept (a base that comes quantized has no 16-bit weights) has no units and a reason.
    """
    started = time.monotonic()
    try:
        loaded, tokenizer = bases.of(Base(model=asked["model"], revision=asked["revision"]))
        longest = min(MAX_LENGTH, getattr(loaded.model.config, "max_position_embeddings", None) or MAX_LENGTH)
        rows = plain_text(tokenizer, longest)
        codec = Codec(asked["codec"], asked["double_quant"], asked["block_size"])
        found = sweep(loaded, codec, rows, pad_token_id(tokenizer))
    except ModelError as error:
        return {**asked, "text": TEXT, "reason": one_line(error), "units": []}
    units = [unit for name in UNITS for unit in worst_first([one for one in found.units if one["unit"] == name])]
    return {
        **asked,
        "text": TEXT,
        "reason": None,
        "rows": len(rows),
        "tokens": found.tokens,
        "base_loss": found.loss,
        "compute_dtype": str(loaded.compute_dtype).removeprefix("torch."),
        "device": device_name(bases.device),
        "seconds": time.monotonic() - started,
        "units": units,
    }


def _made(folder: StudyFolder) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = read_json(folder.sensitivity_sweeps)["sweeps"]
    except (StoreError, KeyError, TypeError):
        return []
    return found


def _write(folder: StudyFolder, sweeps: list[dict[str, Any]]) -> None:
    """Both files; the list of matrices last."""
    write_json(folder.sensitivity_sweeps, {"schema": SCHEMA, "sweeps": sweeps})
    matrices = [
        {"base": one["base"], "text": one["text"], **unit}
        for one in sweeps
        for unit in one["units"]
        if unit["unit"] == "matrix"
    ]
    write_json(folder.sensitivity, worst_first(matrices))
