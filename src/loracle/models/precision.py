"""Precision: which codec each linear layer has, and the linear module that bears it.

Codecs: fp32, bf16, fp16 (the whole model rounded, computed in the compute dtype; a layer that a pattern keeps unquantized in a
quantized model stays in the compute dtype, as Transformers' skip list leaves it), nf4 and fp4 (bitsandbytes, QLoRA, Dettmers et al. 2023,
sections 3 and 4), int8 (bitsandbytes, LLM.int8(), Dettmers et al. 2022), int4, int3 and int2 (HQQ, ``integer.py``). Storage is how the
bytes of a weight lie while training: ``quantized`` (the packed module; int8 has only this) or ``dequantized`` (the dense weight it
stands for: the same numbers, bit for bit on a CPU).
"""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from loracle.base.errors import ModelError, SpecError
from loracle.models.integer import IntegerLinear, quantize_integer
from loracle.models.kernels import runs_on
from loracle.models.linears import Linear, linear_shape
from loracle.models.memory_labels import counted_as
from loracle.models.overrides import undo
from loracle.spec.mixing import Mixed
from loracle.spec.study import FOUR_BIT, INTEGER, UNQUANTIZED

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ROUND_TO = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def matches(pattern: str, name: str) -> bool:
    """Whether a glob fits the end of a dotted module name: ``attn.c_proj`` or ``h.1.*`` fit ``transformer.h.1.attn.c_proj``."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, "*." + pattern)


def assign(precision: str | Mixed | Mapping[str, str], linears: Sequence[Linear]) -> dict[str, str]:
    """Linear layer name → its precision. Later patterns win; one that fits nothing is an error, and one that is still to be chosen."""
    if isinstance(precision, Mixed):
        raise SpecError("which matrices stay finer is chosen by loracle run, from the layer sensitivity", "precision")
    if isinstance(precision, str):
        return {linear.name: precision for linear in linears}
    out = {linear.name: precision["default"] for linear in linears}
    for pattern, name in precision.items():
        if pattern == "default":
            continue
        fitting = [linear.name for linear in linears if matches(pattern, linear.name)]
        if not fitting:
            some = ", ".join(linear.name for linear in linears[:4])
            raise SpecError(f"pattern '{pattern}' fits no linear layer; names look like {some}", "precision")
        out.update(dict.fromkeys(fitting, name))
    return out


class DequantizedLinear(nn.Linear):
    """The dense weight of a quantized linear, which stays at hand in ``packed`` (not a submodule) for the final evaluation."""

    packed: nn.Module


def packed_of(module: nn.Module) -> nn.Module:
    """The quantized module behind a dequantized one; any other module itself."""
    return module.packed if isinstance(module, DequantizedLinear) else module


def oriented_weight(module: nn.Module) -> torch.Tensor:
    """The weight as ``[d_out, d_in]``; GPT-2's ``Conv1D`` holds it transposed."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach() if isinstance(module, nn.Linear) else weight.detach().T.contiguous()


def quantize_4bit(
    module: nn.Module, name: str, *, double_quant: bool, block_size: int, dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """bitsandbytes' 4-bit linear of a dense one. ``name`` is ``nf4`` or ``fp4``; constants are per ``block_size`` weights."""
    import bitsandbytes as bnb

    weight = oriented_weight(module).to(dtype)
    if weight.numel() % block_size:
        raise ModelError(
            f"{tuple(weight.shape)} weights do not fill blocks of {block_size}: choose a smaller block_size"
        )
    d_out, d_in = weight.shape
    bias = getattr(module, "bias", None)
    linear = bnb.nn.Linear4bit(
        d_in,
        d_out,
        bias=bias is not None,
        compute_dtype=dtype,
        compress_statistics=double_quant,
        quant_type=name,
        device="meta",
    )
    parameter: Any = bnb.nn.Params4bit(
        weight, requires_grad=False, compress_statistics=double_quant, quant_type=name, blocksize=block_size
    )
    linear.weight = _arrived(parameter, device)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().to(device=device, dtype=dtype), requires_grad=False)
    if linear.weight.quant_state is None or linear.weight.dtype != torch.uint8:
        raise ModelError(f"bitsandbytes left a layer unquantized ({name}, {d_out} × {d_in})")
    return linear


def quantize_int8(module: nn.Module, *, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """bitsandbytes' 8-bit linear (LLM.int8(), outlier threshold 6.0 as Transformers sets it)."""
    import bitsandbytes as bnb

    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_no_cast_warning)
    weight = oriented_weight(module)
    d_out, d_in = weight.shape
    bias = getattr(module, "bias", None)
    linear = bnb.nn.Linear8bitLt(
        d_in, d_out, bias=bias is not None, has_fp16_weights=False, threshold=6.0, device="meta"
    )
    host = weight if device.type == "meta" else weight.to("cpu")
    parameter: Any = bnb.nn.Int8Params(host, requires_grad=False, has_fp16_weights=False)
    linear.weight = _arrived(parameter, device)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().to(device=device, dtype=dtype), requires_grad=False)
    if linear.weight.dtype != torch.int8:
        raise ModelError(f"bitsandbytes left a layer unquantized (int8, {d_out} × {d_in})")
    return linear


def _arrived(parameter: Any, device: torch.device) -> Any:
    """bitsandbytes quantizes a parameter on its way to a device, but takes the meta device for none."""
    if device.type != "meta":
        return parameter.to(device)
    import bitsandbytes.functional as bnb

    if "dynamic" not in bnb.name2qmap:  # else it keeps a map without values, for everyone
        bnb.name2qmap["dynamic"] = bnb.create_dynamic_map()
    return parameter._quantize(device)


def _no_cast_warning(entry: logging.LogRecord) -> bool:
    """bitsandbytes says at every int8 product that it casts its input: once is known."""
    return "inputs will be cast" not in entry.getMessage()


def dequantized_weight(packed: Any, dtype: torch.dtype) -> torch.Tensor:
    """The dense weight ``[d_out, d_in]`` that a 4-bit or integer linear computes with, made anew at each call.

    Of int8 it is what the codes stand for: LLM.int8() quantizes activations too, so this is weight-only int8.
    """
    with counted_as("dequantization_workspace"):
        if isinstance(packed, IntegerLinear):
            return packed.dequantize(dtype)
        return (
            _eight_bit_weight(packed, dtype) if packed.weight.dtype == torch.int8 else _four_bit_weight(packed, dtype)
        )


def _eight_bit_weight(packed: Any, dtype: torch.dtype) -> torch.Tensor:
    """Codes of -127 to 127 in each row, times that row's largest absolute value / 127."""
    return (packed.weight.data.float() * (packed.weight.SCB.float() / 127.0)[:, None]).to(dtype)


def _four_bit_weight(packed: Any, dtype: torch.dtype) -> torch.Tensor:
    weight, state = packed.weight.data, packed.weight.quant_state
    if weight.is_meta:
        return torch.empty(tuple(state.shape), dtype=dtype, device="meta")
    if weight.is_cuda and runs_on(weight):
        from loracle.models.kernels.four_bit import dequantize as in_one_kernel

        return in_one_kernel(weight, state, state.dtype).to(dtype)
    import bitsandbytes.functional as bnb

    return bnb.dequantize_4bit(weight, state).to(dtype)


def dequantize(packed: Any, dtype: torch.dtype) -> DequantizedLinear:
    """The dense linear that a 4-bit or integer one computes with; same output, bit for bit on a CPU."""
    shape = linear_shape(packed)
    assert shape is not None
    weight = dequantized_weight(packed, dtype)
    linear = DequantizedLinear(*shape, bias=packed.bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if packed.bias is not None:
        linear.bias = packed.bias
    object.__setattr__(linear, "packed", packed)
    return linear


def deploy(model: nn.Module) -> nn.Module:
    """The model as its adapters will be used: true quantized storage, its own activations, evaluation mode. There is no way
    back to training. Layers that bitsandbytes cannot evaluate on this CPU (``evaluates_packed``) stay dequantized.
    """
    undo(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, DequantizedLinear):
            if evaluates_packed(module.packed):
                set_submodule(model, name, module.packed)
        elif is_4bit(module) and not evaluates_packed(module):
            set_submodule(model, name, dequantize(module, module.compute_dtype))
        elif isinstance(module, FusedGELU):
            set_submodule(model, name, module.original)
    return model.eval()


def is_4bit(module: nn.Module) -> bool:
    """Whether this is bitsandbytes' 4-bit linear."""
    return getattr(getattr(module, "weight", None), "quant_state", None) is not None


def has_int8(model: nn.Module) -> bool:
    """Whether some linear is bitsandbytes' 8-bit one."""
    return any(getattr(getattr(module, "weight", None), "dtype", None) == torch.int8 for module in model.modules())


def keep_packing(model: nn.Module) -> None:
    """Keep 4-bit weights as they are in evaluation mode too, also on a CPU with AVX512-BF16.

    PEFT's DoRA dequantizes the weight at every pass, and takes the repacked bytes for the usual ones (bitsandbytes 0.50.2, PEFT
    0.21.2): one nat off on a healthy base, silently.
    """
    for module in model.modules():
        packed: Any = packed_of(module)
        if is_4bit(packed):
            packed.support_avx512bf16_for_cpu = False


def repacks(device: torch.device) -> bool:
    """Whether bitsandbytes repacks 4-bit weights in evaluation mode on this device."""
    if device.type != "cpu":
        return False
    from bitsandbytes.functional import has_avx512bf16

    return bool(has_avx512bf16())


def evaluates_packed(module: Any) -> bool:
    """Whether bitsandbytes can run a 4-bit layer in evaluation mode here.

    On a CPU with AVX512-BF16 it repacks the weights for a kernel that wants 32 rows and whole blocks in each row, and fails on
    other shapes (bitsandbytes 0.50.2).
    """
    if module.weight.device.type != "cpu" or not getattr(module, "support_avx512bf16_for_cpu", False):
        return True
    state = module.weight.quant_state
    return bool(state.shape[0] % 32 == 0 and state.shape[1] % state.blocksize == 0)


class FusedGELU(nn.GELU):
    """GELU in one kernel. ``original`` (not a submodule) is the model's own module, put back by ``deploy``."""

    original: nn.Module


def quantize(
    module: nn.Module,
    precision: str,
    *,
    double_quant: bool | None,
    block_size: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> nn.Module:
    """The packed linear on ``device`` that stands for a dense one; ``precision`` is a quantized one."""
    block = block_size or 64
    if precision in FOUR_BIT:
        double = bool(double_quant)
        return quantize_4bit(module, precision, double_quant=double, block_size=block, dtype=dtype, device=device)
    if precision in INTEGER:
        weight = oriented_weight(module)
        return quantize_integer(weight, getattr(module, "bias", None), precision, block_size=block, device=device)
    return quantize_int8(module, dtype=dtype, device=device)


def apply_precision(
    model: nn.Module,
    assignment: Mapping[str, str],
    *,
    double_quant: bool | None,
    block_size: int | None,
    storage: str,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Put each linear of ``model`` into its precision, in place, on ``device``; the rest of the model follows it there.

    Quantization happens on ``device``, one layer at a time, so at most one dense layer is there beside the packed ones.
    """
    for name, precision in assignment.items():
        if precision in UNQUANTIZED:
            continue
        new = quantize(
            model.get_submodule(name),
            precision,
            double_quant=double_quant,
            block_size=block_size,
            dtype=dtype,
            device=device,
        )
        if storage == "dequantized" and precision != "int8":
            new = dequantize(new, dtype)
        set_submodule(model, name, new)
    model.to(device)


def set_submodule(model: nn.Module, name: str, new: nn.Module) -> None:
    """Replace the module called ``name``."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, leaf, new)
