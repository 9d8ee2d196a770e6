"""What differs between two cells, and whether a comparison of them is about one thing.

Reads the nested ``config`` of plan cells or run records. Paths, storage and seeds are no differences: numbers
do not depend on them, or runs are paired on them. What a setting brings along is told apart from what was
changed beside it: a 16-bit arm has no block size, prefix tuning no rank and options of its own, ``alpha: 2r`` moves
alpha with the rank and keeps the scale, a fixed alpha moves the scale with the rank ("rank and scale together").
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loracle.spec.methods import METHODS

IGNORED = {
    "storage", "seed", "init_seed", "order_seed", "path", "paths", "folder", "dir", "cache_dir", "output_dir",
    "schema", "id", "label", "cohort",
}  # fmt: skip
LOCATED = {
    "model",
    "name",
    "revision",
    "path",
    "data",
    "eval",
    "file",
    "files",
    "folder",
    "columns",
    "format",
}
FINGERPRINTS = ("fingerprint", "sha256")
NO_BLOCKS = {"bf16", "fp16", "fp32", "int8", "16-bit"}
NO_DOUBLE_QUANT = NO_BLOCKS | {"int4", "int3", "int2"}  # HQQ's integers have blocks, and plain constants
RANK_AND_SCALE = "alpha/rank"


@dataclass(frozen=True)
class Differences:
    """``changed``: factors set otherwise; ``derived``: what follows from them and matters (alpha/rank)."""

    changed: tuple[str, ...]
    derived: tuple[str, ...]


@dataclass(frozen=True)
class Guard:
    """Whether a comparison stands; ``confounds`` are the factors beside the swept one, ``text`` says it in
    words.
    """

    swept: str | None
    confounded: bool
    recipe: bool
    confounds: tuple[str, ...]
    text: str


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{dotted path: value}`` without paths, storage and seeds; a fingerprint stands for where a thing lies."""
    marked = any(config.get(key) for key in FINGERPRINTS)
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if key in IGNORED or (marked and key in LOCATED):
            continue
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and path != "precision":
            flat.update(flatten(value, f"{path}."))
        else:
            flat[path] = _plain(value)
    return flat


def factor(path: str) -> str:
    """The factor's name in a study (``vary``): the base and the task's identity are one factor each."""
    head, _, tail = path.rpartition(".")
    if head == "base" or (head.startswith("task") and tail in {*FINGERPRINTS, *LOCATED}):
        return head.partition(".")[0]
    if head == "adapter" and tail == "dtype":
        return "adapter_dtype"
    return tail


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Differences:
    """What differs between two configs, as factor names in the order of appearance."""
    left, right = flatten(a), flatten(b)
    paths = [*left, *(p for p in right if p not in left)]
    unlike = [p for p in paths if left.get(p) != right.get(p)]
    names = {factor(p) for p in unlike}
    implied = _implied(names, unlike, left, right)
    changed = tuple(dict.fromkeys(factor(p) for p in unlike if p not in implied))
    scale_moved = "rank" in changed and _scale(left) != _scale(right)
    return Differences(changed, (RANK_AND_SCALE,) if scale_moved else ())


def _implied(names: set[str], unlike: Sequence[str], a: Mapping[str, Any], b: Mapping[str, Any]) -> set[str]:
    """Paths whose difference is part of another: block settings of an arm without blocks, alpha at equal
    scale, settings that a method has not.
    """
    implied: set[str] = set()
    for name, without in (("block_size", NO_BLOCKS), ("double_quant", NO_DOUBLE_QUANT)):
        if "precision" in names and not all(_any_but(x.get("precision"), without) for x in (a, b)):
            implied |= {p for p in unlike if factor(p) == name}
    if "rank" in names and _scale(a) is not None and _scale(a) == _scale(b):
        implied |= {p for p in unlike if factor(p) == "alpha"}
    if "method" in names:
        implied |= {p for p in unlike if p.startswith("adapter.") and (a.get(p) is None or b.get(p) is None)}
        implied |= {p for p in unlike if p.startswith("adapter.options")} | (_without(a) | _without(b))
        implied.discard("adapter.method")
    return implied


def _without(flat: Mapping[str, Any]) -> set[str]:
    """Settings of the adapter that its method does not read (full fine-tuning has neither rank nor targets)."""
    method = str(flat.get("adapter.method") or "lora")
    unread = set() if has_rank(method) else {"adapter.rank", "adapter.alpha", "adapter.dropout"}
    return unread if has_targets(method) else unread | {"adapter.targets"}


def has_rank(method: Any) -> bool:
    """Whether rank and alpha mean something to a method; a method unknown here is taken to have them."""
    return str(method) not in METHODS or METHODS[str(method)].rank


def has_targets(method: Any) -> bool:
    """Whether a method has target modules."""
    return str(method) not in METHODS or METHODS[str(method)].targets


def guard(found: Differences, swept: str, compare: Any = None, also: Sequence[str] = ()) -> Guard:
    """Whether a comparison meant to be about ``swept`` is; ``also`` names differences known from elsewhere.

    ``compare: {as: recipe}`` declares the bundle: the verdict is then on recipes and says so.
    """
    changed = list(
        dict.fromkeys([*found.changed, *(x for x in also if x not in IGNORED - {"init_seed", "order_seed"})])
    )
    rest = tuple(x for x in changed if x != swept)
    recipe = _is_recipe(compare)
    beside = (*rest, *found.derived)
    if rest and recipe:
        return Guard(swept, False, True, beside, f"as recipes, which also differ in {listed(rest)}")
    if rest:
        return Guard(swept, True, False, beside, f"the two also differ in {listed(rest)}")
    return Guard(swept, False, recipe, beside, "rank and scale together" if found.derived else "")


def listed(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def precision_label(precision: Any) -> str:
    """``nf4``, or ``nf4 + bf16 in h.1.attn.c_proj`` for a precision by pattern; names are cut to what tells them apart."""
    if not isinstance(precision, Mapping):
        return str(precision)
    kept: dict[str, list[str]] = {}
    for pattern, value in precision.items():
        if pattern != "default":
            kept.setdefault(str(value), []).append(_IN_A_LAYER.sub("", str(pattern)))
    other = [f"{value} in {listed(names)}" for value, names in kept.items()]
    return " + ".join([str(precision.get("default", "mixed")), *other])


_IN_A_LAYER = re.compile(r"^(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_]\w*\.\d+\.)")  # all before "h.1." or "layers.1."


def _is_recipe(compare: Any) -> bool:
    return (compare.get("as") if isinstance(compare, Mapping) else compare) == "recipe"


def _scale(flat: Mapping[str, Any]) -> float | None:
    rank, alpha = flat.get("adapter.rank"), flat.get("adapter.alpha")
    if not isinstance(rank, int) or not isinstance(alpha, (int, float)) or not rank:
        return None
    return float(alpha) / (float(rank) ** 0.5 if flat.get("adapter.rslora") else float(rank))


def _any_but(precision: Any, without: set[str]) -> bool:
    values = [v for _, v in precision] if isinstance(precision, tuple) else [precision]
    return any(v not in without for v in values)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple(sorted((str(k), _plain(v)) for k, v in value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(_plain(v) for v in value)
    return value
