"""Many questions at once: threads ask, the caller's thread alone keeps the verdicts. Says when it is no use to go on."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence

from loracle.base.errors import EXIT_UNFINISHED
from loracle.evaluate.judging.asking import EndpointJudge
from loracle.evaluate.judging.endpoint import JudgeError, Refused, Unavailable
from loracle.evaluate.judging.items import Item, Verdict

GIVE_UP = 5  # questions in a row without a reply
GRACE_S = 5.0  # that replies under way have to arrive when all is stopped

Keep = Callable[[Item, Verdict], None]
Outcome = Verdict | BaseException


class Stopped(JudgeError):
    """Asking was given up; what was judged is kept and the same command goes on from there."""

    exit_code = EXIT_UNFINISHED


class Collector:
    """Asks ``judge`` about items, ``concurrency`` at a time, and hands each verdict to ``keep`` once.

    ``answered``: whether this endpoint has given a verdict before; without one a refusal says nothing about the item.
    """

    def __init__(self, judge: EndpointJudge, keep: Keep, concurrency: int, answered: bool) -> None:
        self.judge, self.keep, self.concurrency, self.answered = judge, keep, concurrency, answered
        self.refused: list[tuple[Item, Refused]] = []
        self.unavailable: list[tuple[Item, Unavailable]] = []
        self._in_a_row = 0
        self._todo: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Item, Outcome]] = queue.SimpleQueue()

    def run(self, items: Sequence[Item]) -> list[tuple[Item, Unavailable]]:
        """Judge all items; returns those that no reply came for. Raises ``JudgeError`` where asking is no use."""
        for item in items:
            self._todo.put(item)
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(min(self.concurrency, len(items)))]
        for thread in threads:
            thread.start()
        try:
            for _ in items:
                self._take(*self._done.get())
        finally:
            self.judge.endpoint.close()
            self._gather(threads)
        self._settle_refused()
        return self.unavailable

    def _work(self) -> None:
        """A thread: one question after another until there are no more, or all is stopped."""
        while True:
            try:
                item = self._todo.get_nowait()
            except queue.Empty:
                return
            try:
                self._done.put((item, self.judge(item)))
            except BaseException as error:
                self._done.put((item, error))

    def _take(self, item: Item, outcome: Outcome) -> None:
        if isinstance(outcome, Verdict):
            self.keep(item, outcome)
            self.answered = self.answered or outcome.attempts > 0
            self._in_a_row = 0
        elif isinstance(outcome, Refused):
            self.refused.append((item, outcome))
            if not self.answered and len(self.refused) >= GIVE_UP:
                self._settle_refused()
        elif isinstance(outcome, Unavailable):
            self.unavailable.append((item, outcome))
            self._in_a_row += 1
            if self._in_a_row >= GIVE_UP:
                raise Stopped(
                    f"{self.judge.endpoint.url} does not answer: {outcome}; the same command goes on from here"
                )
        else:
            raise outcome

    def _settle_refused(self) -> None:
        """Refusals are about their items where others were answered, else about the endpoint."""
        if self.refused and not self.answered:
            raise JudgeError(f"{self.judge.endpoint.url} refuses every question: {self.refused[0][1]}")
        for item, error in self.refused:
            self.keep(item, self.judge.refused(item, error))

    def _gather(self, threads: Sequence[threading.Thread]) -> None:
        """Keep what has arrived, and what arrives soon, also when all is stopped: it was paid for."""
        while not self._todo.empty():
            try:
                self._todo.get_nowait()
            except queue.Empty:
                break
        deadline = time.monotonic() + GRACE_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        while not self._done.empty():
            item, outcome = self._done.get()
            if isinstance(outcome, Verdict):
                self.keep(item, outcome)
