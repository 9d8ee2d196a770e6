"""The loop: a cohort from its first to its last optimizer step, resumable at any step.

Each member's loss is the mean over its own target tokens of the whole optimizer step; the total is the sum over members, so
no member's gradient knows of another. The inner step has no host synchronisation and no loop over members on the device.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loracle.adapters.batch import CohortBatch, Row, make_batch, pack, packed_needs, pinned
from loracle.adapters.trainee import Trainee
from loracle.models.memory_labels import counted_as, reached
from loracle.spec.study import Train
from loracle.store.files import finite, read_jsonl, write_text
from loracle.train.checkpoint import Checkpoint
from loracle.train.graphs import NO_ROOM, Graphs
from loracle.train.optimizer import BitsAndBytesAdamW, make_optimizer
from loracle.train.order import DataOrder
from loracle.train.patience import Patience
from loracle.train.scaling import LossScale
from loracle.train.shapes import STEPS_A_SHAPE, PackedShapes

WORTH_CAPTURING = 12  # steps
GRAPH_STEP = 64  # captured batches are padded to multiples of so many tokens
LOOKED_AT = 2000  # batches whose lengths are looked at before training
EXTRA = "trainee."  # in a checkpoint: the trainee's own state beside its parameters


@dataclass(frozen=True)
class FitSettings:
    """What all members share, and where each one's ``metrics.jsonl`` lies (``metrics``, one path a member)."""

    steps: int
    batch_size: int
    gradient_accumulation: int
    pad_id: int
    identity: str
    metrics: tuple[Path, ...] = ()
    eval_every: int | None = None
    best_checkpoint: bool = False
    early_stopping: int | None = None
    group_by_length: bool = False
    loss_scaling: bool = False
    checkpoint_seconds: float = 30.0
    compile: str = "auto"  # CUDA graphs: auto | on | off
    packing: bool = True  # on a GPU, where the trainee can

    @property
    def graphs(self) -> bool:
        """Whether CUDA graphs are wanted: a capture costs about what a few plain steps do."""
        return self.compile == "on" or (self.compile == "auto" and self.steps >= WORTH_CAPTURING)


Evaluate = Callable[[], Sequence[float]]
Progress = Callable[[dict[str, Any]], None]


class Fit:
    """State of one cohort's training. ``trains`` and ``order_seeds`` are the members' own; ``rows`` the training rows."""

    def __init__(
        self,
        cohort: Trainee,
        rows: Sequence[Row],
        trains: Sequence[Train],
        order_seeds: Sequence[int],
        settings: FitSettings,
    ) -> None:
        self.cohort, self.rows, self.settings = cohort, rows, settings
        self.device = cohort.flat.data.device
        members = cohort.size
        self.optimizer = make_optimizer(cohort.flat, trains, settings.steps)
        self.scale = LossScale(members, self.device, settings.loss_scaling)
        lengths = [len(row.input_ids) for row in rows] if settings.group_by_length else None
        self.graphs = Graphs(self.device, cohort.captures and settings.graphs)
        self.counts = torch.zeros(members, dtype=torch.int64, device=self.device)  # scored tokens of the step in hand
        self.total = torch.zeros(members, dtype=torch.float64, device=self.device)  # its losses
        self.orders = [DataOrder(seed, len(rows), lengths, settings.batch_size) for seed in order_seeds]
        self.done_steps = 0
        self.losses = torch.zeros(settings.steps, members, dtype=torch.float64, device=self.device)
        self.norms = torch.zeros_like(self.losses)
        self.tokens = torch.zeros(settings.steps, members, dtype=torch.int64)
        self.diverged_at = torch.full((members,), -1, dtype=torch.int64, device=self.device)
        self.evaluations: list[tuple[int, list[float]]] = []
        self.best_loss = torch.full((members, 1), float("inf"), dtype=torch.float64)
        with counted_as("rest"):
            self.best_data = torch.zeros_like(cohort.flat.data) if settings.best_checkpoint else None
        self.best_step = [0] * members
        self.patience = Patience(members, settings.early_stopping)
        self.elapsed_s = 0.0
        uneven = len({len(row.input_ids) for row in rows}) > 1  # rows of one length need no packing
        self.shapes = self._shapes() if settings.packing and cohort.packs and uneven else None
        self._flushed = 0
        self._flushed_evaluations = 0

    # -- one step -----------------------------------------------------------------------------------------------------

    def picked(self, step: int) -> list[list[int]]:
        """Each member's row numbers in optimizer step ``step`` (from 0)."""
        count = self.settings.batch_size * self.settings.gradient_accumulation
        return [order.take(step * count, count) for order in self.orders]

    def batches(self, step: int) -> list[CohortBatch]:
        """The micro-batches of optimizer step ``step`` (from 0)."""
        s = self.settings
        picked = [[self.rows[i] for i in numbers] for numbers in self.picked(step)]
        cut = [slice(m * s.batch_size, (m + 1) * s.batch_size) for m in range(s.gradient_accumulation)]
        return [self._batch([rows[part] for rows in picked], part.start) for part in cut]

    def _batch(self, members: list[list[Row]], first_row: int) -> CohortBatch:
        if self.shapes is None:
            return make_batch(members, self.settings.pad_id, GRAPH_STEP if self.graphs.on else 1)
        needs = np.array([packed_needs(rows) for rows in members]).max(0)
        return pack(members, self.settings.pad_id, self.shapes.holding(*needs.tolist()), first_row)

    def _shapes(self) -> PackedShapes:
        """Shapes for the batches to come, from at most ``LOOKED_AT`` of them."""
        s = self.settings
        each = np.array([packed_needs([row]) for row in self.rows])  # [rows, 3]
        steps = np.unique(np.linspace(0, s.steps - 1, min(s.steps, LOOKED_AT)).astype(int))
        rows = np.array([self.picked(int(step)) for step in steps])  # [steps, K, accumulation · b]
        here = each[rows.reshape(len(steps), len(self.orders), s.gradient_accumulation, s.batch_size)]
        sums, longest = here[..., :2].sum(3), here[..., 2:].max(3)
        needs = np.concatenate([sums, longest], axis=-1).max(1).reshape(-1, 3)  # of the member that needs most
        return PackedShapes(needs, s.steps if self.graphs.on else s.steps * STEPS_A_SHAPE)

    def step(self, step: int, batches: Sequence[CohortBatch]) -> None:
        """Forward, backward and update of optimizer step ``step``; nothing is read back to the host."""
        self.cohort.begin_step(step)
        with self.graphs.side():
            if not self._beside_captured(step, batches):
                self._gradients(step, batches)
            if self.optimizer.captures:
                self.graphs.run("update", self._update)
        if (
            not self.optimizer.captures
        ):  # bitsandbytes launches its optimizers on the default stream, whatever the current one
            self._update()
        self.cohort.end_step(step)
        reached("idle")

    def _beside_captured(self, step: int, batches: Sequence[CohortBatch]) -> bool:
        """The gradients, where steps are captured; False where there are none, or memory ended beside them. Then they are given up and
        the step begins anew: it sets all that it adds to."""
        if not self.graphs.captured:
            return False
        try:
            self._gradients(step, batches)
        except torch.OutOfMemoryError:
            pass  # handled outside, when what the step held is gone
        else:
            return True
        self.graphs.give_up(NO_ROOM)
        return False

    def _gradients(self, step: int, batches: Sequence[CohortBatch]) -> None:
        """Losses and gradients of all micro-batches."""
        self.optimizer.begin(step)
        self.tokens[step] = torch.stack([batch.tokens for batch in batches]).sum(0)
        self.counts.copy_(pinned(self.tokens[step]), non_blocking=True)
        for number, batch in enumerate(batches):
            first_row = number * self.settings.batch_size
            self.cohort.state.first_row = first_row
            key = (number == 0, None if self.shapes else first_row, *batch.key)
            self.graphs.run(key, partial(self._micro, self._placed(batch, key), number == 0))
        reached("step")

    def _placed(self, batch: CohortBatch, key: Hashable) -> Callable[[], CohortBatch]:
        """The batch on the device, read where a captured step reads it."""
        if not self.graphs.on:
            there = batch.to(self.device)
            return lambda: there
        here = self.graphs.placed(key, batch.as_integers(), self.device)
        return lambda: batch.unpack(here)

    def _micro(self, placed: Callable[[], CohortBatch], first: bool) -> None:
        """Gradients of one micro-batch, added to those before it."""
        reached("forward")
        if first:
            self.cohort.flat.zero_grad()
            self.total.zero_()
        weights = self.counts.clamp(min=1).double().reciprocal().to(self.cohort.flat.data.dtype)
        losses = self.cohort.losses(placed()).sum(1) * weights
        reached("backward")
        # On this thread: autograd's own would have a cuBLAS workspace of its own.
        with torch.autograd.set_multithreading_enabled(False):
            (self.scale.of(losses) + self.cohort.penalty()).sum().backward()  # type: ignore[no-untyped-call]
        self.total += losses.detach()

    def _update(self) -> None:
        """The optimizer's step, and what is kept of it."""
        at = self.optimizer.at
        norms = self.optimizer.step(self.total, self.scale)
        self.norms.index_copy_(0, at, norms.to(self.norms.dtype).unsqueeze(0))
        self.losses.index_copy_(0, at, self.total.unsqueeze(0))
        frozen = ~self.optimizer.active.squeeze(1) & (self.diverged_at < 0)
        self.diverged_at.copy_(torch.where(frozen, at + 1, self.diverged_at))

    # -- the whole of it ----------------------------------------------------------------------------------------------

    def run(
        self, evaluate: Evaluate, save: Callable[[Checkpoint], None], progress: Progress, stop: Callable[[], bool]
    ) -> bool:
        """All steps that are left. False when ``stop`` asked for an end: a checkpoint has been saved then."""
        s = self.settings
        last_save = last_word = begun = time.monotonic()
        before = self.elapsed_s
        if self.done_steps == 0 and s.eval_every and not self.evaluations:
            self._evaluate(evaluate)
        while self.done_steps < s.steps and not self.patience.all_stopped:
            step = self.done_steps
            self.step(step, self.batches(step))
            self.done_steps = step + 1
            if s.eval_every and (self.done_steps % s.eval_every == 0 or self.done_steps == s.steps):
                self._evaluate(evaluate)
            now = time.monotonic()
            self.elapsed_s = before + now - begun
            if now - last_word >= 1.0 or self.done_steps == s.steps:
                loss = float(self.losses[step].nanmean())
                progress({"phase": "train", "step": self.done_steps, "steps": s.steps, "loss": loss})
                last_word = now
            ended = self.done_steps == s.steps or self.patience.all_stopped
            if stop() or now - last_save >= s.checkpoint_seconds or ended:
                self.flush()
                save(self.checkpoint())
                last_save = time.monotonic()
                if stop() and not ended:
                    return False
        return True

    def _evaluate(self, evaluate: Evaluate) -> None:
        values = list(evaluate())
        self.evaluations.append((self.done_steps, values))
        if self.patience.limit is not None:
            gone = (self.diverged_at >= 0).tolist()
            stopped = self.patience.after(self.done_steps, values, gone)
            self.optimizer.stopped |= torch.tensor(stopped, device=self.device).unsqueeze(1)
        if self.best_data is None:
            return
        losses = torch.tensor(values, dtype=torch.float64).unsqueeze(1)
        better = losses < self.best_loss
        self.best_loss = torch.where(better, losses, self.best_loss)
        self.best_data.copy_(torch.where(better.to(self.device), self.cohort.flat.data, self.best_data))
        self.best_step = [
            self.done_steps if b else old for b, old in zip(better.squeeze(1).tolist(), self.best_step, strict=True)
        ]

    def taken(self, k: int) -> int:
        """Optimizer steps that member ``k`` has taken: fewer than the cohort's where it was stopped early."""
        stopped = self.patience.stopped_at[k]
        return self.done_steps if stopped is None else stopped

    def tokens_seen(self, k: int) -> int:
        """Scored tokens that member ``k`` was trained on."""
        return int(self.tokens[: self.taken(k), k].sum())

    def finish(self) -> None:
        """Put the adapters that count in place, the best ones where that was asked for; captured steps are done with."""
        self.graphs.release()
        if self.best_data is not None:
            self.cohort.flat.data.copy_(self.best_data)

    # -- metrics and checkpoints --------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Append what is new to each member's ``metrics.jsonl``."""
        new = range(self._flushed, self.done_steps)
        losses, norms, tokens = self.losses.tolist(), self.norms.tolist(), self.tokens.tolist()
        evaluations = self.evaluations[self._flushed_evaluations :]
        for k, path in enumerate(self.settings.metrics):
            lines = [
                (
                    s + 1,
                    0,
                    {
                        "step": s + 1,
                        "loss": losses[s][k],
                        "lr": self.optimizer.rates[k][s],
                        "grad_norm": norms[s][k],
                        "tokens": tokens[s][k],
                    },
                )
                for s in new
                if s < self.taken(k)
            ] + [
                (step, 1, {"step": step, "eval_loss": values[k]})
                for step, values in evaluations
                if step <= self.taken(k)
            ]
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a", encoding="utf-8") as handle:
                for _, _, line in sorted(lines, key=lambda item: item[:2]):
                    handle.write(json.dumps(finite(line)) + "\n")
        self._flushed, self._flushed_evaluations = self.done_steps, len(self.evaluations)

    def checkpoint(self) -> Checkpoint:
        """All that the rest of the training depends on."""
        tensors = {
            "data": self.cohort.flat.data,
            "losses": self.losses,
            "norms": self.norms,
            "tokens": self.tokens,
            "diverged_at": self.diverged_at,
            "best_loss": self.best_loss,
        }
        tensors |= {f"scale.{name}": value for name, value in self.scale.tensors().items()}
        tensors |= {f"optimizer.{name}": value for name, value in self.optimizer.tensors().items()}
        tensors |= {f"{EXTRA}{name}": value for name, value in self.cohort.extra_state().items()}
        if self.best_data is not None:
            tensors["best_data"] = self.best_data
        state = {
            "identity": self.settings.identity,
            "evaluations": self.evaluations,
            "best_step": self.best_step,
            "patience": self.patience.as_state(),
            "elapsed_s": self.elapsed_s,
        }
        return Checkpoint(self.done_steps, tensors, state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from ``checkpoint``; metrics are cut back to it."""
        targets = self.checkpoint().tensors
        for name, tensor in checkpoint.tensors.items():
            if not name.startswith(EXTRA):
                targets[name].copy_(tensor)
        extra = {name.removeprefix(EXTRA): t for name, t in checkpoint.tensors.items() if name.startswith(EXTRA)}
        self.cohort.restore_extra(extra)
        if isinstance(self.optimizer, BitsAndBytesAdamW):
            self.optimizer.resume(checkpoint.step)
        self.done_steps = checkpoint.step
        self.evaluations = [(int(step), list(values)) for step, values in checkpoint.state["evaluations"]]
        self.best_step = list(checkpoint.state["best_step"])
        self.patience.restore(checkpoint.state["patience"])
        self.elapsed_s = float(checkpoint.state["elapsed_s"])
        self._flushed, self._flushed_evaluations = self.done_steps, len(self.evaluations)
        for path in self.settings.metrics:
            kept = [line for line in read_jsonl(path) if line["step"] <= checkpoint.step]
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def start_clean(self) -> None:
        """A training from step 0 begins with empty metrics."""
        for path in self.settings.metrics:
            write_text(path, "")
