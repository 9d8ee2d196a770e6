"""``judgements.jsonl``: one line for each finished verdict, only ever added to. A kill costs at most what was not written yet."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from loracle.base.errors import StoreError
from loracle.store.files import finite, fsync_folder


class Judgements:
    """The verdicts of one folder, by key. One process at a time may have it open (the caller holds the lock)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lines: dict[str, dict[str, Any]] = {}
        self._file = open(path, "a+b")  # noqa: SIM115 (closed by __exit__)
        try:
            self._read()
            fsync_folder(path.parent)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Judgements:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, line: dict[str, Any]) -> None:
        """Add a verdict and make it durable; one that is there already stays as it is."""
        if line["key"] in self.lines:
            return
        self._file.write(json.dumps(finite(line), ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.lines[line["key"]] = line

    def _read(self) -> None:
        """All lines; a half-written last one is cut off, a damaged one before it is a ``StoreError``."""
        self._file.seek(0)
        raw = self._file.read()
        end, pieces = 0, raw.split(b"\n")
        for number, piece in enumerate(pieces[:-1], 1):
            line = _parsed(piece)
            if line is None:
                if number < len(pieces) - 1 or pieces[-1]:
                    raise StoreError(f"{self.path}:{number}: not a verdict: delete this line to have it judged again")
                break
            self.lines.setdefault(line["key"], line)
            end += len(piece) + 1
        if end < len(raw):
            self._file.truncate(end)


def _parsed(raw: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("key"), str) else None
