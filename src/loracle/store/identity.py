"""Identity: what a run *is*. SHA-256 over base files, data, tokenizer, settings and engine; never paths, storage, cohort."""

from __future__ import annotations

from typing import Any

from loracle.store.files import digest
from loracle.store.provenance import ENGINE

# Settings that say how a run is executed or where its inputs lie, not what it is.
_NOT_IDENTITY = {
    "base": {"model"},
    "task": {"data", "eval", "source", "licence", "description", "language", "known_biases"},
}


def settings_identity(cell: dict[str, Any]) -> dict[str, Any]:
    """A cell's settings (``Cell.model_dump()``) without paths and storage."""
    out = {key: value for key, value in cell.items() if key != "storage"}
    for section, names in _NOT_IDENTITY.items():
        out[section] = {k: v for k, v in out[section].items() if k not in names}
    return out


def cell_digest(cell: dict[str, Any], base_fingerprint: str, data_fingerprint: str) -> str:
    """Identity of a cell: its settings, the base's and the data's fingerprints, the engine version."""
    return digest(
        {"engine": ENGINE, "base": base_fingerprint, "data": data_fingerprint, "settings": settings_identity(cell)}
    )


def run_digest(cell_identity: str, seed: int, init_seed: int, order_seed: int) -> str:
    """Identity of a run: its cell and its seeds."""
    return digest({"cell": cell_identity, "seed": seed, "init_seed": init_seed, "order_seed": order_seed})
