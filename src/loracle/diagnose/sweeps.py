"""The sensitivity job: every sweep that the study asks for, each made once and kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from loracle.base.errors import StoreError
from loracle.diagnose.sensitivity import sweep, worst_first
from loracle.diagnose.units import Codec
from loracle.models.load import device_name, load_base, pick_device
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
    wanted = job["sweeps"]
    known = {one["inputs_sha256"]: one for one in _made(folder)}
    done: list[dict[str, Any]] = []
    for i, asked in enumerate(wanted):
        say("sensitivity", step=i + 1, steps=len(wanted))
        done.append(known.get(asked["inputs_sha256"]) or made(asked, job.get("device", "auto")))
        rest = [known[w["inputs_sha256"]] for w in wanted[i + 1 :] if w["inputs_sha256"] in known]
        _write(folder, [*done, *rest])
    return {"status": "done", "sweeps": len(done)}


def made(asked: dict[str, Any], device: str) -> dict[str, Any]:
    """One sweep as the file has it: what was asked, what it was measured on, and its units, worst first within each kind of unit."""
    started, where = time.monotonic(), pick_device(device)
    base = Base(model=asked["model"], revision=asked["revision"])
    source = find(base.model, base.revision)
    tokenizer = load_tokenizer(source)
    loaded = load_base(source, Cell(base=base, task=Task(data=TEXT), precision="bf16"), where)
    longest = min(MAX_LENGTH, getattr(loaded.model.config, "max_position_embeddings", None) or MAX_LENGTH)
    rows = plain_text(tokenizer, longest)
    codec = Codec(asked["codec"], asked["double_quant"], asked["block_size"])
    found = sweep(loaded, codec, rows, pad_token_id(tokenizer))
    return {
        **asked,
        "text": TEXT,
        "rows": len(rows),
        "tokens": found.tokens,
        "base_loss": found.loss,
        "compute_dtype": str(loaded.compute_dtype).removeprefix("torch."),
        "device": device_name(where),
        "seconds": time.monotonic() - started,
        "units": worst_first(found.units),
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
