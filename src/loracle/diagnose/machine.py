"""What this machine has and does well, for ``loracle doctor`` and for plans."""

from __future__ import annotations

import os
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def matmul_ms(dtype: torch.dtype, device: str, size: int = 512) -> float | None:
    """Median milliseconds of one ``size``³ matrix product, or None where the dtype has none."""
    try:
        x = torch.randn(size, size, device=device).to(dtype)
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            x @ x
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
        return sorted(times)[2] * 1000
    except RuntimeError:
        return None


def facts() -> dict[str, Any]:
    """Versions, devices, and which dtypes are within 1.5 times the fastest matrix product here."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    times = {name: matmul_ms(dtype, device) for name, dtype in dtypes.items()}
    known = {name: t for name, t in times.items() if t is not None}
    fastest = min(known.values())
    gpu = torch.cuda.get_device_properties(0) if device == "cuda" else None
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda if gpu else None,
        "device_name": gpu.name if gpu else "cpu",
        "gpus": torch.cuda.device_count(),
        "gpu_memory_bytes": gpu.total_memory if gpu else None,
        "bitsandbytes": _version("bitsandbytes"),
        "transformers": _version("transformers"),
        "peft": _version("peft"),
        "triton": _version("triton"),
        "matmul_ms": times,
        "fast_dtypes": sorted((n for n, t in known.items() if t <= 1.5 * fastest), key=lambda n: known[n]),
        "compute_dtype": "float32" if not gpu else ("bfloat16" if torch.cuda.is_bf16_supported() else "float16"),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bitsandbytes_cpu_bf16_kernel": _bf16_kernel(),
        "bytecode": _bytecode(),
    }


def _bf16_kernel() -> bool | None:
    """Whether bitsandbytes evaluates 4-bit weights on this CPU with a bfloat16 kernel."""
    try:
        from bitsandbytes.functional import has_avx512bf16

        return bool(has_avx512bf16())
    except Exception:
        return None


def _bytecode() -> bool:
    """Whether Python found torch compiled. Where it may not keep what it compiles, every process does it again."""
    cached = torch.nn.functional.__spec__ and torch.nn.functional.__spec__.cached
    return bool(cached) and Path(str(cached)).is_file()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def machine(device: torch.device) -> dict[str, Any]:
    """What the predictions were made on."""
    from loracle.models.load import device_name

    gpu = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    return {
        "device": device.type,
        "device_name": device_name(device),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu_memory_bytes": gpu,
        "gpus": torch.cuda.device_count(),
        "threads": torch.get_num_threads(),
    }
