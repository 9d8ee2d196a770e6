"""PEFT's config of a method from a cell's settings: rank, alpha, dropout and targets under the names that each config has.

Logical names of slices (``q`` inside GPT-2's ``c_attn``) are the cohort's own: PEFT's methods work on whole modules.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from loracle.adapters.peft_files import target_modules
from loracle.adapters.ranks import site_sizes
from loracle.adapters.targets import resolve_targets
from loracle.base.errors import SpecError, one_line
from loracle.base.names import suggest
from loracle.models.linears import Linear
from loracle.spec.methods import METHODS
from loracle.spec.study import Cell

VIRTUAL_TOKENS = 20
INITS = {"pissa": "pissa", "olora": "olora"}
_RANK = ("r",)
_ALPHA = ("lora_alpha", "alpha")
_DROPOUT = ("lora_dropout", "vera_dropout", "randlora_dropout", "module_dropout", "dropout")


# Options that a setting of the study says already, or that say what the adapter is.
_LORACLES = {
    **dict.fromkeys(_RANK, ": use adapter.rank"),
    **dict.fromkeys(_ALPHA, ": use adapter.alpha"),
    **dict.fromkeys(_DROPOUT, ": use adapter.dropout"),
    "modules_to_save": ": use adapter.modules_to_save",
    "use_rslora": ": rslora goes with lora",
    "use_dora": ": use adapter.method",
    **dict.fromkeys(("task_type", "peft_type", "inference_mode", "base_model_name_or_path", "revision"), ""),
}


def peft_config(cell: Cell, model: nn.Module, linears: Sequence[Linear], init_seed: int) -> Any:
    """The method's own config. Raises ``SpecError`` for an option that PEFT does not know or does not take."""
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    adapter = cell.adapter
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[str(METHODS[adapter.method].peft)]]
    known = {field.name for field in dataclasses.fields(kind)}
    settings = _settings(cell, model, linears, init_seed, known)
    for option in adapter.options:
        if option not in known:
            raise SpecError(f"PEFT's {kind.__name__} has no such option, {suggest(option, known)}", _at(option))
        if option in _LORACLES:
            raise SpecError(f"loracle sets it{_LORACLES[option]}", _at(option))
    try:
        return kind(**{**settings, **adapter.options})
    except (TypeError, ValueError) as error:
        raise SpecError(f"PEFT refuses the settings of {adapter.method}: {one_line(error)}", "adapter") from None


def _at(option: str) -> str:
    return f"adapter.options.{option}"


def _settings(
    cell: Cell, model: nn.Module, linears: Sequence[Linear], init_seed: int, known: set[str]
) -> dict[str, Any]:
    adapter, method = cell.adapter, METHODS[cell.adapter.method]
    found: dict[str, Any] = {"task_type": "SEQ_CLS" if cell.task.classifies else "CAUSAL_LM"}
    if method.rank:
        found |= {name: adapter.rank for name in _RANK if name in known}
        found |= {name: _whole(adapter.alpha_value) for name in _ALPHA if name in known}
        found |= _patterns(cell, linears)
    if method.targets:
        if "target_modules" in adapter.options:
            raise SpecError("loracle sets it: use adapter.targets", _at("target_modules"))
        found["target_modules"] = modules_of(cell, linears)
    found |= {"use_rslora": True} if adapter.rslora else {}
    found |= {name: adapter.dropout for name in _DROPOUT if name in known and adapter.dropout}
    extra = _own(cell, model, linears, init_seed)
    saved = [*adapter.modules_to_save, *(_embeddings(model) if cell.base.add_tokens else ())]
    return {**found, **extra} | ({"modules_to_save": saved} if saved else {})


def _patterns(cell: Cell, linears: Sequence[Linear]) -> dict[str, Any]:
    """``rank_pattern`` and ``alpha_pattern`` of a LoRA that trains alone, by full names, so that PEFT's way of matching is no matter."""
    adapter = cell.adapter
    if not (adapter.rank_pattern or adapter.alpha_pattern):
        return {}
    sizes = site_sizes(adapter, resolve_targets(linears, adapter.targets))
    return {
        "rank_pattern": {site.module: size.rank for site, size in sizes.items()},
        "alpha_pattern": {site.module: _whole(size.alpha) for site, size in sizes.items()},
    }


def _own(cell: Cell, model: Any, linears: Sequence[Linear], init_seed: int) -> dict[str, Any]:
    """What one method has and no other."""
    name, steps = cell.adapter.method, cell.train.steps or 1
    if name == "dora":
        return {"use_dora": True}
    if name in INITS:
        return {"init_lora_weights": INITS[name]}
    if name == "adalora":  # a tenth of the steps to warm up, a third at the final ranks
        rank = cell.adapter.rank
        return {
            "target_r": rank,
            "init_r": math.ceil(1.5 * rank),
            "total_step": max(3, steps),
            "tinit": steps // 10,
            "tfinal": steps // 3,
        }
    if name == "ia3":
        chosen = set(modules_of(cell, linears, short=False))
        down = [line.name for line in linears if line.name in chosen and line.kind in ("up", "gate", "down")]
        return {"target_modules": sorted(chosen), "feedforward_modules": down}
    if name == "ln_tuning":
        return {"target_modules": norms(model)}
    if name in ("prefix_tuning", "prompt_tuning", "p_tuning"):
        hidden = {"encoder_hidden_size": int(model.config.hidden_size)} if name == "p_tuning" else {}
        return {"num_virtual_tokens": VIRTUAL_TOKENS, **hidden}
    if name == "oft":
        return {"oft_block_size": 0}
    return {"projection_prng_key": init_seed} if name in ("vera", "randlora") else {}


def _whole(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


def modules_of(cell: Cell, linears: Sequence[Linear], short: bool = True) -> list[str]:
    """Names of the whole modules that ``adapter.targets`` means."""
    sites = resolve_targets(linears, cell.adapter.targets)
    for site in sites:
        if site.width != site.d_out:
            raise SpecError(
                f"'{site.kind}' is a slice of {site.module}, and {cell.adapter.method} works on whole modules: "
                f"name {site.module.rpartition('.')[2]}",
                "adapter.targets",
            )
    names = list(dict.fromkeys(site.module for site in sites))
    return target_modules(names, linears) if short else names


def norms(model: nn.Module) -> list[str]:
    """Names of the model's normalisation layers."""
    found = [name for name, module in model.named_modules() if type(module).__name__.endswith(("LayerNorm", "RMSNorm"))]
    if not found:
        raise SpecError("the base has no layer norm to tune", "adapter.method")
    return found


def check_saved(cell: Cell, model: nn.Module) -> None:
    """Every one of ``adapter.modules_to_save`` names a module: PEFT passes over one that does not."""
    known = [name for name, _ in model.named_modules() if name]
    for wanted in cell.adapter.modules_to_save:
        if not any(name == wanted or name.endswith("." + wanted) for name in known):
            short = {name.rpartition(".")[2] for name in known if not name.rpartition(".")[2].isdigit()}
            raise SpecError(
                f"'{wanted}' is no module of this base, {suggest(wanted, short)}", "adapter.modules_to_save"
            )


def _embeddings(model: nn.Module) -> list[str]:
    """Last names of the input embeddings and of the head, which new tokens need trained."""
    wanted: Any = model
    parts = {id(part) for part in (wanted.get_input_embeddings(), wanted.get_output_embeddings()) if part is not None}
    return [name.rpartition(".")[2] for name, module in model.named_modules() if id(module) in parts]
