"""What the loop trains: a cohort of LoRA runs over one frozen base, or one run that PEFT or full fine-tuning trains alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from loracle.adapters.batch import CohortBatch
from loracle.adapters.flat import FlatParameters


class Named(Protocol):
    """One run of a trainee."""

    @property
    def name(self) -> str: ...
    @property
    def trainable_params(self) -> int: ...


class StepState(Protocol):
    """``first_row``: the member's first row of this micro-batch within the optimizer step (dropout hangs on it)."""

    first_row: int


class Trainee(Protocol):
    """``flat`` holds every trained parameter, ``[K, P]``, and its gradient; ``logits`` is differentiable in them."""

    model: Any
    flat: FlatParameters
    keeps_base: bool
    """Whether the untrained base can still answer."""
    captures: bool
    """Whether its forward and backward passes may be captured as a CUDA graph."""
    packs: bool
    """Whether its batches may be packed."""

    @property
    def state(self) -> StepState: ...
    @property
    def members(self) -> Sequence[Named]: ...
    @property
    def size(self) -> int: ...

    def begin_step(self, step: int) -> None:
        """Before the forward passes of optimizer step ``step`` (from 0)."""
        ...

    def end_step(self, step: int) -> None:
        """After the update of optimizer step ``step``."""
        ...

    def extra_state(self) -> dict[str, torch.Tensor]:
        """What the next steps depend on beside ``flat``, for a checkpoint."""
        ...

    def restore_extra(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """What ``extra_state`` gave."""
        ...

    def penalty(self) -> torch.Tensor | float:
        """What is added to the loss of a micro-batch that is no loss of data (AdaLoRA's orthogonality); not recorded."""
        ...

    def losses(self, batch: CohortBatch) -> torch.Tensor:
        """Cross-entropy of every scored position, in nats: ``[K, N]``, 0 where a member has fewer; differentiable."""
        ...

    def logits(self, batch: CohortBatch) -> torch.Tensor:
        """``[K·N, V]`` of the batch's scored positions; for classification ``[K·N, C]``."""
        ...

    def answering(self, base: bool = False, alone: int | None = None) -> AbstractContextManager[int]:
        """Within the block the base, or member ``alone``, answers a batch of one member. Gives how many answer."""
        ...
