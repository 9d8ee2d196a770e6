"""Claims: an OS lock on a file says who works on a folder. It goes with the process, however that ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loracle.base.errors import StoreError


@contextmanager
def claim(path: Path, what: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` for the block; a second holder gets a ``StoreError`` after ``wait_s`` seconds.

    The lock file stays (removing it would let two processes hold two files of one name).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _acquire(descriptor, path, what, time.monotonic() + wait_s)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, path: Path, what: str, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                holder = path.read_text(errors="replace").strip() or "unknown"
                raise StoreError(f"{what} is in use by process {holder}: wait for it, or stop it first") from None
            time.sleep(0.2)
