"""Factors: from one study to its cells. A cell is named by what is varied: ``nf4-r8-qkv``."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from loracle.base.errors import SpecError
from loracle.base.names import slug
from loracle.spec.aliases import INSTEAD, drop, factor_path, open_section, put
from loracle.spec.load import explain, tuples, validate
from loracle.spec.methods import METHODS
from loracle.spec.mixing import Mixed
from loracle.spec.study import FOUR_BIT, INTEGER, Adapter, Base, Cell, Study

_SHORT = {
    "alpha": "a",
    "rank": "r",
    "dropout": "do",
    "samples": "n",
    "steps": "st",
    "epochs": "ep",
    "batch_size": "b",
    "gradient_accumulation": "ga",
    "learning_rate": "lr",
    "block_size": "bs",
    "init_seed": "init",
    "order_seed": "order",
    "max_length": "len",
    "weight_decay": "wd",
    "loraplus_ratio": "lp",
    "compute_dtype": "compute-",
    "adapter_dtype": "adapter-",
    "dtype": "adapter-",
}
PATTERNS = {"rank_pattern": "ranks", "alpha_pattern": "alphas"}
"""Settings by layer, and the word for their values in a label."""


def cell_tree(study: Study) -> dict[str, Any]:
    """The study's default cell as plain data, without what belongs to the study alone."""
    dumped = study.model_dump()
    return {key: dumped[key] for key in Cell.model_fields}


def apply_factors(tree: dict[str, Any], values: Mapping[str, Any], where: str) -> Cell:
    """The cell that ``tree`` becomes with each factor set; errors name ``where``."""
    paths = {factor_path(name, where) for name in values}
    for name, value in values.items():
        path = factor_path(name, where)
        if INSTEAD.get(path) in paths:
            raise SpecError("the rank follows from the parameters: vary one of the two", f"{where}.{name}")
        if path in ("base", "task"):
            value = open_section(path, value)
            section = tree[path] if path == "task" and not {"name", "data"} & set(value) else {}
            value = {**section, **value}
        if path == "train.steps":
            put(tree, "train.epochs", None)
        elif path == "train.epochs":
            put(tree, "train.steps", None)
        elif path in INSTEAD and value is not None:
            drop(tree, INSTEAD[path])
        put(tree, path, value)
    try:
        return normalised(Cell.model_validate(tuples(tree)))
    except ValidationError as error:
        message, at = explain(error, Cell)
        raise SpecError(message, _written_at(at, values, where)) from None


def _written_at(path: str, values: Mapping[str, Any], where: str) -> str:
    """Where the file says what became ``path``: ``vary.rank`` for ``adapter.rank`` when the rank is varied."""
    for name in values:
        own = factor_path(name, where)
        if path == own or path.startswith(own + "."):
            return f"{where}.{name}{path[len(own) :]}"
    return path


def normalised(cell: Cell) -> Cell:
    """A cell without what its method or precision has no use for (rank, targets, 4-bit settings), so equal cells compare equal."""
    method, plain = METHODS[cell.adapter.method], Adapter()
    unused: dict[str, Any] = {} if method.rank else {"rank": plain.rank, "alpha": plain.alpha, "parameters": None}
    if not method.targets:
        unused["targets"] = plain.targets
    if unused:
        cell = cell.model_copy(update={"adapter": cell.adapter.model_copy(update=unused)})
    if cell.precision_names & FOUR_BIT:
        return cell
    update: dict[str, Any] = {"double_quant": None}
    if not cell.precision_names & INTEGER:
        update["block_size"] = None
    return cell.model_copy(update=update)


def expand(study: Study) -> list[tuple[dict[str, Any], Cell]]:
    """All cells of a study as (factor values, cell), in the order written, each once."""
    names = list(study.vary)
    if study.adapter.parameters is not None:
        for name in names:
            if factor_path(name, "vary") == "adapter.rank":
                raise SpecError(
                    "would set aside adapter.parameters, from which the rank follows: keep one", f"vary.{name}"
                )
    rows: list[tuple[dict[str, Any], str]] = [
        (dict(zip(names, combination, strict=True)), "vary") for combination in itertools.product(*study.vary.values())
    ]
    rows += [(dict(extra), f"cells.{i}") for i, extra in enumerate(study.cells)]
    out: dict[str, tuple[dict[str, Any], Cell]] = {}
    for values, where in rows:
        cell = apply_factors(cell_tree(study), values, where)
        out.setdefault(cell.model_dump_json(), (values, cell))
    if not out:
        raise SpecError("the study has no cells", "vary")
    return list(out.values())


def precision_label(precision: str | Mixed | Mapping[str, str]) -> str:
    """``nf4``, or ``nf4-2xbf16`` for a default with two patterns kept otherwise; ``nf4-mixed`` while they are to be chosen."""
    if isinstance(precision, str):
        return precision
    if isinstance(precision, Mixed):
        return f"{precision.default}-mixed-{precision.sensitive}"
    others: dict[str, int] = {}
    for pattern, name in precision.items():
        if pattern != "default":
            others[name] = others.get(name, 0) + 1
    return precision["default"] + "".join(f"-{count}x{name}" for name, count in others.items())


def targets_label(targets: str | tuple[str, ...] | list[str]) -> str:
    """``qv`` for [q, v], ``c_attn`` for [c_attn], ``all-linear`` for itself."""
    if isinstance(targets, str):
        return slug(targets, 24)
    single = all(len(t) == 1 for t in targets)
    short = [
        t.removesuffix("_proj") if t.startswith(("q_", "k_", "v_", "o_", "up_", "gate_", "down_")) else t
        for t in targets
    ]
    return slug(("" if single else "-").join(short), 32)


def pattern_label(word: str, pattern: Mapping[str, float]) -> str:
    """``ranks2to16.3fa2``: the smallest and largest value by layer, and a hash that tells two patterns apart."""
    low, high = (f"{value:g}" for value in (min(pattern.values()), max(pattern.values())))
    told = hashlib.sha256(repr(sorted(pattern.items())).encode()).hexdigest()[:4]
    return slug(f"{word}{low if low == high else f'{low}to{high}'}.{told}", 40)


def cell_label(cell: Cell, values: Mapping[str, Any]) -> str:
    """Readable name: precision, method (but lora), rank and targets where it has them; other varied factors after them."""
    adapter = cell.adapter
    method = METHODS[adapter.method]
    parts = [precision_label(cell.precision)]
    parts += [] if adapter.method == "lora" else [adapter.method.replace("_", "-")]
    parts += [f"r{adapter.rank}" if adapter.parameters is None else "equal"] if method.rank else []
    parts += [targets_label(adapter.targets)] if method.targets else []
    parts += [pattern_label(word, found) for name, word in PATTERNS.items() if (found := getattr(adapter, name))]
    for name, value in values.items():
        if name in ("precision", "method", "rank", "parameters", "targets", *PATTERNS):
            continue
        if isinstance(value, Mapping):
            value = value.get("name") or value.get("model") or value.get("data") or "custom"
        text = str(value).replace("e+", "e").rstrip("/").split("/")[-1]
        if isinstance(value, bool):
            text = name if value else f"no-{name}"
        else:
            text = _SHORT.get(name.rpartition(".")[2], "") + text
        parts.append(slug(text.replace("_", "-"), 24))
    return "-".join(parts)


def setting_words(path: str, value: Any) -> str:
    """``train.batch_size``, 4 → ``batch size 4``; what is switched on is named alone."""
    name = path.rpartition(".")[2].replace("_", " ")
    return name if value is True else f"{name} {value}"


def cell_from_config(config: Mapping[str, Any]) -> Cell:
    """The cell that a record's or a job's ``config`` describes; what is added there for readers is left aside."""
    own = {key: config[key] for key in Cell.model_fields if key in config}
    own["base"] = {key: config["base"][key] for key in Base.model_fields if key in config["base"]}
    return validate(Cell, tuples(own))
