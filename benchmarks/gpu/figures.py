"""Figures of the benchmarks, drawn from their rows alone. ``python benchmarks/gpu/figures.py FILE.json`` draws one anew."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[Mapping[str, Any]]
_COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#a463f2")
_OURS, _THEIRS = "#4269d0", "#9498a0"


def _plt() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def crossover(path: Path, rows: Rows, device: str) -> Path:
    """Peak memory and milliseconds a step over tokens a step, a colour a model; 16-bit solid, 4-bit dashed."""
    plt = _plt()
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    models = list(dict.fromkeys(row["model"] for row in rows))
    panels = (("peak_allocated_bytes", 2**30, "peak allocated, GiB"), ("ms_per_step", 1, "ms a step"))
    for axis, (key, unit, label) in zip(axes, panels, strict=True):
        for model, colour in zip(models, _COLOURS, strict=False):
            for precision, style in (("bf16", "-"), ("nf4", "--")):
                some = [r for r in rows if (r["model"], r["precision"]) == (model, precision) and r[key]]
                xs, ys = [r["tokens_per_step"] for r in some], [r[key] / unit for r in some]
                axis.plot(xs, ys, style, marker="o", markersize=3, color=colour, label=f"{model}, {precision}")
        axis.set(xlabel="tokens a step", ylabel=label)
        if any(row[key] for row in rows):  # a CPU has no peaks
            axis.set(xscale="log", yscale="log")
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=7)
    figure.suptitle(
        f"LoRA in bf16 and QLoRA in nf4 (quantized storage, r = 8, all linear layers), {device}", fontsize=10
    )
    return _save(plt, figure, path)


def steps(path: Path, shapes: Sequence[Mapping[str, Any]], device: str) -> Path:
    """Milliseconds a run and step of every arm, a panel a shape, with both peaks (allocated / reserved); whiskers from p10 to p90."""
    plt = _plt()
    tallest = max(len(shape["rows"]) for shape in shapes)
    size = (6 * len(shapes) + 1, 0.32 * tallest + 1.2)
    figure, axes = plt.subplots(1, len(shapes), figsize=size, layout="constrained", squeeze=False)
    for axis, shape in zip(axes[0], shapes, strict=True):
        rows = [row for row in shape["rows"] if row["ms_per_member_step"] is not None]
        values = [row["ms_per_member_step"] for row in rows]
        low = [row["ms_per_member_step"] - row["p10"] / row["members"] for row in rows]
        high = [row["p90"] / row["members"] - row["ms_per_member_step"] for row in rows]
        colours = [_OURS if row["arm"].startswith("ours") else _THEIRS for row in rows]
        places = list(range(len(rows)))
        axis.barh(places, values, color=colours, xerr=[low, high], error_kw={"elinewidth": 0.8})
        names = [_named(row) for row in rows]
        axis.set_yticks(places, names, fontsize=7)
        axis.invert_yaxis()
        axis.set_xlabel("ms a run and step", fontsize=8)
        axis.set_title(shape["shape"], fontsize=9)
        for place, value, row in zip(places, values, rows, strict=True):
            axis.text(value, place, f" {value:.1f}{_peaks(row)}", va="center", fontsize=6)
        axis.set_xlim(right=1.35 * max(values))
    figure.suptitle(f"GPT-2 medium, r = 8 on c_attn, {device}", fontsize=10)
    return _save(plt, figure, path)


def _named(row: Mapping[str, Any]) -> str:
    """The arm with its storage, once."""
    stored = "" if row["storage"] in row["arm"] else f" ({row['storage']})"
    return row["arm"] + (" runs" if row["members"] > 1 else "") + stored


def _peaks(row: Mapping[str, Any]) -> str:
    """Both peaks, where they were measured."""
    if row["peak_allocated_bytes"] is None:
        return ""
    return f"  ({row['peak_allocated_bytes'] / 2**30:.1f} / {row['peak_reserved_bytes'] / 2**30:.1f} GiB)"


def _save(plt: Any, figure: Any, path: Path) -> Path:
    target = path.with_name(path.name + ".png")
    figure.savefig(target, dpi=130)
    plt.close(figure)
    return target


def main() -> None:
    """Draw the figure of a result file beside it."""
    source = Path(sys.argv[1])
    data = json.loads(source.read_text(encoding="utf-8"))
    stem = source.with_suffix("")
    if data["benchmark"] == "crossover":
        print(crossover(stem, data["rows"], data["device"]))
    elif data["benchmark"] == "steps":
        print(steps(stem, data["shapes"], data["device"]))
    else:
        raise SystemExit(f"{source}: there is no figure of {data['benchmark']}")


if __name__ == "__main__":
    main()
