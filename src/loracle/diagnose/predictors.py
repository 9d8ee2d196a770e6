"""What might tell before training which matrices quantization hurts, and how many directions a first gradient has.

Predictors of one matrix's Δloss (``sensitivity.py`` measures it), for its error ΔW = W_q − W, inputs x and output gradients g of
each position, N scored tokens:

- ``weight_error``: ‖ΔW‖ / ‖W‖; ``output_error``: ‖ΔW x‖ / ‖W x‖ over the positions that the loss depends on;
- ``first_order``: Σ gᵀ ΔW x / N, the loss's own linear term, signed;
- ``fisher_diagonal``: ½ Σ F ΔW² with F = Σ (g xᵀ)² / N (as optimal brain damage, LeCun et al. 1989, with Fisher for the Hessian);
- ``fisher``: ½ Σ (Σ gᵀ ΔW x)² / N, the same along the error itself, the inner sum over a row's positions;
- ``kurtosis`` of W's entries, ``params``, ``layer``: no data needed.

Not covered: which of them is any good (docs/predicting.md), interactions between matrices, int8's activations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from loracle.adapters.batch import Row
from loracle.diagnose.gradients import inputs_and_gradients
from loracle.diagnose.sensitivity import row_batches
from loracle.diagnose.units import Codec, Swapper
from loracle.models.load import LoadedBase
from loracle.models.precision import oriented_weight


@dataclass
class _Sums:
    """Of one matrix, over batches."""

    wrong: float = 0.0  # ‖ΔW x‖²
    right: float = 0.0  # ‖W x‖²
    first: float = 0.0
    diagonal: float = 0.0
    along: float = 0.0


@torch.no_grad()
def error_predictors(loaded: LoadedBase, codec: Codec, rows: Sequence[Row], pad_id: int) -> list[dict[str, Any]]:
    """A dict of figures for each linear layer, in model order: one forward and one backward pass over ``rows``."""
    model, swapper, tokens = loaded.model, Swapper(loaded.model, codec), 0
    sums = {x.name: _Sums() for x in loaded.linears}
    for batch in row_batches(rows, model.config.vocab_size, pad_id, loaded.device):
        tokens += int(batch.tokens.sum())
        pairs = inputs_and_gradients(model, loaded.linears, batch)
        for name, (x, g) in pairs.items():
            weight = oriented_weight(model.get_submodule(name)).float()
            _add(sums[name], weight, swapper.dense(name).float() - weight, x, g)
    return [_figures(swapper, x, sums[x.name], max(1, tokens)) for x in loaded.linears]


def _add(to: _Sums, weight: torch.Tensor, error: torch.Tensor, x: torch.Tensor, g: torch.Tensor) -> None:
    """``weight``, ``error``: ``[d_out, d_in]``; ``x``: ``[b, T, d_in]``; ``g``: ``[b, T, d_out]``."""
    used = g.abs().sum(-1, keepdim=True) > 0  # not padding, nor a row's last token
    wrong = x @ error.T
    to.wrong += float(((wrong * used) ** 2).sum())
    to.right += float(((x @ weight.T * used) ** 2).sum())
    by_row = (wrong * g).sum((1, 2)).double()
    to.first += float(by_row.sum())
    to.along += float((by_row**2).sum())
    to.diagonal += float(((x**2 @ (error**2).T) * g**2).sum())


def _figures(swapper: Swapper, linear: Any, sums: _Sums, tokens: int) -> dict[str, Any]:
    weight = oriented_weight(swapper.model.get_submodule(linear.name)).float()
    error = swapper.dense(linear.name).float() - weight
    spread = (weight - weight.mean()) / weight.std()
    return {
        "module": linear.name,
        "layer": linear.layer,
        "kind": linear.kind,
        "weight_error": float(error.norm() / weight.norm()),
        "output_error": math.sqrt(sums.wrong / sums.right) if sums.right else None,
        "first_order": sums.first / tokens,
        "fisher_diagonal": 0.5 * sums.diagonal / tokens,
        "fisher": 0.5 * sums.along / tokens,
        "kurtosis": float((spread**4).mean()),
        "params": linear.params,
    }


# -- ranks ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spectrum:
    """Singular values of one matrix, largest first."""

    values: np.ndarray = field(repr=False)

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the singular values' shares (Roy & Vetterli 2007); 1 for a matrix of rank one."""
        shares = self.values[self.values > 0] / self.values.sum() if self.values.sum() > 0 else np.ones(1)
        return float(np.exp(-(shares * np.log(shares)).sum()))

    def captured(self, rank: int) -> float:
        """The share of the squared norm that the best approximation of ``rank`` keeps (Eckart & Young 1936)."""
        total = float((self.values**2).sum())
        return float((self.values[:rank] ** 2).sum()) / total if total > 0 else 1.0

    def rank_for(self, share: float) -> int:
        """The smallest rank that keeps ``share`` of the squared norm."""
        return next(r for r in range(1, len(self.values) + 1) if r == len(self.values) or self.captured(r) >= share)


@torch.no_grad()
def gradient_spectra(loaded: LoadedBase, rows: Sequence[Row], pad_id: int) -> dict[str, Spectrum]:
    """Of each linear layer the gradient of its weight, ``Σ g xᵀ [d_out, d_in]``, summed over ``rows``."""
    sums: dict[str, torch.Tensor] = {}
    for batch in row_batches(rows, loaded.model.config.vocab_size, pad_id, loaded.device):
        for name, (x, g) in inputs_and_gradients(loaded.model, loaded.linears, batch).items():
            found = g.flatten(0, 1).T @ x.flatten(0, 1)
            sums[name] = sums[name] + found if name in sums else found
    return {name: _spectrum(total) for name, total in sums.items()}


@torch.no_grad()
def error_spectra(loaded: LoadedBase, codec: Codec) -> dict[str, Spectrum]:
    """Of each linear layer what quantization changes, ``W_q − W``."""
    swapper = Swapper(loaded.model, codec)
    found = {}
    for x in loaded.linears:
        weight = oriented_weight(loaded.model.get_submodule(x.name)).float()
        found[x.name] = _spectrum(swapper.dense(x.name).float() - weight)
    return found


def _spectrum(matrix: torch.Tensor) -> Spectrum:
    return Spectrum(torch.linalg.svdvals(matrix.cpu()).double().numpy())
