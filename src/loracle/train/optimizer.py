"""AdamW (Loshchilov & Hutter 2019) for a whole cohort: every member its own learning rate, decay, betas and clipping.

State is ``[K, P]`` like the parameters; one step is a dozen elementwise operations and one norm, with no host
synchronisation. The arithmetic is ``torch.optim.AdamW``'s, operation for operation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from loracle.adapters.flat import FlatParameters
from loracle.spec.study import Train
from loracle.train.schedule import learning_rates


class CohortAdamW:
    """One optimizer over all members. ``trains[k]`` are member k's settings; all run ``steps`` optimizer steps."""

    def __init__(self, flat: FlatParameters, trains: Sequence[Train], steps: int) -> None:
        self.flat = flat
        self.exp_avg = torch.zeros_like(flat.data)
        self.exp_avg_sq = torch.zeros_like(flat.data)
        dtype, device = flat.data.dtype, flat.data.device
        self.active = torch.ones(len(trains), 1, dtype=torch.bool, device=device)

        def column(values: Sequence[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float64).to(dtype).to(device).unsqueeze(1)

        self.one_minus_beta1 = column([1 - t.beta1 for t in trains])
        self.beta2 = column([t.beta2 for t in trains])
        self.one_minus_beta2 = column([1 - t.beta2 for t in trains])
        self.epsilon = column([t.epsilon for t in trains])
        self.max_norm = column([t.max_grad_norm if t.max_grad_norm is not None else float("inf") for t in trains])
        self.tables = _tables(trains, steps).to(dtype).to(device)  # [steps, 3, K, 1]
        self.rates = [learning_rates(t, steps) for t in trains]

    @torch.no_grad()
    def step(self, step: int, losses: torch.Tensor) -> torch.Tensor:
        """One update from the flat gradient; returns the gradient norms ``[K]`` before clipping.

        A member whose loss (``losses: [K]``) or gradient is not finite is frozen from this step on: its parameters stay as they were.
        """
        grad, data = self.flat.grad, self.flat.data
        norms = torch.linalg.vector_norm(grad, dim=1, keepdim=True)
        self.active &= torch.isfinite(norms) & torch.isfinite(losses).unsqueeze(1)
        grad.mul_((self.max_norm / (norms + 1e-6)).clamp_(max=1.0))
        decay, denominator, size = self.tables[step]
        self.exp_avg.lerp_(grad, self.one_minus_beta1)
        self.exp_avg_sq.mul_(self.beta2).add_(grad * grad * self.one_minus_beta2)
        root = (self.exp_avg_sq.sqrt() / denominator).add_(self.epsilon)
        data.copy_(torch.where(self.active, data * decay - size * (self.exp_avg / root), data))
        return norms.squeeze(1)


def _tables(trains: Sequence[Train], steps: int) -> torch.Tensor:
    """Float64 ``[steps, 3, K, 1]``: 1 - lr·decay, √(1 - β₂ᵗ), lr / (1 - β₁ᵗ)."""
    t = torch.arange(1, steps + 1, dtype=torch.float64)
    columns = []
    for train in trains:
        rate = torch.tensor(learning_rates(train, steps), dtype=torch.float64)
        columns.append(
            torch.stack(
                [1 - rate * train.weight_decay, (1 - train.beta2**t).sqrt(), rate / (1 - train.beta1**t)], dim=1
            )
        )
    return torch.stack(columns, dim=2).unsqueeze(-1)
