"""The effective-bits census: bits per parameter counted on the bytes that are really there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from loracle.base.errors import ModelError
from loracle.models.integer import IntegerLinear
from loracle.models.linears import linear_shape
from loracle.models.precision import packed_of
from loracle.spec.study import FOUR_BIT, INTEGER, UNQUANTIZED

_CODE_BITS = {
    "nf4": 4.0,
    "fp4": 4.0,
    "int8": 8.0,
    "int4": 4.0,
    "int3": 3.2,
    "int2": 2.0,
}  # HQQ packs ten int3 in 32 bits
# What a label promises, in bits per weight: its codes, and at most 32 bits of constants for each block of 32.
_PROMISED = {name: (bits, bits + 1.01) for name, bits in _CODE_BITS.items()}


def weight_bytes(module: nn.Module) -> tuple[int, int]:
    """(bytes of the packed weight, bytes of its quantization constants)."""
    packed = packed_of(module)
    weight: Any = packed.weight
    constants = 0
    state = getattr(weight, "quant_state", None)
    if isinstance(packed, IntegerLinear):
        constants = _nbytes(packed.scale) + _nbytes(packed.zero)
    elif state is not None:
        constants = sum(_nbytes(part) for part in (state.absmax, getattr(state, "offset", None)) if part is not None)
        if state.nested:
            constants += _nbytes(state.state2.absmax)
    elif weight.dtype == torch.int8:
        constants = _nbytes(weight.SCB) if getattr(weight, "SCB", None) is not None else 0
    return _nbytes(weight), constants


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def resident_bytes(model: nn.Module, without: Collection[int] = ()) -> int:
    """Bytes of a model's parameters and quantization constants, shared storage once; ``without``: data pointers to leave out."""
    found: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.data_ptr() not in without:
                found[parameter.data_ptr()] = _nbytes(parameter)
        if linear_shape(module) is not None:
            packed: Any = packed_of(module)
            found[id(packed)] = weight_bytes(packed)[1]
    return sum(found.values())


def census(model: nn.Module, assignment: Mapping[str, str]) -> dict[str, Any]:
    """Count the linear layers' bytes; a label that the bytes do not bear out is a ``ModelError``.

    Returns ``effective_bits`` (over quantized layers, or None), ``linear_bits`` (over all linear layers),
    ``dtypes`` (packed dtype → weights) and ``quantized_share``.
    """
    bits = params = quantized_bits = quantized = 0
    dtypes: dict[str, int] = {}
    for name, precision in assignment.items():
        module = model.get_submodule(name)
        weight, constants = weight_bytes(module)
        count = _parameters(module)
        here = 8 * (weight + constants)
        bits, params = bits + here, params + count
        kind = str(packed_of(module).weight.dtype).removeprefix("torch.")
        dtypes[kind] = dtypes.get(kind, 0) + count
        if precision in _PROMISED:
            low, high = _PROMISED[precision]
            if not low <= here / count <= high:
                raise ModelError(f"{name} is labelled {precision} but takes {here / count:.2f} bits per weight")
            quantized_bits, quantized = quantized_bits + here, quantized + count
        elif precision in UNQUANTIZED and kind in ("uint8", "int8", "int32"):
            raise ModelError(f"{name} is labelled {precision} but is stored as {kind}")
    return {
        "effective_bits": quantized_bits / quantized if quantized else None,
        "linear_bits": bits / params,
        "quantized_share": quantized / params,
        "dtypes": dtypes,
    }


def _parameters(module: Any) -> int:
    return (
        int(module.in_features * module.out_features) if isinstance(module, nn.Linear) else int(module.weight.numel())
    )


def predicted_bits(precision: str, double_quant: bool | None, block_size: int | None) -> float:
    """Bits per weight that a codec promises. 4-bit: 4 + 32/block, or 4 + 8/block + 32/(256·block) with double quantization
    (QLoRA, Dettmers et al. 2023, section 3); int4, int3, int2: 4, 3.2 and 2, + 32/block; int8: 8 (and 32 bits
    for each row)."""
    block = block_size or 64
    if precision in FOUR_BIT:
        return 4 + (8 / block + 32 / (256 * block) if double_quant else 32 / block)
    if precision in INTEGER:
        return _CODE_BITS[precision] + 32 / block
    return {"fp32": 32.0, "bf16": 16.0, "fp16": 16.0, "int8": 8.0}[precision]
