"""Where a task's rows lie: files and hub data sets, told apart and known by their content."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loracle.base.errors import DataError, SpecError
from loracle.spec.study import Task
from loracle.store.files import digest, file_sha256
from loracle.tasks.hub import read_hub
from loracle.tasks.readers import Table, check_file, file_of, looks_like_hub_id, read_table


@dataclass
class Source:
    """A file or hub data set: what identifies its content and, for the hub, the rows (read already)."""

    path: Path | None
    sha256: str
    table: Table | None = None

    def read(self) -> Table:
        """Its rows."""
        if self.table is None:
            assert self.path is not None
            self.table = read_table(self.path)
        return self.table


def sources(task: Task) -> tuple[Source, Source | None]:
    """Where training rows come from and, if not from there too, evaluation rows."""
    assert task.data is not None
    train = _source(task.data, "task.data", task.subset, task.split)
    if task.eval is not None:
        return train, _source(task.eval, "task.eval", task.subset, task.eval_split or "test")
    if task.eval_split is None:
        return train, None
    if train.path is not None:
        raise SpecError("is for hub data sets; for a file name the evaluation file under task.eval", "task.eval_split")
    return train, _source(task.data, "task.data", task.subset, task.eval_split)


def _source(text: str, where: str, subset: str | None, part: str) -> Source:
    path = file_of(text)
    if path is None and not looks_like_hub_id(text):
        raise DataError(f"'{text}' is neither a file that exists nor the id of a hub data set (org/name)", where)
    if path is not None:
        check_file(path)
        return Source(path, file_sha256(path))
    found = read_hub(text, subset, part)
    return Source(None, digest([[str(k), repr(v)] for row in found.rows for k, v in row.items()]), found)
