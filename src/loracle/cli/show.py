"""Plain text for people: aligned columns, sizes, times. No escape codes, so it can be piped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Aligned columns; numbers should come as text already."""
    cells = [[str(cell) for cell in row] for row in [heads, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def count(value: float | None) -> str:
    """``1,234``, or ``?`` where unknown."""
    return "?" if value is None else f"{value:,.0f}"


def size(value: float | None) -> str:
    """Bytes as MB (10^6), in one unit down a column."""
    return "?" if value is None else f"{value / 1e6:,.1f} MB"


def duration(seconds: float | None) -> str:
    """``2 min 05 s``."""
    if seconds is None:
        return "not measured"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def plan_text(plan: Mapping[str, Any]) -> str:
    """A plan as tables: cells, cohorts, data, and the total."""
    parts = [f"study {plan['study']}, plan {plan['plan_id']}", _cells(plan), _cohorts(plan)]
    if plan["data"]:
        parts.append(_data(plan["data"]))
    null = sum(run["role"] == "null" for run in plan["runs"])
    total = f"{len(plan['runs'])} runs ({null} of them for the similarity null) in {len(plan['cohorts'])} cohorts"
    parts.append(f"{total}, {plan['workers']} worker(s) at a time; training time {duration(plan['estimated_s'])}")
    if plan.get("looks"):
        more = ", ".join(f"{len(later['runs'])} at {later['look']} seeds" for later in plan["later"]) or "none"
        parts.append(f"looks at {', '.join(map(str, plan['looks']))} seeds; with --decide further runs: {more}")
    return "\n\n".join(parts)


def _cells(plan: Mapping[str, Any]) -> str:
    from loracle.study.fits import verdict

    labels = {cell["id"]: cell["label"] for cell in plan["cells"]}
    fits = any(cell.get("fit") for cell in plan["cells"])
    heads = ["cell", "trainable", "total", "peak (predicted)" if fits else "memory (predicted)"]
    heads += [*(["one GPU"] if fits else []), "bits/param", "against", "differs in"]
    rows = [
        [
            cell["id"],
            count(cell["trainable_params"]),
            count(cell["total_params"]),
            size(cell["predicted_bytes"]),
            *([verdict(cell)] if fits else []),
            "-" if cell["effective_bits"] is None else f"{cell['effective_bits']:.3f}",
            labels.get(cell["reference"] or cell.get("nearest"), "-"),
            ", ".join(cell["differences"]) or "-",
        ]
        for cell in plan["cells"]
    ]
    return "\n".join([table(heads, rows), *_unchosen(plan), *_budgets(plan), *_equal_parameters(plan)])


def _unchosen(plan: Mapping[str, Any]) -> list[str]:
    """Cells that are no cells yet."""
    return [
        f"{one['cells']} more with precision {{{', '.join(f'{k}: {v}' for k, v in one['precision'].items())}}}: "
        "`loracle run` measures which matrices to keep, `loracle plan --measure` shows them"
        for one in plan.get("unchosen", [])
    ]


def _equal_parameters(plan: Mapping[str, Any]) -> list[str]:
    """The ranks that were chosen for ``adapter.parameters``, and how far off they are."""
    from loracle.spec.factors import targets_label

    found: dict[str, None] = {}
    for cell in plan["cells"]:
        if sizes := cell.get("parameters"):
            asked, off = count(sizes["asked"]), sizes["off_percent"]
            found[f"rank {cell['rank']} for {asked} parameters on {targets_label(cell['targets'])}: {off:+.1f}%"] = None
    return list(found)


def _budgets(plan: Mapping[str, Any]) -> list[str]:
    """Against which memory it was said what fits."""
    from loracle.study.fits import amount

    fits = [cell["fit"] for cell in plan["cells"] if cell.get("fit")]
    named = {(fit.get("budget_bytes"), fit.get("budget_source")) for fit in fits}
    return [f"planned for {amount(size_)} of one GPU" + (f" ({source})" if source else "") for size_, source in named]


def _cohorts(plan: Mapping[str, Any]) -> str:
    needs = any(c.get("needs_bytes") is not None for c in plan["cohorts"])
    rows = [
        [
            c["id"],
            len(c["runs"]),
            *([size(c.get("needs_bytes"))] if needs else []),
            c["threads"],
            count(c["steps"]),
            duration(c["estimated_s"]),
        ]
        for c in plan["cohorts"]
    ]
    return table(["cohort", "runs", *(["needs (predicted)"] if needs else []), "threads", "steps", "time"], rows)


def _data(data: Mapping[str, Any]) -> str:
    heads = ["data", "read", "train", "eval", "dropped", "duplicates", "overlap", "truncated", "target tokens"]
    rows = []
    for key, audit in data.items():
        share = audit.get("target_token_share")
        figures = [audit.get(name) for name in ("rows_read", "train_rows", "eval_rows")]
        dropped = sum((audit.get("dropped") or {}).values())
        found = [audit.get(name) for name in ("duplicates", "overlap", "truncated")]
        rows.append(
            [key, *map(count, figures), count(dropped), *map(count, found), "?" if share is None else f"{share:.0%}"]
        )
    return table(heads, rows)


def data_warnings(data: Mapping[str, Any]) -> list[str]:
    """What of the data audit the user should look at."""
    found: list[str] = []
    for key, audit in data.items():
        if audit.get("status", "done") not in ("done", "ok", None):
            found.append(f"data {key}: {audit.get('reason') or 'could not be read'}")
        for reason, rows in (audit.get("dropped") or {}).items():
            if rows:
                found.append(f"data {key}: {rows:,} row(s) dropped: {reason}")
        for name, text in (
            ("duplicates", "row(s) stand more than once"),
            ("overlap", "evaluation row(s) also stand in the training rows: the evaluation is not independent"),
            ("truncated", "row(s) are longer than task.max_length and were cut"),
            ("zero_target_rows", "row(s) have no target token and teach nothing"),
        ):
            if audit.get(name):
                found.append(f"data {key}: {audit[name]:,} {text}")
    return found
