"""The sensitivity job: every sweep and every mixed precision that the study asks for, each made once and kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from loracle.base.errors import ModelError, StoreError, one_line
from loracle.diagnose.mixing import mix
from loracle.diagnose.sensitivity import Sweep, sweep, worst_first
from loracle.diagnose.trained import wearing
from loracle.diagnose.units import UNITS, Codec
from loracle.models.load import LoadedBase, device_name, load_base, pick_device
from loracle.models.source import find, load_tokenizer
from loracle.spec.mixing import Mixed
from loracle.spec.study import Base, Cell, Task
from loracle.store.files import SCHEMA, read_json, write_json
from loracle.store.layout import StudyFolder
from loracle.tasks.collate import pad_token_id
from loracle.tasks.dataset import plain_text
from loracle.tasks.rows import Row

PLAIN = "plain text"
MAX_LENGTH = 512
MAX_TOKENS = 16384  # of evaluation rows
BESIDE_TOKENS = {"cpu": 2048, "cuda": 16384}  # of those that are swept beside the prose, before and after training
BESIDE_UNITS = ("matrix", "all")


def sensitivity(folder: StudyFolder, job: dict[str, Any], say: Callable[..., None]) -> dict[str, Any]:
    """Write ``diagnose/sensitivity.json``, ``sensitivity_sweeps.json`` and ``mixed_precision.json``; what is there already stays.

    ``job["mixes"]`` name the sweep that they follow from by its ``sweep_sha256``.
    """
    wanted, bases = job["sweeps"], Bases(folder, pick_device(job.get("device", "auto")))
    known = {one["inputs_sha256"]: one for one in read_list(folder.sensitivity_sweeps, "sweeps")}
    for i, asked in enumerate(wanted):
        say("sensitivity", step=i + 1, steps=len(wanted))
        if asked["inputs_sha256"] not in known:
            known[asked["inputs_sha256"]] = made(asked, bases)
        _write(folder, [known[one["inputs_sha256"]] for one in wanted if one["inputs_sha256"] in known])
    _mixes(folder, job.get("mixes") or [], known, bases)
    return {"status": "done", "sweeps": len(wanted)}


class Bases:
    """The 16-bit base that was loaded last, with its tokenizer: sweeps of one base follow one another."""

    def __init__(self, folder: StudyFolder, device: torch.device) -> None:
        self.folder, self.device = folder, device
        self.last: tuple[Base, LoadedBase, Any] | None = None

    def of(self, asked: dict[str, Any]) -> tuple[LoadedBase, Any]:
        """(loaded base, tokenizer)."""
        base = Base(model=asked["model"], revision=asked["revision"])
        if self.last is None or self.last[0] != base:
            self.last = None  # never two in memory
            source = find(base.model, base.revision)
            cell = Cell(base=base, task=Task(data=PLAIN), precision="bf16")
            self.last = base, load_base(source, cell, self.device), load_tokenizer(source)
        return self.last[1:]

    def rows(self, asked: dict[str, Any]) -> list[Row]:
        """The text of a sweep: the package's prose, or the first rows of the study's evaluation set."""
        loaded, tokenizer = self.of(asked)
        if asked.get("text", PLAIN) == PLAIN:
            longest = getattr(loaded.model.config, "max_position_embeddings", None) or MAX_LENGTH
            return plain_text(tokenizer, min(MAX_LENGTH, longest))
        most = MAX_TOKENS if asked["listed"] else BESIDE_TOKENS[self.device.type]
        return evaluation_rows(self.folder, asked["eval_file"], most)


def evaluation_rows(folder: StudyFolder, name: str, most: int) -> list[Row]:
    """Rows of ``eval.parquet`` in its order, up to ``most`` tokens."""
    import pandas as pd

    frame, tokens = pd.read_parquet(folder.root / name), 0
    rows: list[Row] = []
    for item, ids, labels in zip(frame["item"], frame["input_ids"], frame["labels"], strict=True):
        if rows and tokens + len(ids) > most:
            break
        tokens += len(ids)
        rows.append(Row(item=int(item), input_ids=[int(x) for x in ids], labels=[int(x) for x in labels]))
    return rows


def made(asked: dict[str, Any], bases: Bases) -> dict[str, Any]:
    """One sweep as the file has it: what was asked, what it was measured on, and its units, worst first within each kind of unit.

    A base or codec that cannot be swept (a base that comes quantized has no 16-bit weights) has no units and a reason.
    """
    started = time.monotonic()
    about = {"text": PLAIN, "when": "before", "run": None, "listed": True, **asked}
    try:
        loaded, tokenizer = bases.of(asked)
        rows = bases.rows(asked)
        codec = Codec(asked["codec"], asked["double_quant"], asked["block_size"])
        worn = bases.folder.run(about["run"]) / "adapter" if about["run"] else None
        with nullcontext() if worn is None else wearing(loaded.model, worn):
            kinds = UNITS if about["listed"] or about["text"] == PLAIN else BESIDE_UNITS
            found = sweep(loaded, codec, rows, pad_token_id(tokenizer), kinds)
    except ModelError as error:
        return {**about, "reason": one_line(error), "units": []}
    units = [unit for name in UNITS for unit in worst_first([one for one in found.units if one["unit"] == name])]
    return {
        **about,
        "reason": None,
        "rows": len(rows),
        "tokens": found.tokens,
        "base_loss": found.loss,
        "compute_dtype": str(loaded.compute_dtype).removeprefix("torch."),
        "device": device_name(bases.device),
        "seconds": time.monotonic() - started,
        "units": units,
    }


def _mixes(folder: StudyFolder, wanted: Sequence[dict[str, Any]], sweeps: dict[str, Any], bases: Bases) -> None:
    known = {one["inputs_sha256"]: one for one in read_list(folder.mixed_precision, "mixes")}
    for asked in wanted:
        if asked["inputs_sha256"] not in known:
            known[asked["inputs_sha256"]] = mixed_of(asked, sweeps[asked["sweep_sha256"]], bases)
    if wanted:
        kept = [known[one["inputs_sha256"]] for one in wanted]
        write_json(folder.mixed_precision, {"schema": SCHEMA, "mixes": kept})


def mixed_of(asked: dict[str, Any], found: dict[str, Any], bases: Bases) -> dict[str, Any]:
    """One choice as the file has it; a base that could not be swept has none, and the sweep's reason."""
    about = {**{key: found[key] for key in ("base", "codec", "double_quant", "block_size", "text")}, **asked}
    if found["reason"] is not None:
        return {**about, "needed": None, "reason": found["reason"], "kept": [], "precision": None, "path": []}
    loaded, tokenizer = bases.of(found)
    codec = Codec(found["codec"], found["double_quant"], found["block_size"])
    swept = Sweep(found["base_loss"], found["tokens"], found["units"])
    mixed = Mixed(default=found["codec"], sensitive=asked["sensitive"], budget=asked["budget"])
    choice = mix(loaded, codec, swept, mixed, asked["margin"], bases.rows(found), pad_token_id(tokenizer))
    return {**about, "tokens": found["tokens"], **choice}


def read_list(path: Any, key: str) -> list[dict[str, Any]]:
    """What an earlier job left; nothing where there is none or it cannot be read."""
    try:
        found: list[dict[str, Any]] = read_json(path)[key]
    except (StoreError, KeyError, TypeError):
        return []
    return found


def _write(folder: StudyFolder, sweeps: list[dict[str, Any]]) -> None:
    """Both files; the list of matrices last. It is of the base before training, on one text: the study's own where it is plain text."""
    write_json(folder.sensitivity_sweeps, {"schema": SCHEMA, "sweeps": sweeps})
    matrices = [
        {"base": one["base"], "text": one["text"], **unit}
        for one in sweeps
        if one.get("listed", True)
        for unit in one["units"]
        if unit["unit"] == "matrix"
    ]
    write_json(folder.sensitivity, worst_first(matrices))
