"""Load a base as a study needs it: compute dtype, precision per layer, storage, no dropout of its own, frozen."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from loracle.base.errors import ModelError, one_line
from loracle.models.census import census
from loracle.models.dropout import drops, set_base_dropout
from loracle.models.linears import CLASSIFIER_HEADS, Linear, linear_map
from loracle.models.precision import ROUND_TO, TORCH_DTYPES, FusedGELU, apply_precision, keep_packing, set_submodule
from loracle.models.prequantized import Held, adopt, agree, assign_base, held, keep_head
from loracle.models.pretrained import auto_class, from_pretrained, resize_vocabulary, set_labels
from loracle.models.source import Source, load_config, require_weights
from loracle.spec.study import FOUR_BIT, INTEGER, UNQUANTIZED, Cell


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
    held: Held | None = None  # of a base that comes quantized


def pick_device(wanted: str) -> torch.device:
    """``auto`` is CUDA where there is one."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ModelError("run.device: cuda was asked for, but torch sees no CUDA device (loracle doctor says more)")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def pick_compute_dtype(wanted: str, precision: str, device: torch.device) -> str:
    """``auto``: bfloat16 on a GPU that has it (else float16), float32 for fp32 cells and on CPUs, where bfloat16
    matrix products are slow on most machines. The meta device stands for a GPU that has it."""
    if wanted != "auto":
        return wanted
    if device.type == "cpu" or precision == "fp32":
        return "float32"
    if precision == "fp16":
        return "float16"
    has_it = device.type == "meta" or torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if has_it else "float16"


def pick_storage(cell: Cell, asked: str | None = None) -> str:
    """``auto``: dequantized (same numbers, faster steps), but quantized where there is int8 and where PEFT trains.

    ``asked`` overrides the cell's. A cell without quantized layers is ``unquantized``, whatever was asked for.
    """
    names = cell.precision_names
    if not names - UNQUANTIZED:
        return "unquantized"
    if asked is not None:
        return asked
    if cell.storage == "auto":
        return "dequantized" if names <= UNQUANTIZED | FOUR_BIT | INTEGER and not cell.alone else "quantized"
    return cell.storage


def meta_model(config: Any, *, labels: int | None = None) -> nn.Module:
    """The model's modules without their weights (meta device): shapes only. With ``labels`` (how many) a classifier."""
    config = copy.deepcopy(config)
    if labels is not None:
        config.num_labels = labels
    try:
        with torch.device("meta"), _NoValues():
            model: nn.Module = auto_class(labels is not None).from_config(config, trust_remote_code=False)
    except Exception as error:
        kind = "causal language model" if labels is None else "model with a sequence classifier"
        raise ModelError(f"not a {kind} that Transformers knows: {one_line(error)}") from None
    model.tie_weights()  # type: ignore[operator]
    return model


class _NoValues(TorchFunctionMode):
    """Leaves out what only sets values: on the meta device there are none, and PyTorch works each call out in Python
    (GPT-2 medium in 13 ms in place of 41)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _SET_VALUES:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


_SET_VALUES = {
    torch.Tensor.normal_,
    torch.Tensor.uniform_,
    torch.Tensor.zero_,
    torch.Tensor.fill_,
    torch.nn.init.normal_,
    torch.nn.init.uniform_,
    torch.nn.init.kaiming_uniform_,
}


def count_parameters(model: nn.Module) -> int:
    """Parameters, tied ones once, a classifier's head left out; a packed weight counts its elements, not its bytes."""
    heads = tuple(f"{name}." for name in CLASSIFIER_HEADS)
    total = 0
    for parameter in {id(p): p for name, p in model.named_parameters() if not name.startswith(heads)}.values():
        state = getattr(parameter, "quant_state", None)
        total += int(torch.Size(state.shape).numel()) if state is not None else parameter.numel()
    return total


def load_base(
    source: Source,
    cell: Cell,
    device: torch.device,
    *,
    storage: str | None = None,
    labels: Sequence[str] = (),
    vocab: int | None = None,
) -> LoadedBase:
    """Load, round or quantize, freeze. ``storage`` overrides the cell's (a probe always wants ``quantized``).

    A cell that classifies gets a sequence classifier with a head over ``labels``, which is in no precision but the compute dtype
    and counts in no parameters: each run has its own. One that adds tokens needs ``vocab``, the tokenizer's length with them.
    A base that comes quantized is taken as it is.
    """
    require_weights(source)
    config = _config(source, cell, labels)
    there = held(config)
    if there:
        agree(there, cell)
        if cell.task.classifies:
            keep_head(config)
    dtype = TORCH_DTYPES[pick_compute_dtype(cell.compute_dtype, cell.default_precision, device)]
    model = from_pretrained(
        source,
        config,
        ROUND_TO.get(cell.default_precision, dtype),
        classifies=cell.task.classifies,
        device=device if there else None,
    )
    return prepare(model, source, cell, device, storage=storage, vocab=vocab, there=there)


def prepare(
    model: Any,
    source: Source,
    cell: Cell,
    device: torch.device,
    *,
    storage: str | None = None,
    vocab: int | None = None,
    there: Held | None = None,
) -> LoadedBase:
    """A model that is in memory as the cell's frozen base, in place: rounded or quantized, on ``device``, counted."""
    dtype = TORCH_DTYPES[pick_compute_dtype(cell.compute_dtype, cell.default_precision, device)]
    config = model.config
    total = count_parameters(model)
    linears = linear_map(model, config.model_type)
    chosen = pick_storage(cell, storage)
    if there:
        assignment = adopt(model, there, cell, linears, chosen, dtype)
    else:
        model.to(dtype)
        assignment = assign_base(config, cell, linears)
        apply_precision(
            model,
            assignment,
            double_quant=cell.double_quant,
            block_size=cell.block_size,
            storage=chosen,
            dtype=dtype,
            device=device,
        )
    fuse_activations(model)
    _add_tokens(model, cell, vocab)
    counted = census(model, assignment)
    if cell.adapter.method == "dora":
        keep_packing(model)
    model.requires_grad_(False)
    model.config.use_cache = False
    model.config.pad_token_id = None  # else every forward looks for padding, with a host synchronisation and a warning
    model.train()  # never eval() before training ends: see set_base_dropout
    if not cell.train.base_dropout:
        set_base_dropout(model, on=False)
    return LoadedBase(model, source, linears, assignment, dtype, chosen, device, counted, total, there)


def _config(source: Source, cell: Cell, labels: Sequence[str]) -> Any:
    """The base's config, with the cell's labels in it."""
    config = load_config(source)
    if cell.task.classifies:
        if not labels:
            raise ModelError("a cell that classifies needs its labels to load its base")
        set_labels(config, labels)
    return config


def _add_tokens(model: Any, cell: Cell, vocab: int | None) -> None:
    if not cell.base.add_tokens:
        return
    if vocab is None:
        raise ModelError("base.add_tokens needs the length of the tokenizer that has them")
    resize_vocabulary(model, vocab)


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


def checkpoint_activations(model: Any) -> None:
    """Gradient checkpointing (Chen et al. 2016): layers are computed again in the backward pass. The state of torch's random
    numbers is kept only for a base with dropout of its own: an adapter's is a function of the step."""
    options = {"use_reentrant": False, "preserve_rng_state": drops(model)}
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def device_name(device: torch.device) -> str:
    """Hardware, for provenance: the GPU's product name, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
