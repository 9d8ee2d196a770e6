"""A worker's share of the memory: what it asks for beyond that fails as on a machine that has no more."""

from __future__ import annotations

import os
import resource

import torch

from loracle.models.load import pick_device


def limit_memory(fraction: float | None, device: str = "auto") -> None:
    """Let this process allocate at most ``fraction`` (0 to 1] of the GPU's memory; on a CPU of the machine's, all private
    writable memory counted (Linux's RLIMIT_DATA), the interpreter's and the libraries' included. None is no limit."""
    if fraction is None:
        return
    if pick_device(device).type == "cuda":
        torch.cuda.set_per_process_memory_fraction(fraction)
        return
    size = int(fraction * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))
