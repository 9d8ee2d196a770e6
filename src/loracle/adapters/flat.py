"""All adapter parameters of a cohort in one buffer ``[K, P]``, and their gradients in another.

Each A and B is a parameter whose storage is a view into its member's row, so autograd accumulates straight into the flat
gradient and the optimizer is a dozen elementwise operations, however many layers and members there are.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import nn

Shape = tuple[int, int]

# The views of several members are strided on purpose; autograd adds into them in place all the same.
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")


class FlatParameters:
    """``data`` and ``grad``: ``[K, P]``; ``pairs``: the (A ``[K, r, d_in]``, B ``[K, width, r]``) views of each slot, and
    ``head``: the classification heads ``[K, C, d]``, where there are any. ``low``: a 16-bit copy to compute with, on a GPU."""

    def __init__(
        self,
        members: int,
        shapes: Sequence[tuple[Shape, Shape]],
        dtype: torch.dtype,
        device: torch.device,
        head: Shape | None = None,
    ) -> None:
        size = sum(math.prod(a) + math.prod(b) for a, b in shapes) + (math.prod(head) if head else 0)
        self.data = torch.zeros(members, size, dtype=dtype, device=device)
        self.grad = torch.zeros_like(self.data)
        self.low: torch.Tensor | None = None
        self.low_pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        self.head: nn.Parameter | None = None
        offset = 0
        for a_shape, b_shape in shapes:
            a, offset = self._view(offset, a_shape)
            b, offset = self._view(offset, b_shape)
            self.pairs.append((a, b))
        if head is not None:
            self.head, offset = self._view(offset, head)

    @classmethod
    def adopting(cls, parameters: Sequence[nn.Parameter]) -> FlatParameters:
        """The parameters of one model as a cohort of one: they become views of the buffer, their values kept.

        All must be of one dtype and on one device.
        """
        found = cls(1, [], parameters[0].dtype, parameters[0].device)
        found.data = torch.cat([p.detach().reshape(-1) for p in parameters]).unsqueeze(0)
        found.grad = torch.zeros_like(found.data)
        offset = 0
        for parameter in parameters:
            end = offset + parameter.numel()
            parameter.data = found.data[0, offset:end].view(parameter.shape)
            parameter.grad = found.grad[0, offset:end].view(parameter.shape)
            offset = end
        return found

    def _view(self, offset: int, shape: Shape) -> tuple[nn.Parameter, int]:
        size = math.prod(shape)
        end = offset + size
        parameter = nn.Parameter(self.data[:, offset:end].view(-1, *shape))
        parameter.grad = self.grad[:, offset:end].view(-1, *shape)
        return parameter, end

    def keep_low(self, dtype: torch.dtype) -> None:
        """Keep a 16-bit copy of ``data`` to compute with (``low``, and its views ``low_pairs``); ``refresh`` brings it up to date."""
        self.low = torch.empty_like(self.data, dtype=dtype)
        self.low_pairs = []
        offset = 0
        for pair in self.pairs:
            views = []
            for parameter in pair:
                end = offset + parameter[0].numel()
                views.append(self.low[:, offset:end].view(-1, *parameter.shape[1:]))
                offset = end
            self.low_pairs.append((views[0], views[1]))

    def refresh(self) -> None:
        """``low`` is ``data``, rounded."""
        if self.low is not None:
            self.low.copy_(self.data)

    def zero_grad(self) -> None:
        """Gradients to zero, in place: the views stay."""
        self.grad.zero_()
