"""Figures of the benchmarks, drawn from their rows alone.

``python benchmarks/gpu/figures.py FILE.json`` draws that of steps anew; that of crossover comes from ``crossover_cuda.py --redraw``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[Mapping[str, Any]]
_COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#a463f2")
_SIDES = {"bf16": "-", "nf4": "--"}
_OURS, _THEIRS = "#4269d0", "#9498a0"


def _plt() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def crossover(path: Path, rows: Rows, device: str) -> Path:
    """Over tokens a step, a colour a model: peaks (16-bit solid, 4-bit dashed), the share that 4 bits save, and how many times as long
    their step is, with whiskers from p10 / p90 to p90 / p10 of the two."""
    plt = _plt()
    figure, (peaks, saved, slower) = plt.subplots(1, 3, figsize=(13, 4.4), layout="constrained")
    models = list(dict.fromkeys(row["model"] for row in rows))
    for index, model in enumerate(models):
        sides = [{r["tokens_per_step"]: r for r in rows if (r["model"], r["precision"]) == (model, p)} for p in _SIDES]
        pairs = [(tokens, sides[0][tokens], sides[1][tokens]) for tokens in sides[0] if tokens in sides[1]]
        colour = _COLOURS[index % len(_COLOURS)]
        for precision, side in zip(_SIDES, sides, strict=True):
            found = [(x, row["peak_allocated_bytes"] / 2**30) for x, row in side.items() if row["peak_allocated_bytes"]]
            named = {"label": f"{model}, {precision}", "color": colour, "linestyle": _SIDES[precision]}
            peaks.plot(*_columns(found, 2), marker="o", markersize=3, **named)
        _savings(saved, pairs, label=model, color=colour, below=index == 0 and len(models) > 1)
        _slowdowns(slower, pairs, label=model, color=colour, aside=1.05 ** (index - (len(models) - 1) / 2))
    if any(row["peak_allocated_bytes"] for row in rows):  # a CPU has no peaks
        peaks.set_yscale("log", base=2)
        peaks.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        saved.margins(y=0.1)
    slower.axhline(1, color=_THEIRS, linewidth=0.8)
    titles = (
        "peak allocated, GiB",
        "saved by nf4, % of the peak in bf16",
        "ms a step, nf4 / bf16 (whiskers: p10, p90)",
    )
    tokens = sorted({row["tokens_per_step"] for row in rows})
    for axis, title in zip((peaks, saved, slower), titles, strict=True):
        axis.set_title(title, fontsize=10)
        axis.set_xscale("log", base=2)
        axis.set_xlim(tokens[0] / 1.5, tokens[-1] * 1.8)
        axis.set_xticks(tokens, [f"{x:,}" for x in tokens], fontsize=8, rotation=45 if len(tokens) > 5 else 0)
        axis.set_xlabel("tokens a step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, loc="lower left" if axis is slower else "best")
    figure.suptitle(
        f"LoRA in bf16 and QLoRA in nf4 (quantized storage, r = 8, all linear layers), {device}", fontsize=10
    )
    return _save(plt, figure, path)


Pairs = Sequence[tuple[int, Mapping[str, Any], Mapping[str, Any]]]
"""``(tokens a step, the row in bf16, the row in nf4)`` of one model's points."""


def _savings(axis: Any, pairs: Pairs, label: str, color: str, below: bool) -> None:
    """The saved share of each point where both fit, written beside it."""
    key = "peak_allocated_bytes"
    found = [(x, 100 * (1 - nf4[key] / bf16[key])) for x, bf16, nf4 in pairs if bf16[key] and nf4[key]]
    axis.plot(*_columns(found, 2), marker="o", markersize=4, label=label, color=color)
    for x, share in found:
        place: dict[str, Any] = {"xytext": (-3, -11), "ha": "right"} if below else {"xytext": (4, 4)}
        axis.annotate(f"{share:.1f}", (x, share), textcoords="offset points", fontsize=7, color=color, **place)


def _slowdowns(axis: Any, pairs: Pairs, label: str, color: str, aside: float) -> None:
    """The ratio of each point that was timed on both sides; ``aside`` moves it, so that whiskers do not hide each other."""
    found = []
    for x, bf16, nf4 in pairs:
        if (middle := nf4["ms_over_bf16"]) is not None:
            low, high = nf4["p10"] / bf16["p90"], nf4["p90"] / bf16["p10"]
            found.append((x * aside, middle, max(0.0, middle - low), max(0.0, high - middle)))
    xs, ys, down, up = _columns(found, 4)
    axis.errorbar(
        xs, ys, [down, up], marker="o", markersize=4, capsize=2, elinewidth=0.8, linestyle=":", label=label, color=color
    )


def _columns(rows: Sequence[Sequence[float]], count: int) -> list[list[float]]:
    """Rows as ``count`` columns, of which there may be none."""
    return [[row[i] for row in rows] for i in range(count)]


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
        for place, value, more, row in zip(places, values, high, rows, strict=True):
            axis.text(value + max(0.0, more), place, f" {value:.1f}{_peaks(row)}", va="center", fontsize=6)
        axis.set_xlim(right=1.5 * max(values))
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
    """Draw the figure of a steps file beside it."""
    source = Path(sys.argv[1])
    data = json.loads(source.read_text(encoding="utf-8"))
    stem = source.with_suffix("")
    if data["benchmark"] == "steps":
        print(steps(stem, data["shapes"], data["device"]))
    else:
        raise SystemExit(f"{source}: not drawn here: {data['benchmark']}")


if __name__ == "__main__":
    main()
