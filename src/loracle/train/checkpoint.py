"""Cohort checkpoints: safetensors and JSON, the manifest with their SHA-256 written last; a bad newest one falls back."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from loracle.base.errors import StoreError
from loracle.store.files import SCHEMA, file_sha256, read_json, replacing, write_json

logger = logging.getLogger("loracle")
_KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """What was saved after optimizer step ``step``: tensors and plain state."""

    step: int
    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write ``folder/checkpoint-STEP`` and drop all but the newest two."""
    target = folder / f"checkpoint-{checkpoint.step:08d}"
    (target / "manifest.json").unlink(missing_ok=True)  # while it is rewritten it is no checkpoint
    with replacing(target / "state.safetensors") as temporary:
        save_file({k: v.detach().cpu().contiguous() for k, v in checkpoint.tensors.items()}, temporary)
    write_json(target / "state.json", {"schema": SCHEMA, "step": checkpoint.step, **checkpoint.state})
    names = ("state.safetensors", "state.json")
    write_json(
        target / "manifest.json",
        {"schema": SCHEMA, "step": checkpoint.step, "sha256": {n: file_sha256(target / n) for n in names}},
    )
    for old in _folders(folder)[:-_KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def newest(folder: Path, identity: str) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint of the cohort ``identity`` and what was wrong with newer ones, said one line each."""
    notes: list[str] = []
    for path in reversed(_folders(folder)):
        try:
            return _read(path, identity), notes
        except (StoreError, OSError, KeyError, ValueError, RuntimeError) as error:
            note = f"{path.name} is not usable ({error}); falling back to an older one"
            logger.warning(note)
            notes.append(note)
        except Exception as error:  # safetensors raises its own type on a torn file
            note = f"{path.name} is damaged ({type(error).__name__}); falling back to an older one"
            logger.warning(note)
            notes.append(note)
    return None, notes


def _folders(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"))


def _read(path: Path, identity: str) -> Checkpoint:
    manifest = read_json(path / "manifest.json")
    for name, expected in manifest["sha256"].items():
        if file_sha256(path / name) != expected:
            raise StoreError(f"{name} does not match its checksum")
    state = read_json(path / "state.json")
    if state.get("identity") != identity:
        raise StoreError("it belongs to another cohort")
    return Checkpoint(int(state["step"]), load_file(path / "state.safetensors"), state)


def clear(folder: Path) -> None:
    """Remove all checkpoints of a finished cohort."""
    for path in _folders(folder):
        shutil.rmtree(path, ignore_errors=True)
