"""Triton kernels of the training step on a CUDA GPU. Each module says which torch operations its kernel stands for.

Importing this package loads no Triton; the modules in it do, so they are imported where a CUDA tensor is at hand.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache

import torch


@cache
def installed() -> bool:
    """Whether Triton can be imported here."""
    return importlib.util.find_spec("triton") is not None


def runs_on(tensor: torch.Tensor) -> bool:
    """Whether a kernel may take this tensor: on a CUDA device, or anywhere under Triton's interpreter (tests)."""
    return installed() and (
        tensor.is_cuda or (os.environ.get("TRITON_INTERPRET") == "1" and tensor.device.type == "cpu")
    )
