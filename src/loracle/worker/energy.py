"""Energy of a training, read from the hardware's own counters; without one there is no figure, and the reason is kept.

On a GPU: NVML's total energy of the board (Volta or newer). On a CPU: Linux' RAPL counters of the packages, which many
systems let only root read. Both count all that ran on the board or the packages meanwhile. Not covered: the rest of the
machine, cooling, evaluation, AMD GPUs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

RAPL = Path("/sys/class/powercap")
NVML = "libnvidia-ml.so.1"
GPU = "NVML, the whole GPU board: other work on it is counted too"
CPU = "RAPL, all CPU packages: other work on them is counted too"


class NoCounter(Exception):
    """There is nothing to read; the message says why."""


@dataclass(frozen=True)
class Energy:
    """Joules of a cohort's training and what counted them; or null and why."""

    joules: float | None
    source: str | None
    reason: str | None

    def share(self, members: int) -> dict[str, object]:
        """One run's keys of its record: an equal share, as ``wall_s`` is."""
        joules = None if self.joules is None else self.joules / members
        return {"energy_joules": joules, "energy_source": self.source, "energy_reason": self.reason}


class Meter:
    """Reads the counters now and again at ``stop``."""

    def __init__(self, device: torch.device) -> None:
        self.source = GPU if device.type == "cuda" else CPU
        self.read: Callable[[], Mapping[str, float]] = (
            (lambda: gpu_joules(device)) if device.type == "cuda" else cpu_joules
        )
        self.reason: str | None = None
        try:
            self.before = self.read()
        except NoCounter as error:
            self.reason = str(error)

    def stop(self, resumed: bool) -> Energy:
        """The energy since the start; none where the training was taken up again, for a part of it was not read."""
        if self.reason is None and resumed:
            self.reason = "the training was interrupted, and the energy of its first part was not kept"
        if self.reason is None:
            try:
                after = self.read()
            except NoCounter as error:
                self.reason = str(error)
        if self.reason is not None:
            return Energy(None, None, self.reason)
        if any(after.get(name, -1.0) < start for name, start in self.before.items()):
            return Energy(None, None, "a counter ran over while training")
        return Energy(sum(after[name] - start for name, start in self.before.items()), self.source, None)


def cpu_joules(root: Path = RAPL) -> dict[str, float]:
    """Package → joules so far."""
    found = {}
    for path in sorted(root.glob("intel-rapl:*/energy_uj")):
        if path.parent.name.count(":") == 1:  # a package, not a part of one
            try:
                found[path.parent.name] = int(path.read_text()) / 1e6
            except (OSError, ValueError):
                raise NoCounter("the CPU's energy counters (RAPL) may not be read by this user") from None
    if not found:
        raise NoCounter("this machine has no energy counters of the CPU (RAPL)")
    return found


def gpu_joules(device: torch.device) -> dict[str, float]:
    """GPU → joules so far, by its UUID: NVML's own order is not CUDA's."""
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    try:
        nvml = ctypes.CDLL(NVML)
        handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
        _check(nvml.nvmlInit_v2())
        _check(nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)))
        _check(nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)))
    except (OSError, AttributeError):
        raise NoCounter("NVML, which counts the GPU's energy, is not there") from None
    return {uuid: millijoules.value / 1e3}


def _check(code: int) -> None:
    if code:
        raise NoCounter(f"NVML does not tell this GPU's energy (error {code})")
