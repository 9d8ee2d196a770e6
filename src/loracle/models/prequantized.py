"""Bases that come quantized: a folder whose config says so, with bitsandbytes' packed weights. They are used as they are.

The packed weights are kept bit for bit and so is what was left unquantized; only the compute dtype is the study's own. Not covered:
other quantizers' folders (GPTQ, AWQ …), which are refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from loracle.base.errors import ModelError, SpecError
from loracle.models.linears import CLASSIFIER_HEADS, Linear
from loracle.models.precision import assign, dequantize, is_4bit, set_submodule
from loracle.spec.study import FOUR_BIT, Cell


@dataclass(frozen=True)
class Held:
    """What a folder of quantized weights holds. ``skipped`` are Transformers' patterns of modules left as they were, whose
    precision is ``rest``; ``compute_dtype`` is what Transformers alone computes 4-bit layers in."""

    precision: str
    double_quant: bool | None
    compute_dtype: str | None
    skipped: tuple[str, ...]
    rest: str

    @property
    def words(self) -> str:
        """For an error."""
        return self.precision + (
            f" weights, double_quant: {str(self.double_quant).lower()}" if self.four_bit else " weights"
        )

    @property
    def four_bit(self) -> bool:
        """nf4 or fp4."""
        return self.precision in FOUR_BIT


def held(config: Any) -> Held | None:
    """What the folder of this Transformers config holds; None where its weights are plain."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    settings: dict[str, Any] = found
    four, eight = (settings.get(f"load_in_{bits}bit") or settings.get(f"_load_in_{bits}bit") for bits in (4, 8))
    if settings.get("quant_method", "bitsandbytes") != "bitsandbytes" or not (four or eight):
        raise ModelError(
            f"its weights are quantized by {settings.get('quant_method')}, which cannot be trained on here: give the unquantized base"
        )
    rest = {"float32": "fp32", "float16": "fp16"}.get(
        str(getattr(config, "dtype", None)).removeprefix("torch."), "bf16"
    )
    skipped = tuple(settings.get("llm_int8_skip_modules") or ())
    if eight:
        return Held("int8", None, None, skipped, rest)
    compute = str(settings.get("bnb_4bit_compute_dtype") or "float32").removeprefix("torch.")
    double = bool(settings.get("bnb_4bit_use_double_quant"))
    return Held(settings.get("bnb_4bit_quant_type") or "fp4", double, compute, skipped, rest)


def assign_base(config: Any, cell: Cell, linears: Sequence[Linear]) -> dict[str, str]:
    """Linear layer name → its precision: the cell's, or, of a folder that comes quantized, what its config says it holds.

    A cell that asks for anything else than what the folder holds is a ``SpecError``.
    """
    there = held(config)
    if there is None:
        return assign(cell.precision, linears)
    agree(there, cell)
    return {x.name: there.rest if _skipped(x.name, there.skipped) else there.precision for x in linears}


def agree(there: Held, cell: Cell) -> None:
    """Refuse a cell that asks for anything else than the folder holds."""
    if cell.precision != there.precision:
        raise SpecError(f"this base comes quantized and holds {there.words}: precision can only be that", "precision")
    if there.four_bit and bool(cell.double_quant) != there.double_quant:
        raise SpecError(
            f"this base comes quantized and holds {there.words} (precision: {there.precision})", "double_quant"
        )


def _skipped(name: str, patterns: Sequence[str]) -> bool:
    """Whether Transformers' skip list leaves a module as it is: from the start to a dot, as a regular expression, or as an end."""
    return any(re.match(rf"(?:{key})(?:(?<=\.)|(?=\.|$))", name) or name.endswith(key) for key in patterns)


def keep_head(config: Any) -> None:
    """A classifier's head is in no language model's skip list; it is never quantized."""
    found = config.quantization_config
    if found.get("llm_int8_skip_modules"):
        config.quantization_config = {
            **found,
            "llm_int8_skip_modules": [*found["llm_int8_skip_modules"], *CLASSIFIER_HEADS],
        }


def adopt(
    model: Any, there: Held, cell: Cell, linears: Sequence[Linear], storage: str, dtype: torch.dtype
) -> dict[str, str]:
    """Make what Transformers loaded the same as what ``apply_precision`` makes. Gives the assignment that is really there."""
    for mark in ("hf_quantizer", "is_quantized", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        model.__dict__.pop(mark, None)  # else Transformers refuses to move or cast it
    model.config.__dict__.pop("quantization_config", None)
    assignment = {x.name: _precision(model.get_submodule(x.name), there) for x in linears}
    for name in (name for name, precision in assignment.items() if precision in FOUR_BIT):
        module = model.get_submodule(name)
        state = module.weight.quant_state
        if state.blocksize != (cell.block_size or 64):
            raise SpecError(f"this base comes quantized in blocks of {state.blocksize}", "block_size")
        if state.nested != bool(cell.double_quant):
            raise SpecError(f"{name} holds double_quant: {str(state.nested).lower()}", "double_quant")
        module.compute_dtype, module.compute_type_is_set = dtype, True
        if storage == "dequantized":
            set_submodule(model, name, dequantize(module, dtype))
    return assignment


def _precision(module: Any, there: Held) -> str:
    if is_4bit(module):
        return str(module.weight.quant_state.quant_type)
    return "int8" if module.weight.dtype == torch.int8 else there.rest


def evaluates_plainly(there: Held, cell: Cell, compute: str) -> str | None:
    """None where Transformers alone computes what was measured, else why it does not."""
    if there.compute_dtype not in (None, compute):
        return f"the base's config.json says to compute in {there.compute_dtype} (here {compute})"
    if cell.task.classifies and there.skipped and not _skipped(CLASSIFIER_HEADS[0], there.skipped):
        return "Transformers alone would quantize the classification head: the base's skip list does not name it"
    return None
