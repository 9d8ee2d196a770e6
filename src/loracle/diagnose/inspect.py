"""The inspect job: model map, data audit, predictions and cohort sizes for every cell of a study, before anything trains.

Works without weights (``weights: false``): from a config and, for the data audit, a tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loracle.adapters.alone import check_method, count_trainable
from loracle.adapters.cohort import member_of
from loracle.adapters.equal_parameters import with_rank
from loracle.adapters.ranks import Size, site_sizes, trainable_params
from loracle.adapters.targets import Site, resolve_targets
from loracle.base.errors import DataError, LoracleError, ModelError, SpecError, one_line
from loracle.diagnose import sizing
from loracle.diagnose.machine import machine
from loracle.diagnose.predictions import Predictions, Setting, budget_of, steps_of, training_geometry
from loracle.models import source as sources
from loracle.models.census import predicted_bits
from loracle.models.linears import FAMILIES, Linear, check_weights, linear_map
from loracle.models.load import (
    count_parameters,
    load_base,
    meta_model,
    pick_compute_dtype,
    pick_device,
    pick_storage,
)
from loracle.models.prequantized import assign_base
from loracle.spec.load import tuples
from loracle.spec.study import UNQUANTIZED, Cell
from loracle.store.files import replacing
from loracle.store.layout import StudyFolder
from loracle.tasks.collate import pad_token_id
from loracle.tasks.dataset import build, labels_of
from loracle.tasks.groups import group_columns
from loracle.tasks.rows import Tokenized

Say = Callable[..., None]


@dataclass
class Base:
    """One base of the study, as far as it could be looked at; ``key`` names it in the record."""

    key: str
    source: sources.Source
    config: Any
    linears: list[Linear]
    total_params: int
    record: dict[str, Any]
    add_tokens: tuple[str, ...] = ()
    tokenizer: Any = None


class Inspection:
    """One inspect job: bases, data and cells, each looked at once."""

    def __init__(self, folder: StudyFolder, job: dict[str, Any], say: Say) -> None:
        self.folder, self.job, self.say = folder, job, say
        self.device = pick_device(job.get("device", "auto"))
        self.weights = bool(job.get("weights", True))
        self.bases: dict[str, Base] = {}
        self.data: dict[str, Tokenized] = {}
        self.built: dict[tuple[str, str], Tokenized] = {}
        self.data_records: dict[str, dict[str, Any]] = {}
        self.cells = {c["key"]: Cell.model_validate(tuples(c["config"])) for c in job["cells"]}
        self.predictions = Predictions()
        self.budget = budget_of(job.get("gpu_memory"), self.device)

    def run(self) -> dict[str, Any]:
        """The job's record (docs/jobs.md)."""
        found = self.choose_ranks()
        cells = {key: self.cell(key, cell) | found.get(key, {}) for key, cell in self.cells.items()}
        for key in self.data:
            self.write_eval_set(key)
        on_gpu = self.device.type == "cuda" or not self.weights
        measured = self.sizes(cells) if (self.budget and on_gpu) or (self.job.get("measure") and self.weights) else {}
        return {
            "status": "done",
            "bases": {name: base.record for name, base in self.bases.items()},
            "data": self.data_records,
            "cells": cells,
            "sizing": measured,
            "machine": machine(self.device),
        }

    # -- bases --------------------------------------------------------------------------------------------------------

    def base(self, cell: Cell) -> Base:
        """The cell's base: config, map, fingerprint."""
        key = cell.base.model if cell.base.revision is None else f"{cell.base.model}@{cell.base.revision}"
        key += "".join(f"+{token}" for token in cell.base.add_tokens)
        if key in self.bases:
            return self.bases[key]
        self.say("load", base=cell.base.model)
        source = sources.find(cell.base.model, cell.base.revision)
        if self.weights:
            sources.require_weights(source)
        sources.refuse_pickled(source)
        config = sources.load_config(source)
        model = meta_model(config)
        if source.weights and config.model_type in FAMILIES:
            check_weights(model, sources.weight_shapes(source), source.resolved)
        linears = linear_map(model, config.model_type)
        if not linears:
            raise ModelError(f"{cell.base.model}: no linear layer found in {type(model).__name__}")
        total = count_parameters(model)
        fingerprint, why = sources.fingerprint(source)
        record = {
            "model": cell.base.model,
            "resolved": source.resolved,
            "name": source.name,
            "revision": source.revision,
            "fingerprint": fingerprint,
            "fingerprint_reason": why,
            "architecture": type(model).__name__,
            "model_type": config.model_type,
            "total_params": total,
            "n_layers": getattr(config, "num_hidden_layers", None),
            "vocab_size": config.vocab_size,
            "licence": sources.licence(source),
            "linears": [
                {"name": x.name, "layer": x.layer, "kind": x.kind, "d_in": x.d_in, "d_out": x.d_out} for x in linears
            ],
        }
        self.bases[key] = Base(key, source, config, linears, total, record, cell.base.add_tokens)
        return self.bases[key]

    def tokenizer(self, base: Base) -> Any:
        """The base's tokenizer, loaded once."""
        if base.tokenizer is None:
            base.tokenizer = sources.load_tokenizer(base.source, base.add_tokens)
        return base.tokenizer

    # -- data ---------------------------------------------------------------------------------------------------------

    def tokenized(self, cell: Cell, base: Base) -> tuple[str | None, Tokenized | None]:
        """The cell's rows; (key, None) with a reason in the record where ``plan`` must do without them."""
        limit = getattr(base.config, "max_position_embeddings", None)
        if limit and cell.task.max_length > limit:
            raise SpecError(
                f"{cell.task.max_length} tokens, but {base.record['name']} has {limit} positions", "task.max_length"
            )
        known = (base.key, cell.task.model_dump_json())
        if known in self.built:
            return self.built[known].key, self.built[known]
        self.say("tokenize", task=cell.task.name or cell.task.data)
        try:
            made = self.built[known] = build(
                cell.task,
                self.tokenizer(base),
                sources.tokenizer_fingerprint(base.source, base.add_tokens),
                self.folder.root / "data",
            )
        except (DataError, ModelError) as error:
            local = cell.task.data is not None and Path(cell.task.data).exists()
            if self.weights or (local and isinstance(error, DataError)):
                raise
            reason = one_line(error)
            same = next((k for k, entry in self.data_records.items() if entry["reason"] == reason), None)
            key = same or f"unread-{len(self.data_records)}"
            self.data_records[key] = {
                "status": "failed",
                "reason": reason,
                "fingerprint": None,
                "train_rows": None,
                "eval_rows": None,
            }
            return key, None
        if made.key not in self.data:
            self.data[made.key] = made
            self.data_records[made.key] = {
                "status": "done",
                "reason": None,
                "fingerprint": made.fingerprint,
                **made.audit,
                "labels": list(made.labels),
            }
        return made.key, made

    def write_eval_set(self, key: str) -> None:
        """``eval.parquet``: what the recorded losses are taken over, for anyone to recompute."""
        import pandas as pd

        path = self.folder.eval_set(None if len(self.data) == 1 else key[:12])
        rows = self.data[key].eval
        frame = pd.DataFrame(
            {
                "item": [r.item for r in rows],
                "input_ids": [r.input_ids for r in rows],
                "labels": [r.labels for r in rows],
            }
        )
        if rows[0].label_id is not None:
            frame["label_id"] = [r.label_id for r in rows]
        for name, values in group_columns(rows).items():
            frame[name] = values
        with replacing(path) as temporary:
            frame.to_parquet(temporary, index=False)
        self.data_records[key]["eval_file"] = path.name

    # -- cells --------------------------------------------------------------------------------------------------------

    def choose_ranks(self) -> dict[str, dict[str, Any]]:
        """Cells that say how many parameters they train get the rank for it; from here on they are like any other."""
        found: dict[str, dict[str, Any]] = {}
        for key, cell in self.cells.items():
            if cell.adapter.parameters is not None:
                base = self.base(cell)
                self.cells[key], sizes = with_rank(cell, base.linears, base.config)
                found[key] = {"rank": self.cells[key].adapter.rank, "parameters": sizes}
        return found

    def cell(self, key: str, cell: Cell) -> dict[str, Any]:
        """Predictions of one cell; raises for what cannot work."""
        base = self.base(cell)
        assignment = assign_base(base.config, cell, base.linears)
        data_key, data = self.tokenized(cell, base)
        trainable = self.trainable(cell, base, data)
        setting = self.setting(cell, base, data)
        predicted = self.predictions.of(cell, setting, evaluated=True)
        quantized = [x for x in base.linears if assignment[x.name] not in UNQUANTIZED]
        weights = sum(x.params for x in quantized)
        bits = sum(predicted_bits(assignment[x.name], cell.double_quant, cell.block_size) * x.params for x in quantized)
        return {
            "base": base.key,
            "data": data_key,
            "trainable_params": trainable,
            "head_params": (self.labels(cell, data) or 0) * int(base.config.hidden_size),
            "total_params": max(trainable, base.total_params)
            if cell.adapter.method == "full"
            else base.total_params + trainable,
            "predicted_bytes": predicted.peak_bytes,
            "predicted_reason": predicted.reason,
            "ledger": predicted.components,
            "phases": predicted.phases,
            "managed_bytes": predicted.managed_bytes,
            "geometry": vars(training_geometry(cell, setting.train)),
            "fit": self.predictions.fit(cell, setting, self.budget, grow=not self.weights) if self.budget else None,
            "effective_bits": bits / weights if weights else None,
            "compute_dtype": pick_compute_dtype(cell.compute_dtype, cell.default_precision, self.device),
            "storage": pick_storage(cell),
            "steps": steps_of(cell, len(data.train) if data else None),
        }

    def setting(self, cell: Cell, base: Base, data: Tokenized | None) -> Setting:
        """What the cell's forecast hangs on."""
        fixed = cell.alone or bool(cell.adapter.rank_pattern)  # no other rank is looked for
        most = None if fixed else min(min(s.d_in, s.width) for s in self.sizes_of(cell, base))
        vocab = len(self.tokenizer(base)) if base.add_tokens else None
        train, evaluation = (data.train, data.eval) if data else (None, None)
        seeds = tuple(self.job.get("seeds") or ())
        offsets = tuple(self.job.get("order_offsets") or (0,))
        return Setting(base.config, train, evaluation, self.labels(cell, data), vocab, most, seeds, offsets)

    def trainable(self, cell: Cell, base: Base, data: Tokenized | None) -> int:
        """Trainable parameters of one run, its classification head included."""
        labels = self.labels(cell, data)
        if cell.alone:
            model = meta_model(base.config, labels=labels)
            check_method(cell, model, base.linears, self.device)
            return count_trainable(cell, model, base.linears)
        head = (labels or 0) * int(base.config.hidden_size)
        return trainable_params(self.sizes_of(cell, base)) + head

    def labels(self, cell: Cell, data: Tokenized | None) -> int | None:
        """How many labels a cell that classifies has: of the data, else as the task says."""
        if not cell.task.classifies:
            return None
        try:
            return len(data.labels if data else labels_of(cell.task))
        except DataError as error:
            raise SpecError(
                f"name the labels, which count the head's parameters: {one_line(error)}", "task.labels"
            ) from None

    def sizes_of(self, cell: Cell, base: Base) -> dict[Site, Size]:
        """Where the cell's adapters go, of which rank and alpha each."""
        return site_sizes(cell.adapter, resolve_targets(base.linears, cell.adapter.targets))

    # -- sizing -------------------------------------------------------------------------------------------------------

    def sizes(self, cells: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """A cohort size for each group of cells that may share one: on a GPU as many as fit, on a CPU what is measured fastest."""
        torch.set_num_threads(int(self.job.get("threads") or 1))
        return {group["key"]: self.size(group, cells) for group in self.job.get("groups", [])}

    def size(self, group: dict[str, Any], cells: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """One group's size; a base that does not fit at all says so."""
        self.say("measure", group=group["key"])
        chosen = [self.cells[key] for key in group["cells"]]
        base = self.base(chosen[0])
        if chosen[0].alone:
            return {
                "size": 1,
                "ms_per_step": None,
                "candidates": [],
                "reason": f"{chosen[0].adapter.method} trains alone",
            }
        if self.budget and (self.device.type == "cuda" or not self.weights):
            datas = [self.data.get(cells[key]["data"]) for key in group["cells"]]
            settings = [self.setting(c, base, data) for c, data in zip(chosen, datas, strict=True)]
            return self.predictions.group(chosen, settings, self.budget, int(group["members"]))
        data = self.data[cells[group["cells"][0]]["data"]]
        labels = self.labels(chosen[0], data) or 0
        members = [
            member_of(key, c, base.linears, base.config, labels) for key, c in zip(group["cells"], chosen, strict=True)
        ]
        try:
            loaded = load_base(base.source, chosen[0], self.device, labels=data.labels)
            most = 1 if chosen[0].train.base_dropout else int(group["members"])
            return sizing.measure(
                loaded, members, [c.train for c in chosen], data.train, pad_token_id(self.tokenizer(base)), most
            )
        except torch.OutOfMemoryError:
            return {"size": 1, "ms_per_step": None, "candidates": [], "reason": "even one run does not fit in memory"}


def inspect(folder: StudyFolder, job: dict[str, Any], say: Say) -> dict[str, Any]:
    """Run the job; a failure that the user must mend says so."""
    try:
        return Inspection(folder, job, say).run()
    except LoracleError as error:
        return {"status": "failed", "reason": one_line(error), "usage": isinstance(error, SpecError)}
