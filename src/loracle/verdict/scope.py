"""Which cells are compared, and what a comparison is about: references, labels, scopes, groups along the
rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from loracle.spec.factors import PATTERNS, pattern_label
from loracle.spec.types import is_quantized
from loracle.verdict.claims import Claim
from loracle.verdict.comparisons import Comparison
from loracle.verdict.confounds import (
    TRAINABLE,
    Differences,
    Guard,
    differences,
    factor,
    flatten,
    guard,
    has_rank,
    placed,
    precision_label,
    sizes_differ,
)
from loracle.verdict.evidence import Pairing, Record, StudyEvidence, pair

BY_PRECISION = {"precision", "double_quant", "block_size", "compute_dtype"}
BY_RANK = {"rank", "alpha", "alpha_pattern"}
OF_ITS_OWN = {"method", "base", "task"}


def arms(found: StudyEvidence) -> list[Record]:
    """Cells that have a reference, in the plan's order."""
    return [c for c in found.cells.values() if c.get("reference") in found.cells]


def pairs(found: StudyEvidence) -> list[tuple[Record, Record]]:
    """(arm, what it is held against): twins in the plan's order, then quantized cells without one, beside their ``nearest``."""
    twins = [(arm, found.cells[str(arm["reference"])]) for arm in arms(found)]
    alone = [c for c in found.cells.values() if quantized(c) and c.get("reference") not in found.cells]
    beside = [(cell, nearest(cell, references(found))) for cell in alone]
    return twins + [(cell, near) for cell, near in beside if near is not None]


def nearest(cell: Record, among: Sequence[Record]) -> Record | None:
    """The 16-bit cell of the same base, task and method with the fewest other differences: what a reader would set a cell beside
    that has no twin. (What else differs is for ``check`` to say.)
    """
    like = [(c, set(_differences(cell, c).changed)) for c in among if method_of(c) == method_of(cell)]
    near = [(c, names) for c, names in like if not names & {"base", "task"}]
    return min(near, key=lambda one: len(one[1]))[0] if near else None


def references(found: StudyEvidence) -> list[Record]:
    """The 16-bit cells. (A quantized cell without a 16-bit twin has no reference either, and is none.)"""
    return [c for c in found.cells.values() if not c.get("reference") and not quantized(c)]


def quantized(cell: Record) -> bool:
    """Whether any of the cell's linear layers is."""
    return is_quantized(cell.get("precision"))


def rank_of(cell: Record) -> int | None:
    """The cell's rank; None where its method has none, whatever the plan holds."""
    rank = cell.get("rank")
    known = isinstance(rank, int) and not isinstance(rank, bool) and has_rank(method_of(cell))
    return rank if known else None


def adapter_size(cell: Record) -> int | None:
    """Trainable parameters of the cell without its classification head; None where the plan does not say."""
    found = cell.get("trainable_params")
    return found - int(cell.get("head_params") or 0) if isinstance(found, int) else None


def method_of(cell: Record) -> str:
    """The cell's method; plans of the first version name none but LoRA."""
    return str(cell.get("method") or "lora")


def label(cell: Record) -> str:
    """The cell's precision in words; a method other than LoRA is named with it."""
    words = precision_label(cell.get("precision"))
    return words if method_of(cell) == "lora" else f"{method_of(cell)} {words}"


def scope_of(found: StudyEvidence, cell: Record) -> dict[str, Any]:
    """Precision, rank and every other swept factor of a cell."""
    scope: dict[str, Any] = {"precision": precision_label(cell.get("precision"))}
    if rank_of(cell) is not None:
        scope["rank"] = rank_of(cell)
    return scope | other_factors(found, cell)


def other_factors(found: StudyEvidence, cell: Record) -> dict[str, Any]:
    """Swept factors beside precision and rank, less what those two determine (block size, alpha: 2r), and what the method does
    (full fine-tuning's own learning rate).
    """
    own = _by_factor(cell)
    return {name: _shown(name, own.get(name)) for name in _swept(found) if name in own}


def rank_groups(found: StudyEvidence, cells: Sequence[Record]) -> list[dict[int, Record]]:
    """Cells alike in all but the rank, ``{rank: cell}`` each, in the plan's order."""
    groups: dict[str, dict[int, Record]] = {}
    for cell in cells:
        rank = rank_of(cell)
        if rank is not None:
            key = repr((precision_label(cell.get("precision")), *_own_settings(cell), other_factors(found, cell)))
            groups.setdefault(key, {})[rank] = cell
    return list(groups.values())


def compare(
    found: StudyEvidence, claim: Claim, arm: Record, reference: Record, swept: str, bundle: Any = None
) -> Comparison:
    """An arm against a reference under a claim, with its pairing and its guard against confounding."""
    pairing = pair(found, arm, reference)
    scope = scope_of(found, arm)
    if claim.question == "task_metric":
        scope["metric"] = claim.metric
    note = _guessing(found, pairing) if claim.question == "gain_kept" else ""
    names = (
        (label(arm), label(reference)) if swept != "rank" else (f"rank {rank_of(arm)}", f"rank {rank_of(reference)}")
    )
    return Comparison(claim, pairing, scope, check(found, arm, reference, swept, bundle, pairing), names, note)


def _guessing(found: StudyEvidence, pairing: Pairing) -> str:
    """What the gain of a classification head is a gain over: the base has no head to be evaluated with."""
    runs = found.runs.get(str(pairing.reference["id"]), {}).values()
    if not any(((r.get("config") or {}).get("task") or {}).get("type") == "classification" for r in runs):
        return ""
    return "Before tuning there is no head: the gain is over guessing evenly among the labels."


def check(
    found: StudyEvidence,
    arm: Record,
    reference: Record,
    swept: str,
    bundle: Any = None,
    pairing: Pairing | None = None,
    also: Sequence[str] = (),
) -> Guard:
    """Guard over the plan's configs, the configs that the paired runs recorded, their seeds and their
    devices; ``also`` are differences known from elsewhere (probes).
    """
    result = _differences(arm, reference)
    changed, derived = list(result.changed), list(result.derived)
    for seed in pairing.seeds if pairing is not None else ():
        a, b = (found.runs[str(c["id"])][seed] for c in (arm, reference))
        recorded = differences(a.get("config") or {}, b.get("config") or {})
        changed += [*recorded.changed, *unlike_device(a, b)]
        derived += recorded.derived
    changed += pairing.unlike if pairing is not None else ()
    if "rank_pattern" in changed and "rank" not in changed:
        derived += [TRAINABLE] if sizes_differ(arm.get("trainable_params"), reference.get("trainable_params")) else []
    unique = Differences(tuple(dict.fromkeys(changed)), tuple(dict.fromkeys(derived)))
    return guard(placed(unique, [adapter_size(arm), adapter_size(reference)]), swept, bundle, also)


def _differences(arm: Record, reference: Record) -> Differences:
    left, right = arm.get("config"), reference.get("config")
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return differences(left, right)
    planned = arm.get("differences") if arm.get("reference") == reference.get("id") else ()
    return Differences(tuple(planned or ()), ())


def unlike_device(a: Record, b: Record) -> list[str]:
    """``["device"]`` where two runs ran on devices of different names."""
    left, right = ((r.get("provenance") or {}).get("device") for r in (a, b))
    return ["device"] if left and right and left != right else []


def _swept(found: StudyEvidence) -> list[str]:
    """Factors that vary over the plan's cells and are no function of precision, rank or method."""
    rows = [(c, _by_factor(c)) for c in found.cells.values()]
    names = dict.fromkeys(name for _, row in rows for name in row)
    names_left = [n for n in names if n not in {"precision", "rank"} and len({repr(r.get(n)) for _, r in rows}) > 1]
    return [n for n in names_left if not _determined(n, rows)]


def _determined(name: str, rows: Sequence[tuple[Record, Mapping[str, Any]]]) -> bool:
    def follows(by: Callable[[Record, Mapping[str, Any]], Any]) -> bool:
        seen: dict[str, set[str]] = {}
        for cell, row in rows:
            seen.setdefault(repr(by(cell, row)), set()).add(repr(row.get(name)))
        return all(len(values) == 1 for values in seen.values())

    if name in BY_RANK and follows(lambda cell, row: (rank_of(cell), row.get("rank_pattern"))):
        return True
    if name in BY_PRECISION and follows(lambda cell, row: precision_label(cell.get("precision"))):
        return True
    return name not in OF_ITS_OWN and follows(lambda cell, row: method_of(cell))


def _by_factor(cell: Record) -> dict[str, Any]:
    config = cell.get("config")
    flat = flatten(config) if isinstance(config, Mapping) else {}
    grouped: dict[str, Any] = {}
    for path, value in flat.items():
        name = factor(path)
        grouped[name] = value if name not in {"base", "task"} else identity(config or {}, name)
    return grouped


def identity(config: Mapping[str, Any], name: str) -> str:
    """What a config's ``base`` or ``task`` is called."""
    block = config.get(name) or {}
    data = PurePath(str(block["data"])).name if block.get("data") else None  # a task of the user's own has no name
    return str(block.get("name") or block.get("model") or data or block.get("fingerprint") or name)


def _own_settings(cell: Record) -> tuple[Any, ...]:
    own = _by_factor(cell)
    return tuple(repr(own.get(name)) for name in sorted(BY_PRECISION - {"precision"}))


def _shown(name: str, value: Any) -> Any:
    if name in PATTERNS:
        return pattern_label(PATTERNS[name], dict(value))
    return list(value) if isinstance(value, tuple) else value
