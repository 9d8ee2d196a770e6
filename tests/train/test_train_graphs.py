"""CUDA graphs give way where memory ends beside them, and no step is lost (the graphs themselves: test_train_gpu.py)."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import pytest
import torch

from loracle.train.graphs import NO_ROOM, Graphs
from tests.conftest import text_rows
from tests.engine import RunSpec, base, make_fit


class Stands:
    """A captured step that is already there."""

    def replay(self) -> None:
        raise AssertionError("no key is like its")


def trained(monkeypatch: pytest.MonkeyPatch, ends_at: int | None) -> Any:
    """Four steps of two micro-batches; memory ends amid the second one of step ``ends_at``, after gradients were added."""
    left = [] if ends_at is None else [2 * ends_at + 1]

    def run(self: Graphs, key: Hashable, work: Callable[[], None]) -> None:
        work()
        if self.on and key != "update":
            self.count = getattr(self, "count", -1) + 1
            if left == [self.count]:
                raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(Graphs, "run", run)
    loaded = base(dtype="float64")  # rows are padded less without graphs: the same but for rounding
    fit, _ = make_fit(loaded, [RunSpec("a", dropout=0.1), RunSpec("b", seed=7)], text_rows(16), 4, 2, accumulation=2)
    fit.graphs.on = True
    fit.graphs.captured = {"another shape": Stands()}  # type: ignore[dict-item]
    for step in range(4):
        fit.step(step, fit.batches(step))
    return fit


def test_a_step_that_ends_for_want_of_memory_begins_anew_without_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, short = trained(monkeypatch, None), trained(monkeypatch, 2)
    assert whole.graphs.on
    assert not short.graphs.on
    assert short.graphs.reason == NO_ROOM
    assert not short.graphs.captured
    torch.testing.assert_close(short.losses, whole.losses, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(short.cohort.flat.data, whole.cohort.flat.data, rtol=1e-6, atol=1e-8)
    assert torch.equal(short.tokens, whole.tokens)


def test_without_captured_steps_memory_that_ends_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fit, _ = make_fit(base(), [RunSpec("a")], text_rows(8), 2, 2)

    def run(self: Graphs, key: Hashable, work: Callable[[], None]) -> None:
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(Graphs, "run", run)
    with pytest.raises(torch.OutOfMemoryError):
        fit.step(0, fit.batches(0))


class Capture:
    """A capture that fails as it begins."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, *_: Any, **__: Any) -> Capture:
        return self

    def __enter__(self) -> None:
        raise self.error

    def __exit__(self, *_: Any) -> None: ...


@pytest.mark.parametrize(
    ("error", "reason"),
    [(torch.OutOfMemoryError("no more"), NO_ROOM), (RuntimeError("a host read"), "cannot be captured as a CUDA graph")],
)
def test_a_step_that_cannot_be_captured_runs_plainly(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs, done = Graphs(torch.device("cpu"), on=False), []
    graphs.on = True
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "graph", Capture(error))
    for number in range(3):
        graphs.run("a shape", lambda number=number: done.append(number))  # type: ignore[misc]
    assert done == [0, 1, 2]
    assert not graphs.on
    assert graphs.reason is not None
    assert reason in graphs.reason
