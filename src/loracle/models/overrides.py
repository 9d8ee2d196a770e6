"""Forward passes of single modules that are ours for a while, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

_ATTENTION = "_loracle_attention"


class _Override(partial[torch.Tensor]):
    """A forward pass of ours on one module."""


def override(module: nn.Module, forward: Callable[..., torch.Tensor]) -> None:
    """Let ``forward(module, …)`` stand for ``module(…)``, unless something else already does."""
    module.__dict__.setdefault("forward", _Override(forward, module))


def attend_by(model: Any, name: str) -> None:
    """Switch the model's attention to one that Transformers knows as ``name``."""
    model.__dict__.setdefault(_ATTENTION, model.config._attn_implementation)
    model.config._attn_implementation = name


def undo(model: Any) -> None:
    """The modules' own forward passes and the model's own attention again."""
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), _Override):
            del module.__dict__["forward"]
    before = model.__dict__.pop(_ATTENTION, None)
    if before is not None:
        model.config._attn_implementation = before
