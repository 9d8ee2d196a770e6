"""The figures of docs/speed.md and docs/memory.md are those of the dated files in benchmarks/."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SPEED, MEMORY = ((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("speed", "memory"))

PARTS = ("until the plan (start, inspect)", "cohorts in all", "after the cohorts (report)")


def result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / f"2026-11-28-{name}.json").read_text(encoding="utf-8"))
    return found


def mib(value: int) -> str:
    return f"{value / 2**20:,.0f}".replace("-0", "0").replace("-", "−")


def both(row: dict[str, Any]) -> str:
    return f"{mib(row['peak_allocated_bytes'])} / {mib(row['peak_reserved_bytes'])}"


def spread(found: dict[str, Any], digits: int = 1) -> str:
    return f"({found['least']:.{digits}f} to {found['greatest']:.{digits}f})"


def ratios(found: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(ratio["of"], ratio["over"]): ratio for ratio in found}


def test_steps() -> None:
    large, small = result("steps-nvidia-h200")["shapes"]
    rows = {row["arm"]: row for row in large["rows"]}
    shown = ["peft: usual QLoRA recipe", "peft: QLoRA matched", "peft: QLoRA matched, compiled", "peft: LoRA bf16"]
    shown += [
        "ours: nf4 quantized, 1",
        "ours: nf4 dequantized, 1",
        "ours: bf16 unquantized, 1",
        "ours: nf4 quantized, 8",
    ]
    for row in (rows[name] for name in shown):
        assert f"| {row['storage']} | {row['ms_per_member_step']:.1f} | {both(row)}" in SPEED, row["arm"]
    one = "ours: nf4 quantized, 1"
    for name, digits in (("usual QLoRA recipe", 1), ("QLoRA matched", 1), ("QLoRA matched, compiled", 1)):
        ratio = ratios(large["ratios"])[f"peft: {name}", one]
        assert f"{ratio['median']:.{digits}f} times {spread(ratio)}" in SPEED, name
    for found, members in ((large, 1), (large, 8), (small, 1)):
        ratio = ratios(found["ratios"])[f"ours: nf4 quantized, {members}", f"ours: bf16 unquantized, {members}"]
        assert f"{ratio['median']:.3f} times" in SPEED
        assert spread(ratio, 3) in SPEED
    times = {row["arm"]: row["ms_per_member_step"] for row in small["rows"]}
    assert f"take {times['ours: nf4 quantized, 8']:.1f} ms each, one alone {times[one]:.1f} ms" in SPEED
    assert f"PEFT's matched run {times['peft: QLoRA matched']:.0f} ms" in SPEED


def test_a_whole_study() -> None:
    found, alone = result("study-nvidia-h200"), result("study-matched-nvidia-h200")
    walls = [" and ".join(f"{one['wall_s']:.1f}" for one in part["ours"]) for part in (found, alone)]
    rows = [(estimate, walls[0]) for estimate in found["estimates"]] + [(alone["estimates"][0], walls[1])]
    for estimate, wall in rows:
        cells = f"| {estimate['makespan_s']:,.1f}, extrapolated | {wall} | {estimate['over_ours']:.1f} |"
        assert cells in SPEED, cells
        assert estimate["extrapolated"] == "from 2 LoRA and 2 QLoRA runs to 24"
    for estimate in found["estimates"]:
        assert f"{estimate['lora_run_s']:.1f} and {estimate['qlora_run_s']:.1f} s" in SPEED
    later = alone["estimates"][0]
    assert f"({later['first_lora_run_s']:.1f} s)" in SPEED
    assert f"took {later['lora_run_s']:.1f} s" in SPEED
    assert f"QLoRA's took {later['first_qlora_run_s']:.1f} and then {later['qlora_run_s']:.1f} s" in SPEED
    parts = [f"{found['ours'][-1]['parts'][name]:.0f}" for name in PARTS]
    assert f"{parts[0]} went by until the plan, {parts[1]} in the cohorts, {parts[2]} after them" in SPEED
    for cohort in found["ours"][-1]["cohorts"]:
        assert f"{cohort['storage']} | {' | '.join(both(cohort).split(' / '))} |" in SPEED
    runs = {run["kind"]: run for run in found["rivals"][0]["runs"]}
    for kind in ("usual", "matched"):
        lora, qlora = runs[f"{kind} LoRA"], runs[f"{kind} QLoRA"]
        peaks = [
            " / ".join(mib(run[f"peak_{which}_bytes"]) for run in (lora, qlora)) for which in ("allocated", "reserved")
        ]
        assert f"| {peaks[0]} | {peaks[1]} |" in SPEED
    step = {row["arm"]: row["ms_per_step"] for row in result("steps-nvidia-h200")["shapes"][1]["rows"]}
    around = runs["usual QLoRA"]["run_s"] - runs["usual QLoRA"]["train_s"]
    qlora_s = around + 0.2 * step["peft: usual QLoRA recipe"]
    total = found["estimates"][0]["start_s"] + 12 * (later["lora_run_s"] + qlora_s)
    assert f"would need {total:.0f} s, {total / found['ours_median_s']:.1f} times ours" in SPEED


def test_beside_unsloth() -> None:
    found = result("unsloth-nvidia-h200")
    rows = {row["arm"]: row for row in found["rows"]}
    after = {row["arm"]: row["peak_allocated_mib"] for row in result("peaks-nvidia-h200")["rows"]}
    for arm, row in rows.items():
        cells = f"| {row['ms_per_member_step']:.1f} | {both(row)} | " + (f"{after[arm]:,} |" if arm in after else "")
        assert cells in SPEED or arm == "ours, dequantized, 16 of 4x64", arm
    pairs = ratios(found["ratios"])
    for on, word in ((False, ""), (True, ", checkpointing")):
        for what in ("1 of 4x512", "1 of 4x64", "16 of 4x64"):
            ratio = pairs[f"unsloth, checkpointing {on}, {what.split()[-1]}", f"ours, quantized{word}, {what}"]
            assert f"{ratio['median']:.1f}" in SPEED
            assert spread(ratio) in SPEED, ratio


def test_the_ledger() -> None:
    found = result("ledger-nvidia-h200")
    summary = found["summary"]
    assert f"On {summary['cells']} cells" in MEMORY
    errors = f"{summary['median_error']:.2%} in the median and by {summary['largest_error']:.2%} at most"
    assert errors in MEMORY
    done = [cell for cell in found["cells"] if cell["status"] == "done"]
    explained = sum(abs(cell["unexplained_share"]) < 0.01 for cell in done)
    worst = max(done, key=lambda cell: abs(cell["unexplained_share"]))
    share = f"{abs(worst['unexplained_share']):.1%}"
    assert f"in {explained} of them, {share} in the worst, an {worst['precision']} cell" in MEMORY
    left = max(abs(cell["unexplained_share"]) for cell in done if cell["checkpointing"])
    assert f"at most {left:.1%} in those with checkpointing" in MEMORY
    assert f"{summary['seconds']:.0f} s" in MEMORY
    reserved = [abs(c["predicted_reserved_bytes"] / c["measured_reserved_bytes"] - 1) for c in done]
    assert f"off by {statistics.median(reserved):.1%} in the median and by {max(reserved):.1%} at most" in MEMORY
    seconds = sorted(cell["forecast_s"] for cell in done)
    assert f"in {seconds[0]:.1f} to {seconds[-2]:.1f} s a cell\n({seconds[-1]:.1f} s the first of a process" in MEMORY
    cohorts = result("study-nvidia-h200")["ours"][0]["cohorts"]
    shown = [" and ".join(mib(c[f"peak_{which}_bytes"]) for c in cohorts) for which in ("allocated", "reserved")]
    assert f"of {shown[0]} MiB had {shown[1]} reserved" in MEMORY
    large = {(c["precision"], c["batch"]): c for c in done if c["shape"] == "Llama-7B" and c["length"] == 512}
    for batch in (1, 4):
        bf16, nf4 = (large[side, batch] for side in ("bf16", "nf4"))
        sizes = " and ".join(f"{cell['measured_bytes'] / 1e6:,.0f}" for cell in (bf16, nf4))
        saved = 1 - nf4["measured_bytes"] / bf16["measured_bytes"]
        assert f"{sizes} MB at {batch} × 512 ({saved:.1%}" in MEMORY
        assert max(abs(cell["error"]) for cell in (bf16, nf4)) < 0.004


def test_the_time_of_a_sweep() -> None:
    page = (ROOT / "docs" / "predicting.md").read_text(encoding="utf-8")
    seconds = {row["model"]: row["seconds"] for row in result("sensitivity-nvidia-h200")["rows"]}
    assert f"takes {seconds['gpt2-medium']:.1f} s for GPT-2 medium's shape" in page
    assert f"{seconds['tinyllama-1.1b']:.1f} s for TinyLlama's and {seconds['llama-7b']:.0f} s for a 7B's" in page


def test_memory_by_rank() -> None:
    found = result("memory-table-nvidia-h200")
    places = [("bf16", False), ("bf16", True), ("nf4", False), ("nf4", True)]
    peaks = {
        (c["rank"], c["by"], c["precision"], c["checkpointing"]): c["peak_allocated_bytes"] for c in found["cells"]
    }
    for entry in found["attribution"]:
        rank, by = entry["rank"], entry["by"]
        name = {"ours": "loracle", "peft matched": "PEFT matched", "peft usual": "PEFT usual"}[by]
        cells = [mib(peaks[rank, by, *place]) if (rank, by, *place) in peaks else "" for place in places]
        parts = [str(entry.get(f"by_{what}_percent", "")) for what in ("quantization", "checkpointing")]
        line = " | ".join([f"| {name}, r = {rank}", *cells, f"{entry['saving_percent']}%", *parts])
        assert re.sub(r"\s+", " ", line) in re.sub(r"\s+", " ", MEMORY), line
    for entry in found["additions"]:
        times = entry["times_matched"]
        assert f"| {mib(entry['bytes_more'])} | {times['median']:.2f} {spread(times, 2)} |" in MEMORY, entry["what"]


def test_where_four_bits_save() -> None:
    parts = [result(f"crossover{name}-nvidia-h200") for name in ("", "-llama-7b")]
    found = {key: [row for part in parts for row in part[key]] for key in ("rows", "savings")}
    rows = {(row["model"], row["precision"], row["tokens_per_step"]): row for row in found["rows"]}
    models = list(dict.fromkeys(row["model"] for row in found["rows"]))
    saved = {(entry["model"], entry["tokens_per_step"]): entry for entry in found["savings"]}
    for tokens in (256, 1024, 4096, 16384):
        [line] = [line for line in MEMORY.splitlines() if line.startswith(f"| {tokens:,} (")]
        for model in models:
            bf16, nf4 = rows[model, "bf16", tokens], rows[model, "nf4", tokens]
            rounds = sorted(b / a for a, b in zip(bf16["repeats"], nf4["repeats"], strict=True))
            times = f"{nf4['ms_over_bf16']:.2f} ({rounds[0]:.2f} to {rounds[-1]:.2f})"
            assert f"{saved[model, tokens]['saved_percent']}%, " in line
            assert times in (line if (model, tokens) != ("gpt2", 16384) else MEMORY), (model, tokens)
    small = [rows["llama-7b", side, 256]["ms_per_step"] for side in ("nf4", "bf16")]
    assert f"({small[0]:.1f} for {small[1]:.1f} ms)" in MEMORY
    for model in models:
        least, greatest = (
            pick(s["saved_bytes"] for s in found["savings"] if s["model"] == model) for pick in (min, max)
        )
        assert f"{mib(least)} to {mib(greatest)}" in MEMORY
    for tokens in (256, 16384):
        sides = [[rows[model, side, tokens]["peak_reserved_bytes"] for side in ("bf16", "nf4")] for model in models]
        shares = [f"{100 * (1 - nf4 / bf16):.1f}" for bf16, nf4 in sides]
        assert f"at {tokens:,} tokens {', '.join(shares[:-1])} and {shares[-1]}%" in MEMORY
