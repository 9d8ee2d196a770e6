"""Optimizers for a whole cohort: every member its own learning rate, decay, betas and clipping.

``CohortAdamW`` is AdamW (Loshchilov & Hutter 2019) on ``[K, P]``: a dozen elementwise operations and one norm a step, no host
synchronisation, in ``torch.optim.AdamW``'s arithmetic, operation for operation. ``BitsAndBytesAdamW`` is bitsandbytes' paged and
8-bit AdamW, one parameter group a member.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from loracle.adapters.flat import FlatParameters
from loracle.base.errors import SpecError
from loracle.models.kernels import runs_on
from loracle.models.memory_labels import MANAGED, WITHOUT, counted_as
from loracle.spec.study import Train
from loracle.train.scaling import LossScale
from loracle.train.schedule import learning_rates


class CohortOptimizer:
    """What both kinds share: clipping, the freezing of members that are no longer finite, learning rates.

    ``captures``: whether a step asks nothing of the host, so that it can be part of a CUDA graph.
    """

    captures = False

    def __init__(self, flat: FlatParameters, trains: Sequence[Train], steps: int) -> None:
        self.flat = flat
        self.trains, self.steps = list(trains), steps
        self.rates = [learning_rates(t, steps) for t in trains]
        self.active = torch.ones(len(trains), 1, dtype=torch.bool, device=flat.data.device)  # finite so far
        self.stopped = torch.zeros_like(self.active)  # taken out by early stopping
        self.stepping = self.active.clone()  # whose parameters this step changes
        self.scaled = False
        self.current = 0  # the step in hand, and the same where the device reads it
        self.at = torch.zeros(1, dtype=torch.int64, device=flat.data.device)
        self.max_norm = self.column([t.max_grad_norm if t.max_grad_norm is not None else float("inf") for t in trains])

    def column(self, values: Sequence[float]) -> torch.Tensor:
        """One value a member, ``[K, 1]``, as the parameters' dtype."""
        return torch.tensor(values, dtype=torch.float64).to(self.flat.data.dtype).to(self.flat.data.device).unsqueeze(1)

    def begin(self, step: int) -> None:
        """The next ``step`` is number ``step`` (from 0)."""
        self.current = step
        self.at.fill_(step)

    @torch.no_grad()
    def step(self, losses: torch.Tensor, scale: LossScale) -> torch.Tensor:
        """One update from the flat gradient; returns the gradient norms ``[K]`` before clipping.

        A member whose loss (``losses: [K]``) or gradient is not finite is frozen from this step on: its parameters stay as
        they were. One whose gradient overflows under its loss scale skips the step.
        """
        grad = self.flat.grad
        self.scaled = scale.on
        scale.undo(grad)
        norms = torch.linalg.vector_norm(grad, dim=1, keepdim=True)
        skips = scale.update(losses, norms.squeeze(1)).unsqueeze(1)
        self.active &= skips | (torch.isfinite(norms) & torch.isfinite(losses).unsqueeze(1))
        self.stepping.copy_(self.active & ~self.stopped & ~skips)
        self.update((self.max_norm / (norms + 1e-6)).clamp_(max=1.0))
        return norms.squeeze(1)

    def use_loraplus(self, ratios: Sequence[float]) -> None:
        """LoRA+ (Hayou et al. 2024): member k's B learns at ``ratios[k]`` times the rate of its A."""
        if any(ratio != 1 for ratio in ratios):
            raise SpecError("LoRA+ needs train.optimizer: adamw", "adapter.loraplus_ratio")

    def update(self, factor: torch.Tensor) -> None:
        """Change the stepping members' parameters by the gradient times ``factor [K, 1]``, which clips it."""
        raise NotImplementedError

    def tensors(self) -> dict[str, torch.Tensor]:
        """All state, by name, to be saved; a restored optimizer copies into the same."""
        raise NotImplementedError


class CohortAdamW(CohortOptimizer):
    """AdamW over all members at once; all run ``steps`` optimizer steps."""

    captures = True

    def __init__(self, flat: FlatParameters, trains: Sequence[Train], steps: int) -> None:
        super().__init__(flat, trains, steps)
        self.exp_avg = torch.zeros_like(flat.data)
        self.exp_avg_sq = torch.zeros_like(flat.data)
        self.one_minus_beta1 = self.column([1 - t.beta1 for t in trains])
        self.beta2 = self.column([t.beta2 for t in trains])
        self.one_minus_beta2 = self.column([1 - t.beta2 for t in trains])
        self.epsilon = self.column([t.epsilon for t in trains])
        self.tables = self._device_tables([1.0] * len(trains))  # [steps, 3, K, 1]
        self.kernel = flat.data.dtype == torch.float32 and (
            flat.data.is_meta or (flat.data.is_cuda and runs_on(flat.data))
        )
        self.b_tables: torch.Tensor | None = None  # the same for B, where some member uses LoRA+
        self.is_b: torch.Tensor | None = None  # [P]

    def _device_tables(self, ratios: Sequence[float]) -> torch.Tensor:
        return _tables(self.trains, ratios, self.steps).to(self.flat.data.dtype).to(self.flat.data.device)

    def use_loraplus(self, ratios: Sequence[float]) -> None:
        if all(ratio == 1 for ratio in ratios):
            return
        self.b_tables = self._device_tables(ratios)
        sizes = [parameter[0].numel() for pair in self.flat.pairs for parameter in pair]
        which = torch.tensor([False, True] * len(self.flat.pairs) + [False])
        sizes.append(self.flat.data.shape[1] - sum(sizes))  # a classification head learns at the rate of A
        self.is_b = which.repeat_interleave(torch.tensor(sizes)).to(self.flat.data.device)

    def update(self, factor: torch.Tensor) -> None:
        """``torch.optim.AdamW``'s step; members that do not step keep their parameters and their moments."""
        grad, data = self.flat.grad, self.flat.data
        if self.kernel:
            self._update_in_one_kernel(factor)
            return
        grad.mul_(factor)
        decay, denominator, size = self.tables.index_select(0, self.at)[0]
        if self.b_tables is not None and self.is_b is not None:
            b_decay, _, b_size = self.b_tables.index_select(0, self.at)[0]
            decay = torch.where(self.is_b, b_decay, decay)  # [K, P]
            size = torch.where(self.is_b, b_size, size)
        if self.scaled:  # a moment never sees an overflow
            grad = torch.where(self.stepping, grad, 0.0)
        self.exp_avg.lerp_(grad, torch.where(self.stepping, self.one_minus_beta1, 0.0))
        fresh = torch.where(self.stepping, self.one_minus_beta2, 0.0)
        self.exp_avg_sq.mul_(torch.where(self.stepping, self.beta2, 1.0)).add_(grad * grad * fresh)
        root = (self.exp_avg_sq.sqrt() / denominator).add_(self.epsilon)
        data.copy_(torch.where(self.stepping, data * decay - size * (self.exp_avg / root), data))

    def _update_in_one_kernel(self, factor: torch.Tensor) -> None:
        if self.flat.data.is_meta:
            return
        from loracle.train.kernels.adamw import update

        columns = (self.one_minus_beta1, self.beta2, self.one_minus_beta2, self.epsilon)
        moments = (self.exp_avg, self.exp_avg_sq)
        update(
            self.flat.data, self.flat.grad, moments, factor, self.stepping, columns, self.tables, self.b_tables, self.is_b,
            self.at,
        )  # fmt: skip

    def tensors(self) -> dict[str, torch.Tensor]:
        return {
            "active": self.active,
            "stopped": self.stopped,
            "exp_avg": self.exp_avg,
            "exp_avg_sq": self.exp_avg_sq,
        }


class BitsAndBytesAdamW(CohortOptimizer):
    """bitsandbytes' AdamW (Dettmers et al. 2022, 8-bit Optimizers; paging: QLoRA, section 3), each member one parameter.

    It synchronises the device after each member by itself. On a CPU paging does not exist and is left out.
    """

    def __init__(self, flat: FlatParameters, trains: Sequence[Train], steps: int) -> None:
        super().__init__(flat, trains, steps)
        from bitsandbytes.optim import AdamW

        name = trains[0].optimizer
        self.rows = [nn.Parameter(flat.data[k]) for k in range(len(trains))]
        groups = [
            {"params": [row], "betas": (t.beta1, t.beta2), "eps": t.epsilon, "weight_decay": t.weight_decay}
            for row, t in zip(self.rows, trains, strict=True)
        ]
        paged = name.startswith("paged") and flat.data.device.type in ("cuda", "meta")
        self.inner: Any = AdamW(groups, lr=0.0, optim_bits=8 if name.endswith("8bit") else 32, is_paged=paged)
        if paged and flat.data.device.type == "meta":
            self.inner.get_state_buffer = _managed_shape
        self._initialize()

    def _initialize(self) -> None:
        """Make all state now, so that it can be restored before the first step."""
        self.inner.check_overrides()
        self.inner.to_gpu()
        self.inner.initialized = True
        for k, row in enumerate(self.rows):
            row.grad = self.flat.grad[k]
            self.inner.init_state(self.inner.param_groups[k], row, k, 0)

    def update(self, factor: torch.Tensor) -> None:
        """One step of every stepping member."""
        self.flat.grad.mul_(factor)
        if self.flat.data.device.type == "meta":  # the kernels work in place
            return
        for k, stepping in enumerate(self.stepping.squeeze(1).tolist()):
            self.inner.param_groups[k]["lr"] = self.rates[k][self.current]
            self.rows[k].grad = self.flat.grad[k] if stepping else None
        self.inner.step()

    def tensors(self) -> dict[str, torch.Tensor]:
        found = {"active": self.active, "stopped": self.stopped}
        for k, row in enumerate(self.rows):
            for name, value in self.inner.state[row].items():
                if isinstance(value, torch.Tensor):
                    found[f"{k}.{name}"] = value
        return found

    def resume(self, step: int) -> None:
        """bitsandbytes counts steps by itself: tell it where it is."""
        for row in self.rows:
            self.inner.state[row]["step"] = step


def _managed_shape(p: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What bitsandbytes' ``get_state_buffer`` gives a paged optimizer, as a shape: small states are not paged."""
    with counted_as(MANAGED) if p.numel() >= 100_000 else WITHOUT:
        return torch.zeros_like(p, dtype=dtype)


def make_optimizer(flat: FlatParameters, trains: Sequence[Train], steps: int) -> CohortOptimizer:
    """The optimizer that the cohort's members ask for (one kind a cohort)."""
    kind = CohortAdamW if trains[0].optimizer == "adamw" else BitsAndBytesAdamW
    return kind(flat, trains, steps)


def _tables(trains: Sequence[Train], ratios: Sequence[float], steps: int) -> torch.Tensor:
    """Float64 ``[steps, 3, K, 1]``: 1 - lr·decay, √(1 - β₂ᵗ), lr / (1 - β₁ᵗ), with lr times the member's ratio."""
    t = torch.arange(1, steps + 1, dtype=torch.float64)
    columns = []
    for train, ratio in zip(trains, ratios, strict=True):
        rate = torch.tensor(learning_rates(train, steps), dtype=torch.float64) * ratio
        columns.append(
            torch.stack(
                [1 - rate * train.weight_decay, (1 - train.beta2**t).sqrt(), rate / (1 - train.beta1**t)], dim=1
            )
        )
    return torch.stack(columns, dim=2).unsqueeze(-1)
