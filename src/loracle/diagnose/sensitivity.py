"""Layer sensitivity: what quantizing one matrix, one kind or one layer costs while everything else stays 16-bit.

Each unit (``units.py``) is compared with the 16-bit base on the same scored positions: Δloss, the KL divergence of its
distributions from the base's, and how often both are greedy for the same token. A batch of rows is taken through the base once,
then through every unit, from the first layer that the unit changes: what lies before is the base's, recorded.

Not covered: activations (int8 here is weight-only). What matrices cost together is ``mixing.py``'s, a trained adapter on the base
``trained.py``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from loracle.adapters.batch import CohortBatch, Row, make_batch, scored
from loracle.adapters.forward import head_logits, scored_hidden
from loracle.diagnose.units import UNITS, Codec, Swapper, units_of
from loracle.models.linears import FAMILIES, Linear
from loracle.models.load import LoadedBase

TOKENS_PER_PASS = {"cpu": 1024, "cuda": 65536}  # on a CPU few enough to stay near its cache
REFERENCE_BYTES = {"cpu": 1 << 28, "cuda": 1 << 32}  # of the base's probabilities, held while a batch is worked through
CHUNK_BYTES = {"cpu": 1 << 25, "cuda": 1 << 28}  # of a unit's, held at a time


@dataclass(frozen=True)
class Sweep:
    """``units``: a dict of figures for each unit, in the order of ``units_of``; ``loss``: the base's, nats/token."""

    loss: float
    tokens: int
    units: list[dict[str, Any]]


@dataclass(frozen=True)
class _Known:
    """The base on one batch: ``p [N, V]`` float32, Σ p ln p as ``negentropy [N]``, its ``greedy [N]`` tokens, summed ``loss``,
    each layer's output."""

    p: torch.Tensor
    negentropy: torch.Tensor
    greedy: torch.Tensor
    loss: float
    layers: dict[int, Any]


@dataclass(frozen=True)
class Trial:
    """Something done to the model's weights and undone: ``applied()`` is a context; layers before ``first_layer`` stay the base's."""

    applied: Callable[[], AbstractContextManager[Any]]
    first_layer: int


@torch.no_grad()
def sweep(loaded: LoadedBase, codec: Codec, rows: Sequence[Row], pad_id: int, kinds: Sequence[str] = UNITS) -> Sweep:
    """Quantize each unit of an unquantized base in turn, of ``kinds``; the base is afterwards what it was, bit for bit."""
    swapper, units = Swapper(loaded.model, codec), [unit for unit in units_of(loaded.linears) if unit.unit in kinds]
    trials = [Trial(partial(swapper.quantized, unit), unit.first_layer) for unit in units]
    found = tried(loaded, trials, rows, pad_id)
    return Sweep(
        found.loss,
        found.tokens,
        [
            {
                "module": unit.module,
                "layer": unit.layer,
                "kind": unit.kind,
                "unit": unit.unit,
                **codec.as_record(),
                **one,
            }
            | {"params": unit.params}
            for unit, one in zip(units, found.units, strict=True)
        ],
    )


@torch.no_grad()
def tried(loaded: LoadedBase, trials: Sequence[Trial], rows: Sequence[Row], pad_id: int) -> Sweep:
    """``delta_loss``, ``kl`` and ``agreement`` of each trial against the model as it is, on the rows' scored tokens."""
    model = loaded.model
    layers = decoder_layers(model, loaded.linears)
    sums = np.zeros((len(trials), 3))
    loss, tokens = 0.0, 0
    for batch in _batches(rows, model.config.vocab_size, pad_id, loaded.device):
        known = _reference(model, batch, layers)
        loss, tokens = loss + known.loss, tokens + int(batch.tokens.sum())
        for i, trial in enumerate(trials):
            with trial.applied(), starting_at(trial.first_layer, layers, known.layers):
                sums[i] += _compared(model, batch, known)
    tokens = max(1, tokens)
    figures = [
        {"delta_loss": (float(one) - loss) / tokens, "kl": float(kl) / tokens, "agreement": float(same) / tokens}
        for one, kl, same in sums
    ]
    return Sweep(loss / tokens, tokens, figures)


def worst_first(units: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By what they add to the loss; a figure that is not finite is the worst."""
    return sorted(units, key=_harm)


def _harm(unit: dict[str, Any]) -> float:
    found = unit["delta_loss"]  # null: read back from a file, where a figure that is not finite is null
    return -found if found is not None and np.isfinite(found) else -np.inf


# -- one batch ------------------------------------------------------------------------------------------------------------


def _batches(rows: Sequence[Row], vocab: int, pad_id: int, device: torch.device) -> Iterator[CohortBatch]:
    """Batches of rows of like length: no more tokens than one pass takes, and than their probabilities have room for."""
    budget = min(TOKENS_PER_PASS[device.type], REFERENCE_BYTES[device.type] // (4 * vocab))
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i].input_ids), i))
    here: list[Row] = []
    for row in (rows[i] for i in order if scored(rows[i])[0].size):
        if here and (len(here) + 1) * len(here[0].input_ids) > budget:
            yield make_batch([here], pad_id).to(device)
            here = []
        here.append(row)
    if here:
        yield make_batch([here], pad_id).to(device)


def _reference(model: Any, batch: CohortBatch, layers: Sequence[nn.Module]) -> _Known:
    outputs: dict[int, Any] = {}
    hooks = [layer.register_forward_hook(_keep(outputs, i)) for i, layer in enumerate(layers)]
    try:
        hidden = scored_hidden(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    loss, found = 0.0, []
    for part, targets in _chunks(hidden, batch, model):
        shifted, total, greedy = _shifted(head_logits(model, part))
        loss += _loss(shifted, total, targets)
        p = (shifted - total[:, None]).exp_()
        found.append((p, _dot(p, shifted) - total, greedy))
    p, negentropy, greedy = (torch.cat(parts) for parts in zip(*found, strict=True))
    return _Known(p, negentropy, greedy, loss, outputs)


def _keep(outputs: dict[int, Any], i: int) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs[i] = output

    return hook


def _compared(model: Any, batch: CohortBatch, known: _Known) -> tuple[float, float, int]:
    """(summed loss, summed KL(base ‖ model), greedy tokens in common) over the batch's scored positions.

    A batch of one member has no padding among its scored positions.
    """
    loss, kl, same, start = 0.0, 0.0, 0, 0
    for part, targets in _chunks(scored_hidden(model, batch), batch, model):
        at = slice(start, start + len(part))
        shifted, total, greedy = _shifted(head_logits(model, part))
        loss += _loss(shifted, total, targets)
        kl += float((known.negentropy[at] - (_dot(known.p[at], shifted) - total)).double().sum())
        same += int((greedy == known.greedy[at]).sum())
        start += len(part)
    return loss, kl, same


def _shifted(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits ``[n, V]`` less their row's largest, float32; the logarithm of the sum of their exponentials ``[n]``; the largest's
    place ``[n]``. Shifted, ln p is exact to a last bit of itself, however large the logits are."""
    logits = logits.float()
    largest, greedy = logits.max(-1, keepdim=True)
    shifted = logits - largest
    return shifted, shifted.exp().sum(-1).log(), greedy[:, 0]


def _loss(shifted: torch.Tensor, total: torch.Tensor, targets: torch.Tensor) -> float:
    return float((total - shifted.gather(1, targets[:, None])[:, 0]).double().sum())


def _dot(p: torch.Tensor, shifted: torch.Tensor) -> torch.Tensor:
    """Row by row ``[n]``: one pass over both."""
    return torch.bmm(p[:, None], shifted[:, :, None])[:, 0, 0]


def _chunks(hidden: torch.Tensor, batch: CohortBatch, model: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """``hidden [N, d]`` and targets in parts whose logits are small; the same parts for the base and every unit, so that equal
    is equal."""
    size = max(1, CHUNK_BYTES[hidden.device.type] // (4 * model.config.vocab_size))
    return zip(torch.split(hidden, size), torch.split(batch.targets.view(-1), size), strict=True)


# -- layers that a unit leaves alone --------------------------------------------------------------------------------------


def decoder_layers(model: Any, linears: Sequence[Linear]) -> list[nn.Module]:
    """The model's layers in order; none of an architecture that is not known to pass one hidden state from layer to layer."""
    if model.config.model_type not in FAMILIES:
        return []
    names = {x.layer: x.name.split(f".{x.layer}.")[0] + f".{x.layer}" for x in linears if x.layer is not None}
    return [model.get_submodule(names[i]) for i in sorted(names)] if sorted(names) == list(range(len(names))) else []


@contextmanager
def starting_at(first: int, layers: Sequence[nn.Module], outputs: dict[int, Any]) -> Iterator[None]:
    """Within the block the layers before ``first`` compute nothing: each gives what the last of them gave the base."""
    skipped = list(layers[:first])
    known = outputs.get(first - 1)
    try:
        for layer in skipped:
            layer.__dict__["forward"] = lambda *given, **named: known
        yield
    finally:
        for layer in skipped:
            del layer.__dict__["forward"]
