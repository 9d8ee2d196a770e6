"""The allocation job: where rank is needed, by what finished runs learned and by the base's gradients on the training rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from loracle.adapters.peft_files import read_adapter
from loracle.adapters.ranks import site_sizes
from loracle.adapters.targets import resolve_targets
from loracle.base.errors import StoreError
from loracle.diagnose.gradient import PROBES, gradients
from loracle.diagnose.spectrum import spectra
from loracle.models.linears import Linear, linear_map
from loracle.models.load import checkpoint_activations, device_name, load_base, meta_model, pick_device
from loracle.models.source import find, load_config, load_tokenizer
from loracle.spec.factors import cell_from_config
from loracle.spec.study import Cell
from loracle.store.files import SCHEMA, read_json, write_json
from loracle.store.layout import StudyFolder
from loracle.tasks import cache
from loracle.tasks.collate import pad_token_id
from loracle.train.order import DataOrder

BATCHES = 8


def importance(folder: StudyFolder, job: dict[str, Any], say: Callable[..., None]) -> dict[str, Any]:
    """Write ``diagnose/importance.json``: spectra of the job's runs, gradients of its settings."""
    maps: dict[tuple[str, str | None], list[Linear]] = {}
    say("spectra", steps=len(job["runs"]))
    found = [{**asked, "sites": _spectra(folder, asked["run"], maps)} for asked in job["runs"]]
    measured = []
    for i, asked in enumerate(job["gradients"]):
        say("gradients", step=i + 1, steps=len(job["gradients"]))
        measured.append(_gradients(folder, asked, job))
    content = {"schema": SCHEMA, "inputs_sha256": job["inputs_sha256"], "spectra": found, "gradients": measured}
    write_json(folder.importance, content)
    return {"status": "done", "spectra": len(found), "gradients": len(measured)}


def _spectra(folder: StudyFolder, run: str, maps: dict[tuple[str, str | None], list[Linear]]) -> list[dict[str, Any]]:
    cell = cell_from_config(read_json(folder.run_record(run))["config"])
    key = (cell.base.model, cell.base.revision)
    if key not in maps:
        config = load_config(find(*key))
        maps[key] = linear_map(meta_model(config), config.model_type)
    sizes = site_sizes(cell.adapter, resolve_targets(maps[key], cell.adapter.targets))
    return spectra(read_adapter(folder.run(run) / "adapter"), sizes)


def _gradients(folder: StudyFolder, asked: Mapping[str, Any], job: Mapping[str, Any]) -> dict[str, Any]:
    """One setting as the file has it: which cell stood for it, and on how much it was measured."""
    cell, seed = cell_from_config(asked["config"]), int(asked["seed"])
    data = cache.load(folder.root / "data" / asked["data"])
    if data is None:
        raise StoreError(f"data/{asked['data']} is missing or damaged: delete plan.json and run the study again")
    source = find(cell.base.model, cell.base.revision)
    loaded = load_base(source, cell, pick_device(job.get("device", "auto")), labels=data.labels)
    if cell.train.gradient_checkpointing:
        checkpoint_activations(loaded.model)
    size = cell.train.batch_size
    order = DataOrder(seed, len(data.train)).take(0, min(len(data.train), BATCHES * size))
    batches = [[data.train[i] for i in order[at : at + size]] for at in range(0, len(order), size)]
    sites = resolve_targets(loaded.linears, cell.adapter.targets)
    head = _head(cell, loaded.model.config, len(data.labels))
    pad_id = pad_token_id(load_tokenizer(source))
    measured = gradients(loaded, sites, batches, pad_id, seed=seed, head=head)
    return {
        **{key: asked[key] for key in ("cell", "cells", "data", "seed")},
        "probes": PROBES,
        "rows": len(order),
        "tokens": measured.tokens,
        "loss": measured.loss,
        "compute_dtype": str(loaded.compute_dtype).removeprefix("torch."),
        "device": device_name(loaded.device),
        "sites": measured.sites,
    }


def _head(cell: Cell, config: Any, labels: int) -> tuple[int, int] | None:
    return (labels, int(config.hidden_size)) if cell.task.classifies else None
