"""Adapter dropout as a stateless function of (run seed, step, layer, element).

No generator is advanced, so a mask depends neither on the cohort's other members, nor on padding, nor on whether the
run was resumed or a layer recomputed. Elements are numbered by (row in the run's own batch, position, feature); the hash
is a 32-bit finaliser in the manner of MurmurHash3 (Appleby 2011), in wrapping integer arithmetic.
"""

from __future__ import annotations

import zlib

import torch


def _signed(value: int) -> int:
    """An unsigned 32-bit constant as torch's int32 takes it."""
    return value - (1 << 32) if value >= 1 << 31 else value


_C1, _C2 = _signed(0x85EBCA6B), _signed(0xC2B2AE35)
_ROW, _POS, _COL, _STEP = (_signed(c) for c in (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F))


def layer_key(name: str) -> int:
    """A layer's 32-bit key, from its name alone."""
    return _signed(zlib.crc32(name.encode()))


def mix(value: torch.Tensor) -> torch.Tensor:
    """Scramble int32 values in place; every output bit depends on every input bit."""
    value ^= (value >> 16) & 0xFFFF
    value *= _C1
    value ^= (value >> 13) & 0x7FFFF
    value *= _C2
    value ^= (value >> 16) & 0xFFFF
    return value


def keep_mask(
    keys: torch.Tensor, probability: torch.Tensor, rows: int, positions: int, features: int, first_row: int = 0
) -> torch.Tensor:
    """Scaled keep mask ``[K, rows·positions, features]``: 0 or 1/(1-p), float32.

    ``keys: [K]`` int32, one for each run (seed, step and layer mixed in); ``probability: [K]`` of dropping.
    ``first_row`` numbers rows through the micro-batches of one step.
    """
    device = keys.device
    row = torch.arange(first_row, first_row + rows, device=device, dtype=torch.int32) * _ROW
    position = torch.arange(positions, device=device, dtype=torch.int32) * _POS
    column = torch.arange(features, device=device, dtype=torch.int32) * _COL
    token = mix(keys[:, None, None] ^ (row[:, None] + position))  # [K, rows, positions]
    bits = mix(token.reshape(keys.shape[0], -1, 1) ^ column)
    threshold = (probability * 2147483648.0).to(torch.int64).clamp_(max=2147483647).to(torch.int32)
    keep = (bits & 0x7FFFFFFF) >= threshold[:, None, None]
    return keep * (1.0 / (1.0 - probability))[:, None, None]


def step_keys(seeds: torch.Tensor, step: torch.Tensor | int, layer: int) -> torch.Tensor:
    """``[K]`` int32 keys of one layer at one step."""
    return mix(mix(seeds.clone()) ^ (step * _STEP) ^ layer)
