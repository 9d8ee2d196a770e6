"""Autocast on the meta device, which torch does not have: the casts that CUDA's autocast makes, seen at Python's calls.

Products of matrices take their arguments in the lower precision, what is sensitive takes float32; a weight's cast is kept until the
block ends, as autocast keeps it. Operations that are in neither list are left as they are (torch/aten/src/ATen/autocast_mode.h).
Not covered: casts within composite operations other than ``einsum``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

F, T = nn.functional, torch.Tensor
LOWER = {F.linear, F.conv1d, F.conv2d, torch.einsum, torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm}
LOWER |= {T.matmul, T.__matmul__, T.__rmatmul__, T.mm, T.bmm, T.addmm, T.baddbmm}
FULL = {
    F.layer_norm,
    F.cross_entropy,
    F.nll_loss,
    F.softmax,
    F.log_softmax,
    F.mse_loss,
    torch.softmax,
    torch.log_softmax,
}
FULL |= {torch.pow, T.pow, T.__pow__, torch.rsqrt, T.rsqrt, torch.exp, T.exp, torch.log, T.log, torch.cumsum, T.cumsum}
FULL |= {
    torch.sum,
    T.sum,
    torch.norm,
    T.norm,
    torch.linalg.norm,
    torch.linalg.vector_norm,
    torch.reciprocal,
    T.reciprocal,
}


_active: list[AutocastShapes] = []


def lowered(tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Arguments of a product of matrices that is no call of torch's, as the innermost block would cast them."""
    return tuple(_active[-1].cast(tensors, _active[-1].dtype)) if _active else tensors


class AutocastShapes(TorchFunctionMode):
    """Within the block tensors on the meta device are cast as under ``torch.autocast("cuda", dtype)``."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self._kept: dict[int, torch.Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in LOWER:
            args, kwargs = self.cast(args, self.dtype), self.cast(kwargs, self.dtype)
        elif func in FULL:
            args, kwargs = self.cast(args, torch.float32), self.cast(kwargs, torch.float32)
        return func(*args, **kwargs)

    def __enter__(self) -> AutocastShapes:
        _active.append(self)
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        self._kept.clear()
        _active.remove(self)
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def cast(self, value: Any, dtype: torch.dtype) -> Any:
        """The tensors in ``value``, a tensor, tuple, list or mapping, in ``dtype`` where autocast would cast them."""
        if isinstance(value, torch.Tensor):
            return self._cast_one(value, dtype)
        if isinstance(value, (tuple, list)):
            return type(value)(self.cast(item, dtype) for item in value) if type(value) in (tuple, list) else value
        if isinstance(value, dict):
            return {name: self.cast(item, dtype) for name, item in value.items()}
        return value

    def _cast_one(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        eligible = tensor.is_floating_point() and tensor.dtype not in (dtype, torch.float64)
        if not eligible or tensor.device.type != "meta":
            return tensor
        if dtype == torch.float32 or not (tensor.requires_grad and tensor.is_leaf):
            return tensor.to(dtype)
        key = id(tensor)
        if key not in self._kept:
            self._kept[key] = tensor.to(dtype)
        return self._kept[key]
