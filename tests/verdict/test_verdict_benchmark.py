"""The rows of benchmarks/verdict_simulation.py at small size: every rule of the verdicts against a known truth."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verdict_simulation", BENCHMARKS / "verdict_simulation.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("rule", "draws"),
    [
        ("interval", 300),
        ("score", 300),
        ("gain", 200),
        ("rank", 60),
        ("family", 80),
        ("power", 20),
        ("needs", 100),
        ("likeness", 200),
    ],
)
def test_every_rule_keeps_its_promise(simulation: ModuleType, rule: str, draws: int) -> None:
    rows = list(simulation.RULES[rule](draws))
    assert rows
    assert not [row for row in rows if not row["holds"]]


def test_power_is_power(simulation: ModuleType) -> None:
    """A test that never decides would keep every error rate."""
    shares = {(r["setting"], r["what"]): r["share"] for r in simulation.power_rows(20)}
    assert shares["seeds, true cost 0%", "power: supported"] >= 0.8
    assert shares["seeds, true cost 10%", "power: rejected"] >= 0.8


def test_a_broken_promise_is_seen(simulation: ModuleType) -> None:
    assert not simulation.row("r", "s", "w", 50, 1000, None, 0.025)["holds"]
    assert not simulation.row("r", "s", "w", 900, 1000, 0.93, 0.97)["holds"]
    assert not simulation.row("r", "s", "w", 999, 1000, 0.93, 0.97)["holds"]
    assert simulation.row("r", "s", "w", 950, 1000, 0.93, 0.97)["holds"]


def test_the_committed_figures_keep_every_promise() -> None:
    latest = sorted(BENCHMARKS.glob("*-verdict-simulation.json"))[-1]
    found = json.loads(latest.read_text())
    assert found["broken"] == []
    assert found["command"].startswith("python benchmarks/verdict_simulation.py")
    assert {"loracle", "python", "numpy", "scipy"} == set(found["versions"])
