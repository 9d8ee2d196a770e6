"""The numbers of docs/algorithm13_extension.md, computed again: its tables, its algorithms against bitsandbytes, its bytes
against the forecast."""

from __future__ import annotations

import csv
import re
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import torch

from loracle.diagnose.forecast import Forecast, Geometry, Plan, forecast
from loracle.models.census import predicted_bits
from loracle.spec.study import Cell

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "algorithm13_extension.md").read_text(encoding="utf-8")
STEPS = ROOT / "benchmarks" / "2026-11-28-steps-nvidia-h200.csv"
NORMAL = NormalDist()

BITS = 4 + 8 / 64 + 32 / (64 * 256)
SMALL = {"p": 354_823_168, "linear": 24 * 12 * 1024**2, "trained": 24 * 8 * (1024 + 3 * 1024)}
RANKED = 80 * (4 * 2 * 8192 + 3 * (8192 + 22016))  # trained parameters for each rank, all linear layers of LLaMA 65B


def table(name: str) -> list[list[str]]:
    """Rows of the table that is marked so, without its head."""
    text = PAGE.partition(f"<!-- numbers: {name} -->")[2].strip().partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def number(text: str) -> float:
    return float(text.replace("−", "-").replace(",", ""))


# -- NF4 --------------------------------------------------------------------------------------------------------------


def nf4_codebook() -> list[float]:
    """Algorithm Q1."""
    o = 1 - (1 / 30 + 1 / 32) / 2
    below = [-NORMAL.inv_cdf(0.5 + j * (o - 0.5) / 7) / NORMAL.inv_cdf(o) for j in range(7, 0, -1)]
    return [*below, 0.0, *(NORMAL.inv_cdf(0.5 + j * (o - 0.5) / 8) / NORMAL.inv_cdf(o) for j in range(1, 9))]


def nf4_quantize(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Algorithm Q2: codes from 0, ``[n]``, and absmax ``[n / 64]``."""
    blocks = w.reshape(-1, 64)
    a = blocks.abs().amax(1)
    distance = (blocks / a[:, None])[..., None] - torch.tensor(nf4_codebook())
    return distance.abs().argmin(-1).flatten(), a


def weights(rows: int = 128, columns: int = 512) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.02


def test_the_codebook_is_bitsandbytes() -> None:
    import bitsandbytes.functional as bnb

    own = torch.tensor(nf4_codebook())
    assert torch.allclose(own, bnb.get_4bit_type("nf4", device="cpu"), rtol=0, atol=1e-6)
    made = bnb.create_normal_map()
    assert torch.allclose(
        own, torch.cat([made[:7], made[-9:]]), rtol=0, atol=1e-6
    )  # the zeros between them are padding
    shown = {int(row[i]): number(row[i + 1]) for row in table("codebook") for i in (0, 2)}
    assert [shown[i] for i in range(1, 17)] == pytest.approx(own.tolist(), abs=5e-7)


def test_the_bins_hold_nearly_equal_mass() -> None:
    top = NORMAL.inv_cdf(929 / 960)
    c = nf4_codebook()
    edges = [0.0, *(NORMAL.cdf((x + y) / 2 * top) for x, y in pairwise(c)), 1.0]
    mass = [y - x for x, y in pairwise(edges)]
    assert f"from {min(mass):.3f} to {max(mass):.3f} each" in PAGE


@pytest.mark.parametrize("double", [False, True])
def test_quantization_is_bitsandbytes(double: bool) -> None:
    import bitsandbytes.functional as bnb

    w = weights()
    packed, state = bnb.quantize_4bit(w, blocksize=64, compress_statistics=double, quant_type="nf4")
    codes, a = nf4_quantize(w)
    assert torch.equal(torch.stack([packed >> 4, packed & 15], -1).flatten().long(), codes)
    if double:  # algorithms Q3 and Q4
        mean = a.mean()
        top = torch.stack([(block - mean).abs().max() for block in torch.split(a, 256)])
        assert torch.allclose(state.offset, mean)
        assert torch.allclose(state.state2.absmax, top)
        step = (a - mean) / top.repeat_interleave(256)[: a.numel()]
        z = (step[:, None] - state.state2.code).abs().argmin(1)
        assert (state.absmax.long() - z).abs().max() <= 1  # ties
        a = state.state2.code[state.absmax.long()] * top.repeat_interleave(256)[: a.numel()] + mean
    else:
        assert torch.equal(state.absmax, a)
    back = (torch.tensor(nf4_codebook())[codes].view(-1, 64) * a[:, None]).view_as(w)
    assert torch.allclose(back, bnb.dequantize_4bit(packed, state), atol=1e-7)


def test_the_error_of_normal_weights() -> None:
    w = weights(512, 1024)
    codes, a = nf4_quantize(w)
    back = (torch.tensor(nf4_codebook())[codes].view(-1, 64) * a[:, None]).view_as(w)
    shown = re.search(r"at block 64 is ([\d.]+)%", PAGE)
    assert shown is not None
    assert 100 * float((back - w).norm() / w.norm()) == pytest.approx(float(shown[1]), abs=0.06)


# -- LoRA -------------------------------------------------------------------------------------------------------------


def test_the_gradients_of_an_adapted_layer() -> None:
    draw = torch.Generator().manual_seed(0)
    w, a, b, x, g = (
        torch.randn(*shape, generator=draw, dtype=torch.float64, requires_grad=True)
        for shape in ((7, 5), (2, 5), (7, 2), (5, 3), (7, 3))
    )
    s = 2.0
    found = torch.autograd.grad(w @ x + s * b @ (a @ x), (a, b, x), g)
    by_hand = (s * b.T @ g @ x.T, s * g @ (a @ x).T, w.T @ g + s * a.T @ b.T @ g)
    assert all(torch.allclose(one, other) for one, other in zip(found, by_hand, strict=True))


# -- bytes ------------------------------------------------------------------------------------------------------------


def test_bits_of_a_weight() -> None:
    expected = [4.5, BITS, 4.5 - BITS]
    assert (predicted_bits("nf4", False, 64), predicted_bits("nf4", True, 64)) == (4.5, BITS)
    for row, bits in zip(table("bits"), expected, strict=True):
        assert [row[2], row[3]] == [f"{bits:.4f}", f"{bits / 8:.4f}"]
    assert f"{8 * 0.5537:.2f} bits, a saving of {4.5 - 8 * 0.5537:.2f}" in PAGE


def step(precision: str, method: str = "lora", double: bool = True) -> Forecast:
    """The forecast of the page's study."""
    from transformers import GPT2Config

    config = GPT2Config(n_layer=24, n_embd=1024, n_head=16, bos_token_id=0, eos_token_id=0)
    settings: dict[str, Any] = {
        "task": {"data": "shapes.jsonl", "format": "text"},
        "precision": precision,
        "double_quant": double,
        "compute_dtype": "bfloat16",
        "adapter": {"method": method, "rank": 8, "alpha": 16, "targets": ("c_attn",)},
        "train": {"steps": 1, "batch_size": 1},
    }
    return forecast(Plan(Cell.model_validate(settings), config, Geometry(1, 128, 64)))


def test_the_formulas_are_the_forecast() -> None:
    p, linear, trained = SMALL["p"], SMALL["linear"], SMALL["trained"]
    steps = {
        "LoRA": step("bf16"),
        "QLoRA": step("nf4"),
        "QLoRA, single": step("nf4", double=False),
        "full": step("bf16", "full"),
    }
    formulas = {
        "2·p": 2 * p,
        "p_L/2": linear / 2,
        "(1/64 + 4/(64·256))·p_L": (1 / 64 + 4 / (64 * 256)) * linear,
        "(4/64)·p_L": 4 / 64 * linear,
        "2·(p − p_L)": 2 * (p - linear),
        "(4 + 2)·N_ϕ": 6 * trained,
        "4·N_ϕ": 4 * trained,
        "8·N_ϕ": 8 * trained,
        "4·p": 4 * p,
        "8·p": 8 * p,
    }
    rows = table("gpt2-medium")
    assert {row[0] for row in rows} == set(steps)
    for arm, component, formula, shown, tolerance in rows:
        assert number(shown) == formulas[formula], formula
        found = steps[arm].components[component]
        assert found == pytest.approx(number(shown), rel=float(tolerance.rstrip("%")) / 100), (arm, component)


def test_the_counts_of_gpt2_medium() -> None:
    for value in SMALL.values():
        assert f"{value:,}" in PAGE
    p, linear = SMALL["p"], SMALL["linear"]
    assert f"0.52·p = {0.52 * p / 1e6:.1f} MB, in truth {(BITS / 8 * linear + 2 * (p - linear)) / 1e6:.1f} MB" in PAGE


def test_the_65b_example() -> None:
    layer = 4 * 8192**2 + 3 * 8192 * 22016
    linear, trained = 80 * layer, 64 * RANKED
    p = linear + 80 * 2 * 8192 + 2 * 32_000 * 8192 + 8192
    assert f"p_L = {linear / 1e9:.2f}·10⁹, p = {p / 1e9:.2f}·10⁹" in PAGE
    assert f"N_ϕ = {trained / 1e9:.4f}·10⁹" in PAGE
    base = BITS / 8 * linear + 2 * (p - linear)
    adapters = [(156 - 2 * 65) * 1e9, (48 - 0.52 * 65) * 1e9]
    expected = [12 * 65e9, 12 * p, 16 * p, 2 * p + 12 * trained, 2 * p + 16 * trained, base]
    expected += [base + 16 * trained, base + 8 * trained, (4.5 - BITS) / 8 * linear, *adapters]
    assert [row[2] for row in table("65b")] == [f"{value / 1e9:.1f}" for value in expected]
    ranks = [round(value / 12 / RANKED) for value in adapters]
    assert f"ranks of {ranks[0]} and {ranks[1]}" in PAGE


def test_the_measured_arms() -> None:
    with STEPS.open(encoding="utf-8") as file:
        measured = {row["arm"]: row for row in csv.DictReader(file) if row["shape"] == "8x512"}
    peaks = {}
    for arm, checkpointing, ms, peak in table("measured"):
        found = measured[arm]
        peaks[arm] = int(found["peak_allocated_bytes"]) / 1e6
        assert [ms, peak] == [f"{float(found['ms_per_step']):.1f}", f"{peaks[arm]:,.0f}"], arm
        assert checkpointing == {"True": "yes", "False": "no"}[found["checkpointing"]]
    plain = peaks["peft: LoRA bf16"]
    four, again = peaks["peft: QLoRA matched"], peaks["peft: LoRA bf16, checkpointing"]
    own = peaks["ours: bf16 unquantized, 1"] - peaks["ours: nf4 quantized, 1"]
    assert f"{100 * (1 - four / plain):.1f}%. Checkpointing alone" in PAGE
    assert f"{100 * (1 - again / plain):.1f}%. Comparing" in PAGE
    assert f"{(2 - BITS / 8) * SMALL['linear'] / 1e6:.0f} MB. Measured: {plain - four:.0f} MB" in PAGE
    assert f"{own:.0f} MB (loracle)" in PAGE
    matched = measured["peft: QLoRA matched"]
    assert f"{float(matched['p10']):.1f} to {float(matched['p90']):.1f} ms" in PAGE


def test_the_picture_is_small_and_says_what_it_shows() -> None:
    (picture,) = re.findall(r"!\[[^\]]{60,}\]\(([^)]+\.svg)\)", PAGE)
    text = (ROOT / "docs" / picture).read_text(encoding="utf-8")
    assert len(text) < 10_000
    assert "<title" in text
    assert "<desc" in text
    assert "script" not in text
