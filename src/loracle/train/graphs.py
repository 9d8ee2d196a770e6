"""CUDA graphs of the training step: launched as one, not kernel by kernel.

The first step of a shape runs plainly, which warms up what lazily starts; the second is captured, all others are replayed.
Nothing is run twice and no step is lost. A step that cannot be captured goes on plainly, and ``reason`` says why. So do all steps
where memory does not suffice for the captured ones, which keep their pool beside what a plain step of another shape needs; a plain
step that it ended is begun anew (``Fit``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from loracle.base.errors import one_line
from loracle.base.log import logger

NO_ROOM = "memory does not suffice for CUDA graphs: the steps run kernel by kernel"


@functools.cache
def side_stream(device: torch.device) -> Any:
    """One stream for all captures of this process: cuBLAS keeps a workspace (32 MiB on Hopper) for every stream that it has seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class Graphs:
    """Pieces of a step by key; all share one memory pool, as they never run side by side."""

    def __init__(self, device: torch.device, on: bool) -> None:
        self.on = on and device.type == "cuda"
        self.reason: str | None = None
        self.captured: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._seen: set[Hashable] = set()
        self._inputs: dict[Hashable, torch.Tensor] = {}
        self._pool: Any = None
        # The default stream cannot be captured. Other threads (Transformers' loaders) use it, so it stays the current one elsewhere.
        self.stream: Any = side_stream(device) if self.on else None

    @contextmanager
    def side(self) -> Iterator[None]:
        """Within the block work runs on the stream that captures, after what came before and before what comes after."""
        if self.stream is None:
            yield
            return
        outer = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(outer)
        with torch.cuda.stream(self.stream):
            yield
        outer.wait_stream(self.stream)

    def release(self) -> None:
        """Give the memory of all captures back."""
        self.captured.clear()
        self._inputs.clear()
        self._pool = None
        if self.stream is not None:
            torch.cuda.empty_cache()

    def give_up(self, why: str) -> None:
        """No graphs from here on; captured steps give their memory back."""
        self.on, self.reason = False, why
        logger.warning(why)
        if self.stream is not None:
            torch.cuda.synchronize()
        self.release()

    def placed(self, key: Hashable, values: torch.Tensor, device: torch.device) -> torch.Tensor:
        """``values`` (pinned) on the device, where the piece called ``key`` reads them at every run."""
        here = self._inputs.get(key)
        if here is None:
            here = self._inputs[key] = torch.empty_like(values, device=device)
        here.copy_(values, non_blocking=True)
        return here

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Do ``work``: it may read and write only tensors that stay where they are."""
        if not self.on:
            work()
        elif key in self.captured:
            self.captured[key].replay()
        elif key not in self._seen:
            self._seen.add(key)
            work()
        else:
            self._capture(key, work)

    def _capture(self, key: Hashable, work: Callable[[], None]) -> None:
        graph, why = torch.cuda.CUDAGraph(), ""
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=torch.cuda.current_stream()):
                work()
        except torch.OutOfMemoryError:
            why = NO_ROOM
        except RuntimeError as error:
            why = f"this step cannot be captured as a CUDA graph: {one_line(error)}"
        if why:  # a capture runs nothing, so nothing was done yet
            del graph
            self.give_up(why)
            work()
            return
        self._pool = self._pool or graph.pool()
        self.captured[key] = graph
        graph.replay()
