"""Batches of a cohort: ``K`` members' rows side by side, and where their losses are taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch


class Row(Protocol):
    """A tokenized row: ids and unshifted labels (−100 = not scored), equally long; ``label_id``: the class, for classification."""

    @property
    def input_ids(self) -> Sequence[int]: ...
    @property
    def labels(self) -> Sequence[int]: ...
    @property
    def label_id(self) -> int | None: ...


@dataclass(frozen=True)
class CohortBatch:
    """``input_ids [K·b, T]``, right-padded. Scored positions of each member, padded to the longest member's count N:
    ``positions [K, N]`` (index into the flattened ``[K·b·T]`` of the position *before* a scored token; of a row's last token
    for classification), ``targets [K, N]`` (that token, or the class), ``valid [K, N]`` (1 or 0), ``row [K, N]`` (row within
    the member's b). ``tokens [K]`` counts scored tokens, or classified rows."""

    input_ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    valid: torch.Tensor
    row: torch.Tensor
    tokens: torch.Tensor

    def to(self, device: torch.device) -> CohortBatch:
        """The same batch on a device."""
        if device.type == "cpu":
            return self
        parts = (self.input_ids, self.positions, self.targets, self.valid, self.row, self.tokens)
        pinned = (part.pin_memory() if device.type == "cuda" else part for part in parts)
        return CohortBatch(*(part.to(device, non_blocking=True) for part in pinned))


def scored(row: Row) -> tuple[np.ndarray, np.ndarray]:
    """(positions, targets) of a row: each ``t`` whose next token is scored, and that token; or the last token and the class."""
    if row.label_id is not None:
        return np.array([len(row.input_ids) - 1]), np.array([row.label_id])
    labels = np.asarray(row.labels, dtype=np.int64)
    at = np.flatnonzero(labels[1:] != -100)
    return at, labels[at + 1]


def make_batch(members: Sequence[Sequence[Row]], pad_id: int, multiple: int = 1) -> CohortBatch:
    """A batch from each member's rows (all members the same number b); T is padded up to ``multiple``."""
    rows_each = len(members[0])
    length = max(len(row.input_ids) for rows in members for row in rows)
    length = -(-length // multiple) * multiple
    ids = np.full((len(members) * rows_each, length), pad_id, dtype=np.int64)
    places: list[list[np.ndarray]] = []
    for k, rows in enumerate(members):
        here = [np.empty((3, 0), dtype=np.int64)]
        for b, row in enumerate(rows):
            flat = k * rows_each + b
            ids[flat, : len(row.input_ids)] = row.input_ids
            at, targets_here = scored(row)
            here.append(np.stack([flat * length + at, targets_here, np.full_like(at, b)]))
        places.append(here)
    joined = [np.concatenate(here, axis=1) for here in places]
    count = max(1, max(part.shape[1] for part in joined))
    packed = np.zeros((4, len(members), count), dtype=np.int64)
    for k, part in enumerate(joined):
        n = part.shape[1]
        packed[0, k] = k * rows_each * length  # padding points at the member's own first position
        packed[:3, k, :n] = part
        packed[3, k, :n] = 1
    positions, targets, row_of, valid = (torch.from_numpy(p) for p in packed)
    return CohortBatch(torch.from_numpy(ids), positions, targets, valid.float(), row_of, valid.sum(1))
