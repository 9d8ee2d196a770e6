"""Load a base as a study needs it: compute dtype, precision per layer, storage, no dropout of its own, frozen."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from loracle.base.errors import ModelError, one_line
from loracle.models.census import census
from loracle.models.linears import Linear, linear_map
from loracle.models.precision import ROUND_TO, TORCH_DTYPES, FusedGELU, apply_precision, assign, set_submodule
from loracle.models.source import Source, load_config, require_weights
from loracle.spec.study import FOUR_BIT, UNQUANTIZED, Cell


@dataclass(frozen=True)
class LoadedBase:
    """A frozen base on its device. ``census`` is as ``models.census.census`` returns it."""

    model: Any
    source: Source
    linears: list[Linear]
    assignment: dict[str, str]
    compute_dtype: torch.dtype
    storage: str
    device: torch.device
    census: dict[str, Any]
    base_params: int  # of the base as published, tied weights once, before any adapter


def pick_device(wanted: str) -> torch.device:
    """``auto`` is CUDA where there is one."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ModelError("run.device: cuda was asked for, but torch sees no CUDA device (loracle doctor says more)")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def pick_compute_dtype(wanted: str, precision: str, device: torch.device) -> str:
    """``auto``: bfloat16 on a GPU that has it (else float16), float32 for fp32 cells and on CPUs, where bfloat16
    matrix products are slow on most machines."""
    if wanted != "auto":
        return wanted
    if device.type == "cpu" or precision == "fp32":
        return "float32"
    if precision == "fp16":
        return "float16"
    return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"


def pick_storage(wanted: str, names: frozenset[str], device: torch.device) -> str:
    """``auto``: dequantized where there are 4-bit layers only (same numbers, faster steps), quantized for int8.

    A cell without quantized layers is ``unquantized``, whatever was asked for.
    """
    if not names - UNQUANTIZED:
        return "unquantized"
    if wanted == "auto":
        return "dequantized" if names <= UNQUANTIZED | FOUR_BIT else "quantized"
    return wanted


def meta_model(config: Any) -> nn.Module:
    """The model's modules without their weights (meta device): shapes only."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"not a causal language model that Transformers knows: {one_line(error)}") from None
    model.tie_weights()  # type: ignore[operator]
    return model


def count_parameters(model: nn.Module) -> int:
    """Parameters, tied ones once; a packed 4-bit weight counts its elements, not its bytes."""
    total = 0
    for parameter in {id(p): p for p in model.parameters()}.values():
        state = getattr(parameter, "quant_state", None)
        total += int(torch.Size(state.shape).numel()) if state is not None else parameter.numel()
    return total


def load_base(source: Source, cell: Cell, device: torch.device, *, storage: str | None = None) -> LoadedBase:
    """Load, round or quantize, freeze. ``storage`` overrides the cell's (a probe always wants ``quantized``)."""
    require_weights(source)
    config = load_config(source)
    dtype = TORCH_DTYPES[pick_compute_dtype(cell.compute_dtype, cell.default_precision, device)]
    model = _from_pretrained(source, config, ROUND_TO.get(cell.default_precision, dtype))
    model.to(dtype)
    fuse_activations(model)
    total = count_parameters(model)
    linears = linear_map(model, config.model_type)
    assignment = assign(cell.precision, linears)
    chosen = storage or pick_storage(cell.storage, cell.precision_names, device)
    apply_precision(
        model,
        assignment,
        double_quant=cell.double_quant,
        block_size=cell.block_size,
        storage=chosen,
        dtype=dtype,
        device=device,
    )
    counted = census(model, assignment)
    model.requires_grad_(False)
    model.config.use_cache = False
    model.config.pad_token_id = None  # else every forward looks for padding, with a host synchronisation and a warning
    model.train()  # never eval() before training ends: see set_base_dropout
    if not cell.train.base_dropout:
        set_base_dropout(model, on=False)
    return LoadedBase(model, source, linears, assignment, dtype, chosen, device, counted, total)


def _from_pretrained(source: Source, config: Any, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    os.environ.setdefault("DISABLE_KERNEL_MAPPING", "1")
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            source.resolved,
            revision=source.revision,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    except Exception as error:
        raise ModelError(f"{source.resolved}: cannot be loaded: {one_line(error)}") from None
    absent = sorted(map(str, info.get("missing_keys", ()))) + sorted(map(str, info.get("mismatched_keys", ())))
    if absent:  # Transformers would fill them at random and go on
        raise ModelError(
            f"{source.resolved}: the weights lack {absent[0]}" + (f" and {len(absent) - 1} more" if absent[1:] else "")
        )
    return model


def fuse_activations(model: nn.Module) -> None:
    """GPT-2's GELU in one kernel in place of eight elementwise passes: the same formula, rounded once.

    Measured on 2 cores (gpt2-demo, 8 × 40 tokens): 4 ms of a 31 ms step.
    """
    from transformers.activations import NewGELUActivation

    for name, module in list(model.named_modules()):
        if isinstance(module, NewGELUActivation):
            fused = FusedGELU(approximate="tanh")
            object.__setattr__(fused, "original", module)
            set_submodule(model, name, fused)


def set_base_dropout(model: nn.Module, *, on: bool) -> None:
    """Switch the base's own dropout by its probabilities, without ``eval()``.

    On a CPU with AVX512-BF16, ``eval()`` makes bitsandbytes repack 4-bit weights for a bfloat16 kernel, with rounded
    constants and no exact way back: training must never pass through it.
    """
    for module in model.modules():
        for attribute in ("p", "dropout", "attention_dropout", "attn_dropout", "resid_dropout", "embd_pdrop"):
            value = module.__dict__.get(attribute)
            if isinstance(value, float) and not isinstance(module, nn.ModuleList):
                kept = module.__dict__.setdefault("_loracle_dropout", {})
                kept.setdefault(attribute, value)
                module.__dict__[attribute] = kept[attribute] if on else 0.0


def device_name(device: torch.device) -> str:
    """Hardware, for provenance: the GPU's product name, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
