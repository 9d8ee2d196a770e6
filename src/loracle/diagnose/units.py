"""What a sensitivity sweep quantizes at a time: a matrix, a slice of a fused one, a kind of module, a layer, everything.

And how it gets there: the weight that the codec's codes stand for is put in place of the dense one, and the dense one back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from loracle.models.linears import Linear, Rows, take_rows
from loracle.models.precision import ROUND_TO, dequantized_weight, oriented_weight, quantize
from loracle.spec.study import FOUR_BIT, INTEGER, UNQUANTIZED

UNITS = ("matrix", "slice", "kind", "layer", "all")

Part = tuple[Linear, Rows | None]
"""A linear layer and which rows of its output; None: all of them."""


@dataclass(frozen=True)
class Codec:
    """A precision and its settings; ``double_quant`` is of nf4 and fp4, ``block_size`` of these and the integers."""

    name: str
    double_quant: bool | None = True
    block_size: int | None = 64

    def as_record(self) -> dict[str, Any]:
        """``codec`` and the settings that mean something for it, else null."""
        blocks = self.name in FOUR_BIT | INTEGER
        return {
            "codec": self.name,
            "double_quant": bool(self.double_quant) if self.name in FOUR_BIT else None,
            "block_size": (self.block_size or 64) if blocks else None,
        }


@dataclass(frozen=True)
class Unit:
    """What is quantized at once. ``unit``: matrix, slice, kind, layer or all; what it has not (a kind its layer) is None."""

    unit: str
    module: str | None
    layer: int | None
    kind: str | None
    parts: tuple[Part, ...]

    @property
    def params(self) -> int:
        """Weights that are quantized."""
        return sum(x.params if rows is None else len(_numbers(x, rows)) * x.d_in for x, rows in self.parts)

    @property
    def first_layer(self) -> int:
        """The layer before which nothing changes."""
        return min(x.layer or 0 for x, _ in self.parts)


def units_of(linears: Sequence[Linear]) -> list[Unit]:
    """Every matrix, then slices of fused ones, kinds, layers, and all of them at once.

    A fused projection counts as a kind of its own (``qkv``) and, by its slices, as its logical kinds (``q``, ``k``, ``v``).
    """
    matrices, slices = [], []
    kinds: dict[str, list[Part]] = {}
    layers: dict[int, list[Part]] = {}
    for x in linears:
        matrices.append(Unit("matrix", x.name, x.layer, x.kind, ((x, None),)))
        kinds.setdefault(x.kind, []).append((x, None))
        if x.layer is not None:
            layers.setdefault(x.layer, []).append((x, None))
        for kind, rows in x.slices.items() if len(x.slices) > 1 else ():
            slices.append(Unit("slice", x.name, x.layer, kind, ((x, rows),)))
            kinds.setdefault(kind, []).append((x, rows))
    return [
        *matrices,
        *slices,
        *(Unit("kind", None, None, kind, tuple(parts)) for kind, parts in kinds.items()),
        *(Unit("layer", None, layer, None, tuple(parts)) for layer, parts in layers.items()),
        Unit("all", None, None, None, tuple((x, None) for x in linears)),
    ]


def _numbers(linear: Linear, rows: Rows) -> torch.Tensor:
    """The numbers of ``rows`` among the linear's output rows."""
    return take_rows(torch.arange(linear.d_out)[:, None], rows).flatten()


@dataclass
class Swapper:
    """The weights of ``model`` under ``codec``: each quantized once and kept packed, dense only while it is in place."""

    model: Any
    codec: Codec
    packed: dict[str, Any] = field(default_factory=dict)

    def dense(self, name: str) -> torch.Tensor:
        """The weight ``[d_out, d_in]`` that the codes of the linear called ``name`` stand for, in the model's dtype."""
        module = self.model.get_submodule(name)
        dtype = module.weight.dtype
        if self.codec.name in UNQUANTIZED:
            return oriented_weight(module).to(ROUND_TO[self.codec.name]).to(dtype)
        if name not in self.packed:
            self.packed[name] = quantize(
                module,
                self.codec.name,
                double_quant=self.codec.double_quant,
                block_size=self.codec.block_size,
                dtype=dtype,
                device=module.weight.device,
            )
        return dequantized_weight(self.packed[name], dtype)

    def part(self, part: Part) -> torch.Tensor:
        """The same for some rows: the others stay as they are. Constants are those of the whole matrix."""
        linear, rows = part
        quantized = self.dense(linear.name)
        if rows is None:
            return quantized
        mixed = oriented_weight(self.model.get_submodule(linear.name)).clone()
        at = _numbers(linear, rows).to(mixed.device)
        mixed[at] = quantized[at]
        return mixed

    @contextmanager
    def quantized(self, unit: Unit) -> Iterator[None]:
        """Within the block the model has the unit's quantized weights; after it its own tensors again, not copies."""
        kept = []
        try:
            for part in unit.parts:
                module = self.model.get_submodule(part[0].name)
                new = self.part(part)
                kept.append((module.weight, module.weight.data))
                module.weight.data = new if isinstance(module, torch.nn.Linear) else new.T.contiguous()
            yield
        finally:
            for weight, own in kept:
                weight.data = own
