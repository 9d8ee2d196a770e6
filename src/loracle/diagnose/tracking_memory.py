"""Follow every allocation of code that runs on the meta device, as a CUDA device would make it.

``MemoryTracker`` sees each operation below autograd, as a dispatch mode, and each storage that it makes and that dies, by weak
references: when things are freed hangs on reference counts alone, so it is as on the device. Sizes are those of the caching
allocator's blocks. Operations whose CUDA kernels allocate more than they return run as ``stand_ins`` has them.

Not covered: what libraries take outside torch's allocator (the CUDA context, kernels), and kernels' own small buffers.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from loracle.diagnose import autograd_sums
from loracle.diagnose.caching_allocator import Block, CachingAllocator, rounded
from loracle.diagnose.meta_results import SHARED
from loracle.diagnose.stand_ins import CUBLAS_WORKSPACE, MATRIX_PRODUCTS, operations
from loracle.models.memory_labels import MANAGED

aten = torch.ops.aten
REST = "rest"
SAVED = "saved_activations"
_READS = (aten._local_scalar_dense.default, aten.is_nonzero.default)


@dataclass
class Allocation:
    """One storage. ``size`` as rounded for the allocator, ``block`` what it got; ``component`` is None until something names it."""

    size: int
    taken: int
    component: str | None
    phase: str


@dataclass(frozen=True)
class Peak:
    """``bytes`` allocated at the highest moment of a phase, ``at``: how many events came before that moment, and ``end``: bytes
    when the phase was left; ``reserved``: the segments by then."""

    bytes: int
    at: int
    end: int
    reserved: int


class MemoryTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within ``with tracker:`` everything on the meta device is counted. An ``Observer`` of ``memory_labels``."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.allocator = CachingAllocator()
        self.allocations: list[Allocation] = []
        self.events: list[int] = []  # index of an allocation; ~index where it is freed
        self.peaks: dict[str, Peak] = {}
        self.phase = "load"
        self.managed = 0
        self._blocks: dict[int, Block] = {}  # by index, while in use
        self._live: dict[int, int] = {}  # storage → index
        self._references: dict[int, weakref.ref[Any]] = {}
        self._labels: list[str] = []
        self._ranges: list[tuple[int, int, str]] = []  # autograd's sequence numbers made under a label
        self._workspace_taken = False
        self._stand_ins = operations()
        self._alone = autograd_sums.held_alone()
        self._closed = False

    # -- phases and labels --------------------------------------------------------------------------------------------

    def enter(self, phase: str) -> None:
        """``phase`` begins."""
        self._note()
        self.phase = phase
        self._note()

    def reached(self, moment: str) -> None:
        """A moment of the training step; what forward leaves for backward is saved activations."""
        if moment == "backward":
            self._name_unnamed(0, "forward", SAVED)
        self.enter(moment)

    @contextmanager
    def counted_as(self, component: str) -> Iterator[None]:
        """Allocations within, and of the backward of what is computed within, are ``component``."""
        self._labels.append(component)
        first = _sequence_number()
        try:
            yield
        finally:
            self._labels.pop()
            last = _sequence_number()
            if last > first:
                self._ranges.append((first, last, component))

    def watching_recomputation(
        self, checkpoint: Callable[..., Any], within: Callable[[], AbstractContextManager[Any]]
    ) -> Callable[..., Any]:
        """``checkpoint(function, *args)`` of torch, but what ``function`` leaves when it runs again in backward, ``within`` a context,
        is saved activations."""

        def watched(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            def again(*args: Any, **kwargs: Any) -> Any:
                if torch._C._current_graph_task_id() == -1:
                    return function(*args, **kwargs)
                start = len(self.allocations)
                try:
                    with within():
                        return function(*args, **kwargs)
                finally:  # torch stops it by an exception as soon as it has what it needs
                    self._name_unnamed(start, "backward", SAVED)

            return checkpoint(again, *args, **kwargs)

        return watched

    def adopt(self, tensor: torch.Tensor, component: str) -> None:
        """A tensor that was made before: allocate it now, or name it if it is known. Shared storage counts once."""
        if tensor.device.type != "meta":
            return
        storage = tensor.untyped_storage()
        known = self._live.get(storage._cdata)
        if known is None:
            self._add(storage, component)
        else:
            self.allocations[known].component = component

    def adopt_new(self, tensor: torch.Tensor, component: str) -> None:
        """``adopt``, but a tensor that is known keeps its name."""
        if tensor.device.type == "meta" and tensor.untyped_storage()._cdata not in self._live:
            self.adopt(tensor, component)

    def name_phase(self, phase: str, component: str) -> None:
        """What is left of ``phase`` and has no name yet is ``component``."""
        self._name_unnamed(0, phase, component)

    @contextmanager
    def held(self, size: int, component: str) -> Iterator[None]:
        """``size`` bytes more within the block."""
        index = self._allocate(size, component)
        try:
            yield
        finally:
            self._release(index)

    def _name_unnamed(self, start: int, phase: str, component: str) -> None:
        for index in self._blocks:
            allocation = self.allocations[index]
            if index >= start and allocation.phase == phase and allocation.component is None:
                allocation.component = component

    # -- results ------------------------------------------------------------------------------------------------------

    def components(self, phase: str) -> dict[str, int]:
        """Component → bytes at the phase's peak. What nothing named is ``rest``, and what a block has beyond its request: except for
        saved activations, which a device's counters see in whole blocks."""
        live: set[int] = set()
        for event in self.events[: self.peaks[phase].at]:
            if event >= 0:
                live.add(event)
            else:
                live.discard(~event)
        found: dict[str, int] = {}
        for index in live:
            allocation = self.allocations[index]
            name = allocation.component or REST
            found[name] = found.get(name, 0) + allocation.size
            beyond = name if name == SAVED else REST
            found[beyond] = found.get(beyond, 0) + allocation.taken - allocation.size
        return found

    # -- the mode -----------------------------------------------------------------------------------------------------

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether torch wraps the handler below for its compiler, which is not at work here; that costs a tenth of a forecast."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _READS and args[0].device.type == "meta":
            return _read(args[0])
        if func is aten._to_copy.default and args[0].device.type == "meta" and _leaves(kwargs.get("device")):
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if autograd_sums.in_place(func, args, self._alone):
            return args[0]
        replaced = self._stand_ins.get(func)
        if replaced is not None and args[0].device.type == "meta":
            with self:
                return replaced(*args, **kwargs)
        if func in MATRIX_PRODUCTS:
            self._workspace(args[-1])
        out = SHARED.of(func, args, kwargs)
        if isinstance(out, torch.Tensor):
            self._see(out)
        elif isinstance(out, (tuple, list)):
            for part in out:
                if isinstance(part, torch.Tensor):
                    self._see(part)
        return out

    def _see(self, tensor: torch.Tensor) -> None:
        if tensor.device.type == "meta":
            storage = tensor.untyped_storage()
            if storage._cdata not in self._live:
                self._add(storage, self._component())

    def _component(self) -> str | None:
        if self._labels:
            return self._labels[-1]
        if self._ranges and torch._C._current_graph_task_id() != -1:
            node: Any = torch._C._current_autograd_node()
            number = node._sequence_nr() if node is not None else -1
            for first, last, component in self._ranges:
                if first <= number < last:
                    return component
        return None

    def _workspace(self, operand: Any) -> None:
        """cuBLAS takes its workspace at the first product, and keeps it: one, as backward runs on the thread of forward."""
        if not self._workspace_taken and operand.device.type == "meta":
            self._workspace_taken = True
            self._allocate(CUBLAS_WORKSPACE, REST)

    # -- allocations --------------------------------------------------------------------------------------------------

    def _add(self, storage: Any, component: str | None) -> None:
        key, size = storage._cdata, storage.nbytes()
        if component == MANAGED:
            self.managed += size
            self._live[key] = -1
            self._references[key] = weakref.ref(storage, lambda _: self._forget(key))
            return
        index = self._allocate(size, component) if size else -1
        self._live[key] = index
        self._references[key] = weakref.ref(storage, lambda _: self._forget(key))

    def _forget(self, key: int) -> None:
        self._references.pop(key, None)
        index = self._live.pop(key, -1)
        if index >= 0 and not self._closed:
            self._release(index)

    def _allocate(self, size: int, component: str | None) -> int:
        index = len(self.allocations)
        block = self._blocks[index] = self.allocator.take(size)
        self.allocations.append(Allocation(rounded(size), block.size, component, self.phase))
        self.events.append(index)
        self._note()
        return index

    def _release(self, index: int) -> None:
        self.allocator.give(self._blocks.pop(index))
        self.events.append(~index)

    def _note(self) -> None:
        now, old = self.allocator.allocated, self.peaks.get(self.phase)
        if old is None or now > old.bytes:
            self.peaks[self.phase] = Peak(now, len(self.events), now, self.allocator.reserved)
        else:
            self.peaks[self.phase] = Peak(old.bytes, old.at, now, self.allocator.reserved)

    def close(self) -> None:
        """Nothing more is counted; tensors may die in any order."""
        self._closed = True
        self._references.clear()


def _sequence_number() -> int:
    """The number that autograd gives the next node of its graph."""
    return int(torch.autograd._get_sequence_nr())  # type: ignore[attr-defined]


def _leaves(device: Any) -> bool:
    """Whether a copy goes to the host: what is read there is zeros."""
    return device is not None and torch.device(device).type == "cpu"


def _read(tensor: torch.Tensor) -> Any:
    """What the host reads from the device: 0, or True, which says "nothing special" wherever Transformers asks."""
    if tensor.dtype == torch.bool:
        return True
    return 0.0 if tensor.dtype.is_floating_point else 0
