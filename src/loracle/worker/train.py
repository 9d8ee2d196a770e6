"""The train job: load → quantize → attach → fit → save → evaluate → reload → record, for one cohort."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loracle.adapters.alone import Alone, attach_alone
from loracle.adapters.cohort import Cohort, attach, member_of
from loracle.adapters.peft_files import save_adapter
from loracle.base.errors import StoreError
from loracle.base.log import logger
from loracle.evaluate.loss import item_losses
from loracle.evaluate.run import Evaluation, evaluate
from loracle.models.dropout import set_base_dropout
from loracle.models.load import LoadedBase, checkpoint_activations, device_name, load_base, pick_device
from loracle.models.precision import TORCH_DTYPES
from loracle.models.source import find, load_tokenizer
from loracle.spec.factors import cell_from_config
from loracle.spec.study import Cell
from loracle.store.files import digest, write_json
from loracle.store.layout import StudyFolder
from loracle.tasks import cache
from loracle.tasks.collate import pad_token_id
from loracle.tasks.rows import Tokenized
from loracle.train import checkpoint
from loracle.train.fit import Fit, FitSettings
from loracle.worker.along import keep
from loracle.worker.energy import Energy, Meter
from loracle.worker.records import write_run
from loracle.worker.tracking import Trackers


@dataclass(frozen=True)
class MemberJob:
    """One run of the cohort, as its job names it."""

    run: str
    cell_id: str
    label: str
    role: str
    seed: int
    init_seed: int
    order_seed: int
    config: dict[str, Any]
    cell: Cell

    @classmethod
    def read(cls, entry: dict[str, Any]) -> MemberJob:
        """From one entry of ``members``; the base's extra facts stay in ``config``."""
        config = entry["config"]
        cell = cell_from_config(config)
        return cls(
            entry["run"],
            entry["cell"],
            entry["label"],
            entry["role"],
            entry["seed"],
            entry["init_seed"],
            entry["order_seed"],
            config,
            cell,
        )


class TrainJob:
    """One cohort from its job file to its runs' records. ``run`` is the main path."""

    def __init__(
        self, folder: StudyFolder, place: Path, job: dict[str, Any], say: Callable[..., None], stop: Any
    ) -> None:
        self.folder, self.place, self.job, self.say, self.stop = folder, place, job, say, stop
        self.members = [MemberJob.read(entry) for entry in job["members"]]
        self.cell = self.members[0].cell
        self.notes: list[str] = []
        self.peak: int | None = None
        self.reserved: int | None = None
        self.energy = Energy(None, None, "the training was not finished")
        self.trackers = Trackers(job.get("track", ()), job.get("study", folder.root.name), folder, self.members)

    def run(self) -> dict[str, Any]:
        """Train, evaluate and record every member; an interrupted cohort can be taken up again."""
        with self.trackers:
            return self.work()

    def work(self) -> dict[str, Any]:
        """The cohort, top to bottom."""
        self.say("load", base=self.cell.base.model)
        device = pick_device(self.job.get("device", "auto"))
        source = find(self.cell.base.model, self.cell.base.revision)
        tokenizer = load_tokenizer(source, self.cell.base.add_tokens)
        data = self.data()
        loaded = load_base(source, self.cell, device, labels=data.labels, vocab=len(tokenizer))
        if self.cell.train.gradient_checkpointing:
            checkpoint_activations(loaded.model)
        cohort = self.attach(loaded, data)
        fit = self.fit(loaded, cohort, data, pad_token_id(tokenizer))
        self.trackers.feed()
        meter, resumed = Meter(device), fit.done_steps > 0
        if not fit.run(lambda: self.curve_point(loaded, cohort, data, fit), self.save, self.progress, self.stop):
            return {"status": "interrupted", "reason": f"stopped after step {fit.done_steps}", "step": fit.done_steps}
        self.stop.now()
        if fit.graphs.reason:
            self.notes.append(fit.graphs.reason)
        if torch.cuda.is_available():  # of training alone, and of this process
            self.peak, self.reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        fit.finish()
        self.energy = meter.stop(resumed)
        hashes = self.save_adapters(loaded, cohort, fit.settings.pad_id)
        evaluation = evaluate(loaded, cohort, self.cell, data, tokenizer, self.say)
        return self.record(loaded, cohort, fit, data, evaluation, hashes)

    # -- in order of use ----------------------------------------------------------------------------------------------

    def data(self) -> Tokenized:
        """The tokenized rows that the inspect job left."""
        found = cache.load(self.folder.root / "data" / self.job["data"])
        if found is None:
            raise StoreError(
                f"data/{self.job['data']} is missing or damaged: run the study again with a new folder, or delete plan.json"
            )
        return found

    def attach(self, loaded: LoadedBase, data: Tokenized) -> Cohort | Alone:
        """Every member's adapter on the base, or the one run that shares it with nobody."""
        if self.cell.alone:
            [only] = self.members
            return attach_alone(only.run, self.cell, loaded, only.init_seed, only.order_seed)
        config, labels = loaded.model.config, len(data.labels)
        members = [
            member_of(m.run, m.cell, loaded.linears, config, labels, m.init_seed, m.order_seed) for m in self.members
        ]
        return attach(loaded.model, members, TORCH_DTYPES.get(self.cell.adapter.dtype, torch.float32), loaded.device)

    def fit(self, loaded: LoadedBase, cohort: Cohort | Alone, data: Tokenized, pad_id: int) -> Fit:
        """The training, from the newest usable checkpoint or from the start."""
        train = self.cell.train
        if train.steps is None:
            raise StoreError("the job's train.steps is not concrete")
        identity = digest([self.job["id"], [m.run for m in self.members], self.job.get("threads")])
        settings = FitSettings(
            train.steps,
            train.batch_size,
            train.gradient_accumulation,
            pad_id,
            identity,
            metrics=tuple(self.folder.run(m.run) / "metrics.jsonl" for m in self.members),
            eval_every=train.eval_every,
            best_checkpoint=train.best_checkpoint,
            early_stopping=train.early_stopping,
            group_by_length=train.group_by_length,
            loss_scaling=loaded.compute_dtype == torch.float16,
            checkpoint_seconds=float(self.job.get("checkpoint_seconds", 30.0)),
            compile=self.job.get("compile", "auto"),
            packing=self.job.get("packing", "auto") == "auto",
        )
        fit = Fit(
            cohort,
            data.train,
            [m.cell.train for m in self.members],
            [m.order_seed for m in self.members],
            settings,
        )
        fit.optimizer.use_loraplus([m.cell.adapter.loraplus_ratio for m in self.members])
        found, notes = checkpoint.newest(self.place, identity)
        self.notes += notes
        if found is None:
            fit.start_clean()
        else:
            fit.restore(found)
            logger.info("going on from step %d", found.step)
        return fit

    def save(self, state: checkpoint.Checkpoint) -> None:
        """One checkpoint of the cohort."""
        checkpoint.save(self.place, state)
        self.trackers.feed()

    def progress(self, facts: dict[str, Any]) -> None:
        """Pass the loop's news on, with the peak memory."""
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
        self.say(facts.pop("phase"), **facts, peak_bytes=peak)

    def curve_point(self, loaded: LoadedBase, cohort: Cohort | Alone, data: Tokenized, fit: Fit) -> list[float]:
        """Each member's evaluation loss now, in the storage it trains in; where asked its adapter is kept."""
        if self.job.get("keep_adapters") and fit.done_steps and isinstance(cohort, Cohort):
            keep(self.folder, [m.run for m in self.members], loaded, cohort, fit.done_steps)
        if self.cell.train.base_dropout:
            set_base_dropout(loaded.model, on=False)
        values = item_losses(cohort, data.eval, fit.settings.pad_id, loaded.device).mean.tolist()
        if self.cell.train.base_dropout:
            set_base_dropout(loaded.model, on=True)
        return list(values)

    def save_adapters(self, loaded: LoadedBase, cohort: Cohort | Alone, pad_id: int) -> list[str]:
        """Every run's adapter folder (a classifier's labels and pad token in its ``config.json``); the SHA-256 of each weights file."""
        hashes = self.save_weights(loaded, cohort)
        if self.cell.task.classifies:  # after the weights: full fine-tuning writes a config of its own
            config = loaded.model.config.to_dict() | {"pad_token_id": pad_id}
            for m in self.members:
                write_json(self.folder.run(m.run) / "adapter" / "config.json", config)
        return hashes

    def save_weights(self, loaded: LoadedBase, cohort: Cohort | Alone) -> list[str]:
        """The adapters' own files; the SHA-256 of each weights file."""
        base, revision = loaded.source.resolved, loaded.source.revision
        if isinstance(cohort, Alone):
            return [cohort.save(self.folder.run(self.members[0].run) / "adapter", base, revision)]
        return [
            save_adapter(
                self.folder.run(m.run) / "adapter",
                cohort.adapter(k),
                cohort.members[k],
                loaded.linears,
                base=base,
                revision=revision,
                head=cohort.head(k),
            )
            for k, m in enumerate(self.members)
        ]

    def record(
        self,
        loaded: LoadedBase,
        cohort: Cohort | Alone,
        fit: Fit,
        data: Tokenized,
        evaluation: Evaluation,
        hashes: Sequence[str],
    ) -> dict[str, Any]:
        """Check every reload and write every run's record; then the checkpoints may go."""
        started = time.monotonic()
        reloads = evaluation.reload_checks(
            [self.folder.run(m.run) / "adapter" for m in self.members], self.job.get("reload_items"), self.say
        )
        statuses = {
            m.run: write_run(self, m, k, loaded, cohort, fit, data, evaluation, hashes[k], reloads[k])
            for k, m in enumerate(self.members)
        }
        self.trackers.finish()
        checkpoint.clear(self.place)
        return {
            "status": "done",
            "reason": None,
            "runs": statuses,
            "wall_s": fit.elapsed_s,
            "reload_s": time.monotonic() - started,
            "evaluate_s": evaluation.seconds,
            "peak_allocated_bytes": self.peak,
            "peak_reserved_bytes": self.reserved,
            "device": device_name(loaded.device),
            "notes": self.notes,
        }
