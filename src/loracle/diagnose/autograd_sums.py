"""Which sums of gradients autograd takes in place.

Where a tensor is used twice, autograd adds its two gradients: into the first one if nobody else holds it, except under a dispatch
mode, where it always makes a third tensor. A tracker has to undo that exception. What "nobody else" looks like from inside a
dispatch mode (how many hold the storage, how many refer to the tensor) hangs on the version of torch and is found by trying once.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ADD = torch.ops.aten.add.Tensor
Holders = tuple[int, int]
_WRAPPERS = ("_dynamo", "_compile.py")  # frames that torch puts around a mode's handler


def in_place(func: Any, args: Any, alone: Holders) -> bool:
    """Whether ``func(*args)``, as a dispatch mode sees it, is a sum that autograd takes in place without one.

    ``alone``: as ``held_alone`` found it. To be called from the mode's ``__torch_dispatch__`` itself.
    """
    if func is not ADD or torch._C._current_graph_task_id() == -1 or not isinstance(args[1], torch.Tensor):
        return False
    if args[0].shape != args[1].shape or args[0].dtype != args[1].dtype or not _from_the_engine(sys._getframe(2)):
        return False
    return _dense(args[0]) and _holders(args) == alone


def _holders(args: Any) -> Holders:
    """(holders of the first argument's storage, references to its tensor)."""
    return torch._C._storage_Use_Count(args[0].untyped_storage()._cdata), sys.getrefcount(args[0])


def _dense(tensor: torch.Tensor) -> bool:
    """Whether the tensor's elements fill its stretch of memory, each place once, in whatever order of dimensions."""
    filled = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != filled:
            return False
        filled *= size
    return True


def _from_the_engine(frame: Any) -> bool:
    while frame is not None and any(part in frame.f_code.co_filename for part in _WRAPPERS):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name == "_engine_run_backward"


class _Trial(TorchDispatchMode):  # type: ignore[no-untyped-call]
    found: Holders = (0, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is ADD and _from_the_engine(sys._getframe(1)):
            self.found = _holders(args)
        return func(*args, **(kwargs or {}))


@functools.cache
def held_alone() -> Holders:
    """``_holders`` of a gradient that autograd alone holds, found by a trial; to be called outside any mode."""
    with torch.enable_grad():
        leaf = torch.zeros(2, device="meta", requires_grad=True)
        used_twice = leaf * 2
        total = (used_twice.sin() + used_twice.cos()).sum()
        with _Trial() as trial:  # type: ignore[no-untyped-call]
            total.backward()  # type: ignore[no-untyped-call]
    return trial.found
