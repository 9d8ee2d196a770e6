"""Layer sensitivity in the report: shown where it was measured, absent where it was not."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from synthetic_study import write_study

from loracle.report import write_report

WORST = ("transformer.h.1.attn.c_proj", 1, "o", 0.632)


def unit(module: str | None, layer: int | None, kind: str | None, delta: float | None, name: str = "matrix") -> dict:
    return {
        "module": module, "layer": layer, "kind": kind, "unit": name, "codec": "nf4", "double_quant": True,
        "block_size": 64, "delta_loss": delta, "kl": 0.1, "agreement": 0.5, "params": 4096,
    }  # fmt: skip


def measured(root: Path, **changes: object) -> Path:
    """The report of a study with a sweep."""
    add_sensitivity(root, **changes)
    write_report(root)
    return root / "report"


def add_sensitivity(root: Path, **changes: object) -> None:
    units = [
        unit(*WORST),
        unit("transformer.h.0.attn.c_attn", 0, "qkv", 0.1),
        unit("transformer.h.0.mlp", 0, "up", None),
    ]
    units += [unit("transformer.h.0.attn.c_attn", 0, "q", 0.02, "slice"), unit(None, None, None, 1.107, "all")]
    sweep = {
        "base": "gpt2-<b>demo", "codec": "nf4", "double_quant": True, "block_size": 64, "text": "plain text", "reason": None,
        "tokens": 2985, "base_loss": 4.1, "units": units, **changes,
    }  # fmt: skip
    path = root / "diagnose" / "sensitivity_sweeps.json"
    path.write_text(json.dumps({"schema": 1, "sweeps": [sweep]}))


def test_what_was_measured_is_shown(tmp_path: Path) -> None:
    report = measured(write_study(tmp_path, ranks=(4,), seeds=(42, 43, 44)))
    assert (report / "figures" / "layer_sensitivity_heatmap.png").stat().st_size > 5000
    page = (report / "index.html").read_text(encoding="utf-8")
    assert "Loss added by quantizing one matrix, worst: " in page
    assert "layer 1 o +0.6320" in page
    assert "block 64, double quantization" in page
    assert "2,985 scored tokens of plain text" in page
    assert "<b>demo" not in page
    with open(report / "tables" / "layer_sensitivity.csv", newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert [(r["unit"], r["place"], r["delta_loss"]) for r in rows][:3] == [
        ("matrix", "1", "0.632"), ("matrix", "2", "0.1"), ("matrix", "3", ""),
    ]  # fmt: skip
    assert "layer_sensitivity_heatmap.png" in (report / "report.md").read_text(encoding="utf-8")


def test_what_was_not_measured_is_not_there(tmp_path: Path) -> None:
    root = write_study(tmp_path, ranks=(4,), seeds=(42, 43, 44))
    page = write_report(root).read_text(encoding="utf-8")
    assert "ensitivity by layer" not in page
    assert not (root / "report" / "figures" / "layer_sensitivity_heatmap.png").exists()


def test_a_sweep_that_failed_says_why(tmp_path: Path) -> None:
    root = write_study(tmp_path, ranks=(4,), seeds=(42, 43, 44))
    page = (measured(root, units=[], reason="the base comes quantized") / "index.html").read_text(encoding="utf-8")
    assert "No sensitivity of gpt2-&lt;b&gt;demo to nf4: the base comes quantized." in page
