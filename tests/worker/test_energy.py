"""Energy by the hardware's counters: differences, shares, and a reason wherever there is no figure."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from loracle.worker import energy
from loracle.worker.energy import Meter, NoCounter, cpu_joules, gpu_joules

CPU = torch.device("cpu")


def rapl(root: Path, *joules: float) -> None:
    for i, value in enumerate(joules):
        package, part = root / f"intel-rapl:{i}", root / f"intel-rapl:{i}:0"
        for folder in (package, part):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "energy_uj").write_text(f"{round(value * 1e6)}\n")


def test_the_difference_of_all_packages_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rapl(tmp_path, 100.0, 50.0)
    monkeypatch.setattr(energy, "cpu_joules", lambda: cpu_joules(tmp_path))
    meter = Meter(CPU)
    rapl(tmp_path, 130.0, 60.0)
    found = meter.stop(resumed=False)
    assert found.joules == pytest.approx(40.0)
    assert found.share(4) == {"energy_joules": 10.0, "energy_source": energy.CPU, "energy_reason": None}


@pytest.mark.parametrize(
    ("after", "resumed", "words"),
    [((1.0, 60.0), False, "ran over"), ((130.0, 60.0), True, "interrupted"), ((), False, "no energy counters")],
)
def test_no_figure_without_a_whole_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: tuple[float, ...], resumed: bool, words: str
) -> None:
    first, second = tmp_path / "before", tmp_path / "after"
    rapl(first, 100.0, 50.0)
    rapl(second, *after)
    monkeypatch.setattr(energy, "cpu_joules", lambda: cpu_joules(first))
    meter = Meter(CPU)
    meter.read = lambda: cpu_joules(second)
    found = meter.stop(resumed).share(1)
    assert (found["energy_joules"], found["energy_source"]) == (None, None)
    assert words in str(found["energy_reason"])


def test_a_machine_without_counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "cpu_joules", lambda: cpu_joules(tmp_path))
    assert "no energy counters" in str(Meter(CPU).stop(resumed=False).reason)
    rapl(tmp_path, 1.0)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("no number")
    with pytest.raises(NoCounter, match="may not be read"):
        cpu_joules(tmp_path)


def test_a_gpu_is_asked_by_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def by_uuid(uuid: bytes, handle: object) -> int:
        asked.append(uuid)
        return 0

    def total(handle: object, out: object) -> int:
        ctypes.cast(out, ctypes.POINTER(ctypes.c_ulonglong))[0] = 1_500
        return 0

    nvml = SimpleNamespace(
        nvmlInit_v2=lambda: 0, nvmlDeviceGetHandleByUUID=by_uuid, nvmlDeviceGetTotalEnergyConsumption=total
    )
    monkeypatch.setattr(ctypes, "CDLL", lambda name: nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1-2"))
    assert gpu_joules(torch.device("cuda", 0)) == {"GPU-1-2": 1.5}
    assert asked == [b"GPU-1-2"]
    nvml.nvmlDeviceGetTotalEnergyConsumption = lambda handle, out: 3
    with pytest.raises(NoCounter, match="error 3"):
        gpu_joules(torch.device("cuda", 0))


def test_no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "NVML", "libnothing-of-the-kind.so")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1-2"))
    with pytest.raises(NoCounter, match="is not there"):
        gpu_joules(torch.device("cuda", 0))
