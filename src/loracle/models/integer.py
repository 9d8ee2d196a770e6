"""Integer precisions int4, int3, int2: half-quadratic quantization (HQQ, Badri & Shaji 2023, https://dropbox.github.io/hqq_blog).

Each group of ``block_size`` weights along a row has a scale s and a zero point z, both float16: w ≈ (q − z)·s. The zero points are
fitted by HQQ's solver, in float32 on any device; there is no data in it and no chance. Codes are packed by HQQ's own functions: two
int4 or four int2 in a byte, ten int3 in 32 bits (3.2 bits each). With 32 bits a group that is 4.5, 3.7 and 2.5 bits per weight at 64.

The weight is put together in float32 and rounded once to the dtype of the product. Not covered: HQQ's quantized constants and kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from loracle.base.errors import ModelError
from loracle.models.memory_labels import counted_as

BITS = {"int4": 4, "int3": 3, "int2": 2}
_LARGEST_SCALE = 2e4  # HQQ's bound on 1/s, which keeps both constants within float16


class IntegerLinear(nn.Linear):
    """A frozen linear whose ``weight`` is packed codes: uint8 ``[d_out·d_in / codes a byte, 1]``, int32 for int3.

    ``scale`` and ``zero`` are ``[groups, 1]``. The dense weight exists only within a product, forward or backward.
    """

    scale: torch.Tensor
    zero: torch.Tensor
    bits: int

    @property
    def W_q(self) -> torch.Tensor:
        """What HQQ calls the packed codes: PEFT takes a module that has them for one with ``dequantize``."""
        return self.weight

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight ``[d_out, d_in]`` that the codes stand for."""
        with counted_as("dequantization_workspace"):
            codes = _packing(self.bits)[1](self.weight, dtype=torch.uint8)[: self.out_features * self.in_features]
            weight = (codes.view(len(self.scale), -1).float() - self.zero.float()) * self.scale.float()
            return weight.to(dtype).view(self.out_features, self.in_features)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``[.., d_in]`` → ``[.., d_out]``."""
        return _Product.apply(input, self)  # type: ignore[no-untyped-call]


class _Product(torch.autograd.Function):
    """x Wᵀ + b, whose backward unpacks W again in place of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, module: IntegerLinear) -> torch.Tensor:
        ctx.module = module
        return nn.functional.linear(x, module.dequantize(x.dtype), module.bias)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        return dy @ ctx.module.dequantize(dy.dtype), None


def quantize_integer(
    weight: torch.Tensor, bias: torch.Tensor | None, name: str, *, block_size: int, device: torch.device
) -> IntegerLinear:
    """The integer linear of a dense ``weight [d_out, d_in]``, on ``device``."""
    if weight.numel() % block_size:
        raise ModelError(
            f"{tuple(weight.shape)} weights do not fill blocks of {block_size}: choose a smaller block_size"
        )
    groups = weight.to(device=device, dtype=torch.float32).reshape(-1, block_size)
    codes, scale, zero = _solve(groups, BITS[name]) if device.type != "meta" else _unsolved(groups)
    linear = IntegerLinear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.bits = BITS[name]
    linear.weight = nn.Parameter(_packing(linear.bits)[0](codes.reshape(-1, 1)), requires_grad=False)
    linear.register_buffer("scale", scale.half())
    linear.register_buffer("zero", zero.half())
    if device.type != "meta" and not (linear.scale.isfinite().all() and linear.zero.isfinite().all()):
        raise ModelError(f"a group of weights is too far from 0 for its spread to be quantized as {name}")
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().to(device), requires_grad=False)
    return linear


def _solve(groups: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``[n, block]`` → codes ``[n, block]``, scales ``[n, 1]``, zero points ``[n, 1]``. HQQ starts from each group's range."""
    solver = _hqq("optimize").optimize_weights_proximal_v2
    low, high = groups.aminmax(dim=1, keepdim=True)
    top, spread = 2**bits - 1, high - low
    inverse = torch.where(spread <= 1e-4, torch.ones_like(spread), top / spread).clamp(max=_LARGEST_SCALE)
    codes, inverse, zero = solver(
        groups, inverse, -low * inverse, [0, top], axis=1, device=groups.device, dtype=torch.float32
    )
    return codes.clone(), 1.0 / inverse, zero.clone()  # clones: the solver's own are inference tensors


def _unsolved(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The shapes of ``_solve``'s result, for weights that are only shapes."""
    return torch.empty_like(groups), groups.new_empty(len(groups), 1), groups.new_empty(len(groups), 1)


def _packing(bits: int) -> tuple[Any, Any]:
    """HQQ's (pack, unpack) for codes ``[n, 1]``."""
    packer = _hqq("bitpack").BitPack
    name = "3bit_32" if bits == 3 else f"{bits}bit_u8"
    return getattr(packer, f"pack_{name}"), getattr(packer, f"unpack_{name}")


def _hqq(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"hqq.core.{module}")
    except ImportError:
        raise ModelError("int4, int3 and int2 need HQQ: pip install 'loracle[hqq]'") from None
