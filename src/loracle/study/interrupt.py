"""Ctrl-C and SIGTERM: noted, then acted on between two looks at the workers, so nothing is torn."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

from loracle.base.errors import EXIT_SIGINT, EXIT_SIGTERM, LoracleError


class Interrupted(LoracleError):
    """The study was asked to stop and did; what is unfinished can be resumed."""

    def __init__(self, message: str, exit_code: int = EXIT_SIGINT) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Stop:
    """While open, SIGINT and SIGTERM set ``number`` and count ``times`` in place of ending the process."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.times = 0
        self._before: dict[int, object] = {}

    @property
    def exit_code(self) -> int:
        return EXIT_SIGTERM if self.number == signal.SIGTERM else EXIT_SIGINT

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        self.times += 1
