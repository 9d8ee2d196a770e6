"""Adapter dropout as a stateless function of (run seed, step, layer, element).

No generator is advanced, so a mask depends neither on the cohort's other members, nor on padding, nor on whether the
run was resumed or a layer recomputed. Elements are numbered by (row in the run's own batch, position, feature); the hash
is a 32-bit finaliser in the manner of MurmurHash3 (Appleby 2011), in wrapping integer arithmetic.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
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


def token_codes(rows: int, positions: int, first_row: int, device: torch.device) -> torch.Tensor:
    """``[rows · positions]`` int32: what numbers a token within the run's own batch. ``first_row`` numbers rows through the
    micro-batches of one step."""
    row = torch.arange(first_row, first_row + rows, device=device, dtype=torch.int32) * _ROW
    position = torch.arange(positions, device=device, dtype=torch.int32) * _POS
    return (row[:, None] + position).reshape(-1)


def codes_of(row: np.ndarray, position: np.ndarray) -> np.ndarray:
    """The same numbers (wrapping int32) of given rows and positions."""
    return (row.astype(np.int64) * _ROW + position.astype(np.int64) * _POS).astype(np.uint32).view(np.int32)


def keep_mask(keys: torch.Tensor, probability: torch.Tensor, codes: torch.Tensor, features: int) -> torch.Tensor:
    """Scaled keep mask ``[K, n, features]``: 0 or 1/(1-p), float32.

    ``keys: [K]`` int32, one for each run (seed, step and layer mixed in); ``probability: [K]`` of dropping; ``codes: [n]`` or
    ``[K, n]``, one for each token.
    """
    column = torch.arange(features, device=keys.device, dtype=torch.int32) * _COL
    token = mix(keys[:, None] ^ codes)  # [K, n]
    bits = mix(token.unsqueeze(-1) ^ column)
    keep = (bits & 0x7FFFFFFF) >= threshold(probability)[:, None, None]
    return keep * (1.0 / (1.0 - probability))[:, None, None]


def threshold(probability: torch.Tensor) -> torch.Tensor:
    """``[K]`` int32: 31 random bits below it drop an element."""
    return (probability * 2147483648.0).to(torch.int64).clamp_(max=2147483647).to(torch.int32)


def step_keys(seeds: torch.Tensor, step: torch.Tensor | int, layer: int) -> torch.Tensor:
    """``[K]`` int32 keys of one layer at one step."""
    return mix(mix(seeds.clone()) ^ (step * _STEP) ^ layer)


class Drop(torch.autograd.Function):
    """``apply(x [K, n, d], keys [K], codes [n] or [K, n], threshold [K], factor [K])`` → ``[K, n, d]``: ``keep_mask`` applied by a
    kernel. The mask is made where it is used, in both passes, and never kept."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        keys: torch.Tensor,
        codes: torch.Tensor,
        threshold: torch.Tensor,
        factor: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(keys, codes, threshold, factor)
        return _dropped(x, keys, codes, threshold, factor)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        return _dropped(dy, *ctx.saved_tensors), None, None, None, None


def _dropped(x: torch.Tensor, *mask: torch.Tensor) -> torch.Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    if not x.is_meta:
        from loracle.adapters.kernels.dropout import drop

        drop(x, out, *mask)
    return out
