"""The benchmarks' arithmetic: ratios, extrapolation, the split of a saving. (The scripts themselves: ``make bench-cpu``.)"""

from __future__ import annotations

import csv
import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))


def arm(name: str, members: int, repeats: list[list[float]]) -> Any:
    timing = importlib.import_module("gpu.timing")
    return timing.Arm(name, lambda: None, "quantized", members, repeats=repeats)


def test_a_ratio_is_taken_round_by_round_and_a_run() -> None:
    timing = importlib.import_module("gpu.timing")
    found = timing.ratio(arm("slow", 1, [[10.0], [20.0], [12.0]]), arm("fast", 4, [[8.0], [8.0], [8.0]]))
    assert (found["median"], found["least"], found["greatest"], found["rounds"]) == (6.0, 5.0, 10.0, 3)


def test_an_arm_that_was_not_timed_has_no_figures() -> None:
    row = arm("oom", 8, []).row()
    assert row["ms_per_step"] is None
    assert row["peak_allocated_bytes"] is None


def test_the_saving_is_split_in_both_orders() -> None:
    table = importlib.import_module("memory_table_cuda")
    cells = {("bf16", False): 10892, ("bf16", True): 3330, ("nf4", False): 11350, ("nf4", True): 3313}
    found = table.attribution(cells)
    assert found["saving_percent"] == 69.6
    assert found["by_quantization_percent"] == -2.0
    assert found["by_checkpointing_percent"] == 71.6
    for order in found["orders"].values():
        assert order["quantization_bytes"] + order["checkpointing_bytes"] == 10892 - 3313


def test_a_makespan_is_extrapolated_from_what_was_measured() -> None:
    study = importlib.import_module("study_cuda")
    runs = [{"kind": "usual LoRA", "run_s": 10.0}, {"kind": "usual QLoRA", "run_s": 20.0}]
    found = study.extrapolated([{"runs": runs, "start_s": 5.0}], "usual", 24)
    assert found["makespan_s"] == 5 + 12 * 30
    assert study.extrapolated([{"runs": runs, "start_s": 5.0}], "matched", 24) is None
    again = [*runs, {"kind": "usual LoRA", "run_s": 6.0}]  # what a process's first run takes more counts once
    found = study.extrapolated([{"runs": again, "start_s": 5.0}], "usual", 24)
    assert found["makespan_s"] == 5 + 10 + 11 * 6 + 12 * 20
    assert found["extrapolated"] == "from 2 LoRA and 1 QLoRA runs to 24"


def test_a_failed_arm_is_a_row_and_the_rest_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    timing = importlib.import_module("gpu.timing")

    class Fine:
        def step(self, i: int) -> None: ...
        def close(self) -> None: ...

    def broken() -> Any:
        raise ValueError("no")

    arms = [timing.Arm("broken", broken, "quantized"), timing.Arm("fine", Fine, "quantized")]
    bench = timing.Bench(torch.device("cpu"), 0.001, least=2)
    bench.memory(arms)
    bench.rounds(arms, 2)
    capsys.readouterr()
    assert [a.status for a in arms] == ["failed", "done"]
    assert len(arms[1].repeats) == 2
    assert arms[0].row()["reason"] == "ValueError: no"


def crossover(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> Any:
    script = importlib.import_module("crossover_cuda")
    monkeypatch.setattr("sys.argv", ["crossover_cuda.py", *map(str, words)])
    return script


def test_a_result_is_drawn_anew_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [part, kept] = sorted(HERE.glob("*-crossover-*.json"))
    copies = [shutil.copy(path, tmp_path) for path in (kept, part)]
    crossover(monkeypatch, "--redraw", *copies).main()
    shown = capsys.readouterr().out
    assert all(f"{model}, 32x512 (16384 tokens), nf4" in shown for model in ("tinyllama-1.1b", "llama-7b"))
    assert (tmp_path / kept.with_suffix(".csv").name).read_bytes() == kept.with_suffix(".csv").read_bytes()
    assert (tmp_path / kept.with_suffix(".png").name).is_file()
    assert (tmp_path / kept.name).read_bytes() == kept.read_bytes()


def test_a_run_that_is_cut_leaves_all_files_of_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = crossover(monkeypatch, "--device", "cpu", "--tiny", "--out", tmp_path)

    def measured(name: str, *_: Any) -> list[dict[str, Any]]:
        if name != "gpt2":
            raise KeyboardInterrupt
        place = {"model": name, "tokens_per_step": 32, "point": "2x16", "ms_over_bf16": None}
        return [{**place, "precision": side, **arm(side, 1, []).row()} for side in script.SIDES]

    monkeypatch.setattr(script, "model_run", measured)
    with pytest.raises(KeyboardInterrupt):
        script.main()
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".json", ".png"]


def test_the_ledger_keeps_what_it_has_after_each_base(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One base at a time, one that cannot be made is a row too, and the files are there before the next base comes."""
    from loracle.base.errors import ModelError

    ledger = importlib.import_module("ledger_cuda")
    alive: list[str] = []

    class Base:
        def __init__(self, name: str) -> None:
            assert not alive, "the last base is still there"
            alive.append(name)

        def __del__(self) -> None:
            alive.pop()

    def load(case: Any) -> Base:
        if case.precision == "int4":
            raise ModelError("needs hqq")
        return Base(case.precision)

    figures = {"predicted_bytes": 98, "measured_bytes": 100, "error": -0.02, "unexplained_share": 0.01}
    reserved = {
        "predicted_reserved_bytes": 110,
        "measured_reserved_bytes": 110,
        "components": {"gradients": {"predicted": 5}},
    }
    monkeypatch.setattr(ledger, "load", load)
    monkeypatch.setattr(ledger, "clean", lambda: None)
    monkeypatch.setattr(ledger, "entry", lambda case, base: {**vars(case), "status": "done", **figures, **reserved})
    monkeypatch.setattr(ledger, "header", lambda name, device: {"benchmark": name})
    monkeypatch.setattr(ledger, "stem", lambda out, name, device: out / name)
    cases = [
        ledger.Case("gpt2-medium", p, 1, 8, checkpointing=c) for p in ("bf16", "nf4", "int4") for c in (False, True)
    ]
    counts = []
    for rows in ledger.measure_all(cases):
        said = ledger.write(rows, tmp_path, 1.0)
        counts.append((len(rows), json.loads((tmp_path / "ledger.json").read_text())["summary"]["cells"]))
    assert counts == [(2, 2), (4, 4), (6, 4)]
    assert not alive
    assert "largest_error 0.02" in said
    table = list(csv.DictReader((tmp_path / "ledger.csv").open()))
    assert [row["status"] for row in table] == ["done"] * 4 + ["skipped"] * 2
    assert (table[0]["gradients_predicted"], table[0]["gradients_measured"], table[4]["error"]) == ("5", "", "")
