"""Batches of a cohort: ``K`` members' rows, and where their losses are taken.

Rows lie side by side, right-padded (``make_batch``), or on a GPU one behind another without padding between them (``pack``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import torch

from loracle.adapters.dropout import codes_of


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
    ``positions [K, N]`` (index into the flattened tokens of the position *before* a scored token; of a row's last token
    for classification), ``targets [K, N]`` (that token, or the class), ``valid [K, N]`` (1 or 0), ``row [K, N]`` (row within
    the member's b). ``tokens [K]`` counts scored tokens, or classified rows.

    A packed batch is ``[K, M]``, each member's rows one behind another, with ``position_ids [K, M]``, ``bounds [S + 1]`` (where
    rows begin and the last one ends in the flattened tokens), ``codes [K, M]`` (dropout's numbers of tokens) and ``longest``, the
    most tokens that a row may have.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    valid: torch.Tensor
    row: torch.Tensor
    tokens: torch.Tensor
    position_ids: torch.Tensor | None = None
    bounds: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    longest: int = 0

    def to(self, device: torch.device) -> CohortBatch:
        """The same batch on a device."""
        if device.type == "cpu":
            return self
        there = self.as_integers().to(device, non_blocking=True)
        return self.unpack(there)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for batches of one shape."""
        return (*(tuple(part.shape) for _, part in self._parts()), self.longest)

    def _parts(self) -> list[tuple[str, torch.Tensor]]:
        found = ((field.name, getattr(self, field.name)) for field in fields(self))
        return [(name, part) for name, part in found if isinstance(part, torch.Tensor)]

    def as_integers(self) -> torch.Tensor:
        """Everything in one int64 tensor, in pinned memory where there is a GPU: one copy takes it there."""
        return pinned(torch.cat([part.reshape(-1).to(torch.int64) for _, part in self._parts()]))

    def unpack(self, flat: torch.Tensor) -> CohortBatch:
        """A batch of this one's shape from what ``as_integers`` gave, wherever that lies now."""
        parts = {}
        offset = 0
        for name, part in self._parts():
            here = flat[offset : offset + part.numel()].view(part.shape)
            parts[name] = here.to(part.dtype) if part.dtype != torch.int64 else here
            offset += part.numel()
        return replace(self, **parts)  # type: ignore[arg-type]


def pinned(values: torch.Tensor) -> torch.Tensor:
    """``values`` in memory that a GPU can read by itself, where there is one."""
    return values.pin_memory() if torch.cuda.is_available() and not values.is_meta else values


def scored(row: Row) -> tuple[np.ndarray, np.ndarray]:
    """(positions, targets) of a row: each ``t`` whose next token is scored, and that token; or the last token and the class."""
    if row.label_id is not None:
        return np.array([len(row.input_ids) - 1]), np.array([row.label_id])
    labels = np.asarray(row.labels, dtype=np.int64)
    at = np.flatnonzero(labels[1:] != -100)
    return at, labels[at + 1]


def make_batch(members: Sequence[Sequence[Row]], pad_id: int, multiple: int = 1) -> CohortBatch:
    """A batch from each member's rows (all members the same number b); T is padded up to ``multiple``, and above 1 the room for
    scored positions grows in steps too, so that few shapes occur."""
    rows_each = len(members[0])
    length = max(len(row.input_ids) for rows in members for row in rows)
    length = -(-length // multiple) * multiple
    ids = np.full((len(members) * rows_each, length), pad_id, dtype=np.int64)
    starts = np.arange(ids.size, step=length).reshape(len(members), rows_each)
    for flat, row in enumerate(row for rows in members for row in rows):
        ids[flat, : len(row.input_ids)] = row.input_ids
    most = max(sum(scored(row)[0].size for row in rows) for rows in members) if multiple > 1 else 1
    return CohortBatch(torch.from_numpy(ids), *_scored_parts(members, starts, 1 << (max(1, most) - 1).bit_length()))


_Scored = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _scored_parts(members: Sequence[Sequence[Row]], starts: np.ndarray, least: int = 1) -> _Scored:
    """(positions, targets, valid, row, tokens), with room for ``least`` scored positions a member; ``starts [K, b]``: where each
    row begins in the flattened tokens."""
    joined = []
    for rows, begins in zip(members, starts, strict=True):
        here = [np.empty((3, 0), dtype=np.int64)]
        for b, row in enumerate(rows):
            at, targets = scored(row)
            here.append(np.stack([begins[b] + at, targets, np.full_like(at, b)]))
        joined.append(np.concatenate(here, axis=1))
    count = max(least, 1, *(part.shape[1] for part in joined))
    packed = np.zeros((4, len(members), count), dtype=np.int64)
    for k, part in enumerate(joined):
        n = part.shape[1]
        packed[0, k] = starts[k, 0]  # padding points at the member's own first position
        packed[:3, k, :n] = part
        packed[3, k, :n] = 1
    positions, wanted, row_of, valid = (torch.from_numpy(p) for p in packed)
    return positions, wanted, valid.float(), row_of, valid.sum(1)


@dataclass(frozen=True)
class PackedShape:
    """Room of a packed batch: ``tokens`` M and ``scored`` N a member, ``longest`` row."""

    tokens: int
    scored: int
    longest: int


def packed_needs(rows: Sequence[Row]) -> tuple[int, int, int]:
    """(tokens, scored positions, longest row) of one member's rows."""
    lengths = [len(row.input_ids) for row in rows]
    return sum(lengths), sum(scored(row)[0].size for row in rows), max(lengths)


def pack(members: Sequence[Sequence[Row]], pad_id: int, shape: PackedShape, first_row: int = 0) -> CohortBatch:
    """Each member's rows one behind another in ``shape``. What is left over is filled with rows of padding, none longer than
    ``longest``, so that batches of one shape have equally many rows; ``first_row`` numbers rows through a step's micro-batches."""
    k, rows_each, room = len(members), len(members[0]), shape.tokens
    ids = np.full((k, room), pad_id, dtype=np.int64)
    places = np.zeros((k, room), dtype=np.int64)
    numbers = np.zeros((k, room), dtype=np.int64)
    starts = np.zeros((k, rows_each), dtype=np.int64)
    fill = -(-room // shape.longest)
    bounds = np.zeros((k, rows_each + fill), dtype=np.int64)
    for m, rows in enumerate(members):
        end = 0
        for b, row in enumerate(rows):
            start, end = end, end + len(row.input_ids)
            ids[m, start:end] = row.input_ids
            places[m, start:end] = np.arange(end - start)
            numbers[m, start:end] = first_row + b
            starts[m, b], bounds[m, b] = m * room + start, m * room + end
        ends = np.minimum(end + shape.longest * np.arange(1, fill + 1), room)
        bounds[m, rows_each:] = m * room + ends
        places[m, end:] = np.arange(room - end) % shape.longest
        numbers[m, end:] = first_row + rows_each
    return CohortBatch(
        torch.from_numpy(ids),
        *_scored_parts(members, starts, shape.scored),
        position_ids=torch.from_numpy(places),
        bounds=torch.from_numpy(np.concatenate([[0], bounds.reshape(-1)]).astype(np.int32)),
        codes=torch.from_numpy(codes_of(numbers, places)),
        longest=shape.longest,
    )
