"""Trackers (``run.track``): what ``metrics.jsonl`` says, in W&B, TensorBoard, MLflow or trackio too, through accelerate.

``metrics.jsonl`` stays the record; a tracker is fed its lines, after each flush, by a thread of its own. So a tracker that
fails or hangs costs one warning, never the training, and after a resume there is nothing to keep in step: the file was cut
back to the checkpoint. What lies in the study folder (``tracking/``) is written anew from the file's first line; a server
is fed the steps that it does not have.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from loracle.base.errors import one_line
from loracle.base.extras import require_trackers
from loracle.base.log import logger
from loracle.store.claims import claim
from loracle.store.files import write_text
from loracle.store.layout import StudyFolder
from loracle.worker.tracker_kinds import OPENERS, Feed, Tracked

LAST_WORDS_S = 60.0  # how long a finished job waits for its trackers; one asked to stop waits a third of it


class Trackers:
    """All trackers of one train job, as a context manager. ``names`` is ``run.track``; none: nothing happens.

    A tracker that is not installed is a ``SpecError`` here, before anything is loaded.
    """

    def __init__(self, names: Sequence[str], study: str, folder: StudyFolder, members: Sequence[Any]) -> None:
        require_trackers(tuple(names))
        self.names = list(names)
        self._news: SimpleQueue[str] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._feeds: dict[str, list[Feed]] = {}
        self._wait_s = LAST_WORDS_S / 3
        if not names:
            return
        single_process()
        place = folder.root / "tracking"
        token = folder_token(place)
        self._members = [Tracked(m.run, study, m.label, m.config, folder.run(m.run), place, token) for m in members]

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *error: object) -> None:
        """Whatever ``finish`` did not close ends as interrupted."""
        if self._thread is None:
            return
        self._news.put("interrupted")
        self._thread.join(self._wait_s)
        if self._thread.is_alive():
            logger.warning("run.track: %s still busy after %.0f s, left behind", ", ".join(self._feeds), self._wait_s)

    def feed(self) -> None:
        """Pass on what is new in every ``metrics.jsonl``; to be called once it is cut back, and after each flush."""
        if self.names and self._thread is None:
            self._thread = threading.Thread(target=self._listen, name="trackers", daemon=True)
            self._thread.start()
        self._news.put("feed")

    def finish(self) -> None:
        """The runs' records are written: final figures, status, end."""
        self._wait_s = LAST_WORDS_S
        self._news.put("recorded")

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        for name in self.names:
            self._feeds[name] = []
            for member in self._members:
                self._guard(name, partial(self._open, name, member))
        while (news := self._news.get()) == "feed":
            self._each(Feed.feed)
        self._each(lambda feed: feed.end(news == "recorded"))

    def _open(self, name: str, member: Tracked) -> None:
        self._feeds[name].append(OPENERS[name](member))

    def _each(self, act: Callable[[Feed], None]) -> None:
        for name, feeds in list(self._feeds.items()):
            for feed in feeds:
                self._guard(name, partial(act, feed))

    def _guard(self, name: str, act: Callable[[], None]) -> None:
        """A tracker that fails is left out from then on, for all runs, with one warning."""
        if name not in self._feeds:
            return
        try:
            act()
        except Exception as error:
            logger.warning("run.track: %s failed, going on without it: %s", name, one_line(error))
            del self._feeds[name]


def single_process() -> None:
    """accelerate's trackers want its process state. A worker is one process, whatever a cluster's variables say, so they
    are hidden from it: it would start a process group."""
    from accelerate import PartialState
    from accelerate.utils import clear_environment

    with clear_environment():
        PartialState(cpu=True)


def folder_token(place: Path) -> str:
    """Eight hexadecimal digits that are this study folder's, drawn once; two workers at once agree."""
    path = place / "folder-id"
    with claim(place / "folder-id.lock", "tracking/folder-id", LAST_WORDS_S):
        if not path.exists():
            write_text(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8")
