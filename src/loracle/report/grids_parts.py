"""Tables to read of what only some studies have: methods side by side, labels taken for others, chat latency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from loracle.report import wording
from loracle.report.columns import Table
from loracle.report.evidence import StudyData
from loracle.report.grids import Grid, Item
from loracle.report.inert import plain

MAX_CONFUSED, MAX_CLASSES = 15, 100


def methods(data: StudyData, table: Table) -> list[Grid]:
    """Quality, then cost, of each cell; nothing for a study of one method."""
    if len(data.methods) < 2:
        return []
    return [_quality(data, table), *_against(data, table), _cost(table)]


def _quality(data: StudyData, table: Table) -> Grid:
    metric = data.task_metric()
    heads = ["cell", "trained parameters", "share", "evaluation loss", *([wording.metric(metric)] if metric else [])]
    rows = []
    for row in table.rows:
        cells = [wording.count(row["trainable_params"]), _percent(row["trainable_percent"])]
        cells += [_between(row, ("eval_loss_mean", "eval_loss_low", "eval_loss_high"), wording.loss)]
        cells += [_between(row, ("metric_mean", "metric_low", "metric_high"), wording.fraction)] if metric else []
        rows.append([Item(str(row["label"])), *(Item(text, number=True) for text in cells)])
    return Grid("Quality by method", heads, rows, "Means over seeds, with 95% intervals where there are three or more.")


def _against(data: StudyData, table: Table) -> list[Grid]:
    """Each cell beside LoRA of its precision; nothing where no two cells can be held against each other."""
    metric, found = data.task_metric(), [row for row in table.rows if row.get("against")]
    if not found:
        return []
    change = ("", "_low", "_high")
    heads = [
        "cell",
        "against",
        "evaluation loss",
        *([wording.metric(metric)] if metric else []),
        "seeds",
        "also differs in",
    ]
    rows = []
    for row in found:
        other = data.by_cell.get(str(row["against"]))
        numbers = [_between(row, [f"eval_loss_change{part}_percent" for part in change], _signed)]
        numbers += [_between(row, ("difference_vs_lora", "low", "high"), _points)] if metric else []
        numbers.append(str(row["difference_n"]))
        names = [Item(str(row["label"])), Item(other.label if other else str(row["against"]))]
        others = plain(row["against_differs_in"] or "")
        beside = Item(f"confounded: {others}" if others else wording.NONE)
        rows.append([*names, *(Item(text, number=True) for text in numbers), beside])
    first = "LoRA" if "lora" in data.methods else data.methods[0]
    note = (
        "Paired by seed, with 95% intervals over seeds and evaluation items. No claim was written down, so there is no "
    )
    note += "verdict. What else differs than the method makes it a comparison of recipes."
    return [Grid(f"Against {first} of the same precision", heads, rows, note)]


def _cost(table: Table) -> Grid:
    heads = ["cell", "weights", "trained", "gradients", "optimizer", "sum", "measured peak", "step", "run", "reloads"]
    rows = []
    for row in table.rows:
        sizes = [row[f"{name}_bytes"] for name in ("base", "trainable", "gradients", "optimizer")]
        cells = [wording.size(x) for x in (*sizes, row["tensor_bytes_sum"], row["peak_allocated_bytes"])]
        step = row["ms_per_step"]
        cells += [wording.NONE if step is None else f"{step:.1f} ms", wording.seconds(row["wall_s_mean"])]
        cells += [{True: "yes", False: "no"}.get(row["reload_passed"], wording.NONE)]
        rows.append([Item(str(row["label"])), *(Item(text, number=True) for text in cells)])
    reasons = dict.fromkeys(str(row["peak_reason"]) for row in table.rows if row.get("peak_reason"))
    note = "Bytes of the tensors as they lay after training, measured; a peak also holds activations."
    note += "".join(f" No peak: {plain(reason)}." for reason in reasons)
    return Grid("Cost by method", heads, rows, note)


def _between(row: Mapping[str, Any], names: Sequence[str], show: Callable[[float | None], str]) -> str:
    """A figure and its interval, from three columns; the bare figure where there is no interval."""
    value, low, high = (row.get(name) for name in names)
    text = show(value)
    return text if low is None else f"{text} ({show(low)} to {show(high)})"


def _signed(percent: float | None) -> str:
    return wording.NONE if percent is None else f"{percent:+.1f}%"


def _points(difference: float | None) -> str:
    return wording.NONE if difference is None else f"{100 * difference:+.1f} pt"


def _percent(value: float | None) -> str:
    return wording.NONE if value is None else f"{value:.3g}%"


def confused(table: Table) -> Grid | None:
    """The pairs of labels that are most often taken for each other, over all cells and seeds."""
    counts: Counter[tuple[str, str]] = Counter()
    items: Counter[str] = Counter()
    for row in table.rows:
        items[str(row["reference"])] += row["count"]
        if row["reference"] != row["prediction"]:
            counts[str(row["reference"]), str(row["prediction"])] += row["count"]
    if not items:
        return None
    most = sorted(counts.items(), key=lambda found: (-found[1], found[0]))[:MAX_CONFUSED]
    rows = [
        [
            Item(plain(right)),
            Item(plain(said)),
            Item(str(n), number=True),
            Item(wording.fraction(n / items[right]), number=True),
        ]
        for (right, said), n in most
    ]
    note = "Over all finished runs; the share is of the right label's items."
    return Grid("Labels most often confused", ["right", "said", "times", "share"], rows, note) if rows else None


def classes(table: Table) -> Iterator[Grid]:
    """F1 of each label by cell."""
    labels = list(dict.fromkeys(str(row["class"]) for row in table.rows))
    names = list(dict.fromkeys(str(row["label"]) for row in table.rows))
    if not labels:
        return
    found = {(str(row["class"]), str(row["label"])): row for row in table.rows}
    rows = []
    for label in labels[:MAX_CLASSES]:
        known = [found.get((label, name)) for name in names]
        support = max((row["support"] for row in known if row), default=None)
        scores = [wording.fraction(row["f1_mean"] if row else None) for row in known]
        rows.append([Item(plain(label)), *(Item(text, number=True) for text in (wording.count(support), *scores))])
    left = f" {len(labels) - MAX_CLASSES} further labels are in the table." if len(labels) > MAX_CLASSES else ""
    note = f"F1, mean over seeds; precision and recall are in tables/classes.csv.{left}"
    yield Grid("F1 by label", ["label", "items", *names], rows, note)


def latency(table: Table) -> Grid | None:
    """How long answers take, one prompt at a time."""
    if not table.rows:
        return None
    heads = ["cell", "mean", "median", "95th percentile", "first token", "words an answer", "device"]
    rows = []
    for row in table.rows:
        names = ("latency_mean_s", "latency_median_s", "latency_p95_s", "first_token_median_s")
        cells = [wording.NONE if row[n] is None else f"{row[n]:.3g} s" for n in names]
        cells += [wording.count(row["answer_words_mean"])]
        rows.append(
            [
                Item(str(row["label"])),
                *(Item(text, number=True) for text in cells),
                Item(plain(row["device"] or wording.NONE)),
            ]
        )
    note = "One prompt at a time, greedy, in the storage that the adapter is used in; the first token is the median."
    return Grid("Latency of answers", heads, rows, note)
