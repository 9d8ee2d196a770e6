"""The cells of a study: factors expanded, tasks merged with the library, settings made concrete, named.

What needs a model or data (parameters, bytes, fingerprints) comes from the inspect job's record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loracle.base.names import slug
from loracle.spec.factors import cell_label, expand
from loracle.spec.study import UNQUANTIZED, Cell, Study
from loracle.store.files import digest, file_sha256
from loracle.store.identity import cell_digest, settings_identity
from loracle.store.provenance import ENGINE

# A quantized cell and its 16-bit twin may differ in these only.
PRECISION_KEYS = ("precision", "double_quant", "block_size", "storage")
REFERENCE_ORDER = ("bf16", "fp16", "fp32")
LABEL_LIMIT = 80
PREDICTED = (
    "trainable_params", "total_params", "predicted_bytes", "predicted_reason", "ledger", "phases", "managed_bytes", "fit",
    "effective_bits",
)  # fmt: skip


@dataclass(frozen=True)
class PlannedCell:
    """One cell: ``key`` names it in the inspect job, ``label`` to people."""

    key: str
    label: str
    cell: Cell

    @property
    def quantized(self) -> bool:
        return bool(self.cell.precision_names - UNQUANTIZED)


def planned_cells(study: Study) -> list[PlannedCell]:
    """Every distinct cell of the study, in the order written."""
    from loracle.tasks.library import load_task

    found: dict[str, PlannedCell] = {}
    # Merged before expanding as well: afterwards a default that the user wrote out looks like one left unsaid.
    for values, cell in expand(study.model_copy(update={"task": load_task(study.task)})):
        merged = cell.model_copy(update={"task": load_task(cell.task)})
        key = digest(plain(merged))[:12]
        found.setdefault(key, PlannedCell(key, slug(cell_label(cell, values), LABEL_LIMIT).rstrip("-._"), merged))
    return list(found.values())


def plain(cell: Cell) -> dict[str, Any]:
    """A cell as JSON data with alpha as a number, so that ``alpha: 2r`` at rank 8 and ``alpha: 16`` are one cell."""
    config = cell.model_dump(mode="json")
    config["adapter"]["alpha"] = cell.adapter.alpha_value
    return config


def references(cells: Sequence[PlannedCell]) -> dict[str, str | None]:
    """For each cell the key of its unquantized twin, bf16 before fp16 before fp32; None for unquantized cells."""
    twins: dict[str, dict[str, str]] = {}
    for cell in cells:
        if not cell.quantized and isinstance(cell.cell.precision, str):
            twins.setdefault(_but_precision(cell.cell), {})[cell.cell.precision] = cell.key
    found: dict[str, str | None] = {}
    for cell in cells:
        options = twins.get(_but_precision(cell.cell), {}) if cell.quantized else {}
        found[cell.key] = next((options[name] for name in REFERENCE_ORDER if name in options), None)
    return found


def _but_precision(cell: Cell) -> str:
    return digest({key: value for key, value in plain(cell).items() if key not in PRECISION_KEYS})


def concrete(planned: PlannedCell, record: Mapping[str, Any]) -> dict[str, Any]:
    """The cell's config with everything decided that the inspect job decided: dtype, storage, steps, base."""
    facts = record["cells"][planned.key]
    base = record["bases"][facts["base"]]
    config = plain(planned.cell)
    for key in ("compute_dtype", "storage"):
        config[key] = facts.get(key) or config[key]
    if facts.get("steps"):
        config["train"].update(steps=facts["steps"], epochs=None)
    config["base"] = {
        **config["base"],
        "model": base.get("resolved") or planned.cell.base.model,
        "revision": base.get("revision"),
        "fingerprint": base.get("fingerprint"),
        "name": base.get("name") or planned.cell.base.model,
    }
    return config


def identity(planned: PlannedCell, config: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """SHA-256 of what the cell is. A known fingerprint stands for the base's name and revision."""
    facts = record["cells"][planned.key]
    base = record["bases"][facts["base"]]
    data = record["data"].get(facts.get("data")) or {}
    fingerprint = base.get("fingerprint")
    own = {key: value for key, value in plain(planned.cell)["base"].items() if key not in ("model", "revision")}
    settings = {**config, "base": {"revision": None if fingerprint else planned.cell.base.revision, **own}}
    return cell_digest(
        settings, fingerprint or f"unread:{planned.cell.base.model}", data.get("fingerprint") or "unread"
    )


def described(planned: PlannedCell, record: Mapping[str, Any]) -> dict[str, Any]:
    """The cell's entry of plan.json, without its reference."""
    facts = record["cells"][planned.key]
    config = concrete(planned, record)
    hash_ = identity(planned, config, record)
    return {
        "id": f"{planned.label}-{hash_[:6]}",
        "label": planned.label,
        "config": config,
        "precision": config["precision"],
        "method": config["adapter"]["method"],
        "rank": config["adapter"]["rank"],
        "targets": config["adapter"]["targets"],
        **{key: facts.get(key) for key in PREDICTED},
        "data": facts.get("data"),
        "sha256": hash_,
    }


def study_digest(study: Study, cells: Sequence[PlannedCell]) -> str:
    """SHA-256 of all that a plan follows from. Margins, workers, retries and paths do not change a plan."""
    settings = [
        {"settings": settings_identity(plain(c.cell)), "storage": c.cell.storage, "inputs": _inputs(c.cell)}
        for c in cells
    ]
    run = study.run
    return digest(
        {
            "engine": ENGINE,
            "cells": settings,
            "seeds": study.seeds,
            "null_runs": study.diagnose.null_runs if asks(study, "similarity") else 0,
            "run": {"cohort": run.cohort, "threads": run.threads, "device": run.device},
        }
    )


def asks(study: Study, *names: str) -> bool:
    """Whether one of the questions is put to the study."""
    return any(question.name in names for question in study.questions)


def _inputs(cell: Cell) -> dict[str, Any]:
    """What the cell reads, by content where that is cheap: data files by hash, a base folder by names and sizes."""
    return {"base": base_inputs(cell), **{k: _content(getattr(cell.task, k)) for k in ("data", "eval")}}


def base_inputs(cell: Cell) -> Any:
    """The base's name; of a folder names and sizes of its files."""
    base = Path(cell.base.model)
    if base.is_dir():
        return sorted([p.name, p.stat().st_size] for p in base.iterdir() if p.is_file())
    return cell.base.model


def _content(path: str | None) -> str | None:
    return file_sha256(Path(path)) if path and Path(path).is_file() else path
