"""Tokenized rows on disk: ``KEY/train.parquet``, ``KEY/eval.parquet`` and ``KEY/meta.json``, which is written last."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from loracle.base.errors import StoreError
from loracle.base.log import logger
from loracle.store.files import SCHEMA, canonical_json, read_json, replacing, write_json
from loracle.tasks.rows import Row, Tokenized

_LATER = ("label_id", "references", "group")


def fingerprint(*parts: Iterable[Row]) -> str:
    """SHA-256 over the rows of each part: every field, in order."""
    sha = hashlib.sha256()
    for rows in parts:
        for row in rows:
            fields = [row.item, row.input_ids, row.labels, row.prompt_ids, row.reference, row.label]
            # Later fields only where they are set: rows without them keep the fingerprint they always had.
            fields += [{name: value} for name in _LATER if (value := getattr(row, name)) is not None]
            sha.update(canonical_json(fields) + b"\n")
        sha.update(b"--\n")
    return sha.hexdigest()


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Rows as parquet: item, input_ids, labels, prompt_ids, reference, label, label_id, references, group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = pa.list_(pa.int32())
    kinds = {"item": pa.int64(), "input_ids": ids, "labels": ids, "prompt_ids": ids}
    kinds |= {"reference": pa.string(), "label": pa.string()}
    kinds |= {"label_id": pa.int32(), "references": pa.list_(pa.string()), "group": pa.string()}
    columns = {name: pa.array([getattr(row, name) for row in rows], type=kind) for name, kind in kinds.items()}
    with replacing(path) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd")


def read_rows(path: Path) -> list[Row]:
    """Rows written by ``write_rows``, also by a version that knew fewer columns."""
    import pyarrow.parquet as pq

    return [Row(**row) for row in pq.read_table(path).to_pylist()]


def save(folder: Path, tokenized: Tokenized) -> None:
    """Write a task's rows; a folder without ``meta.json`` counts as not there."""
    write_rows(folder / "train.parquet", tokenized.train)
    write_rows(folder / "eval.parquet", tokenized.eval)
    meta: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "data",
        "key": tokenized.key,
        "fingerprint": tokenized.fingerprint,
        "format": tokenized.format,
        "labels": list(tokenized.labels),
        "audit": tokenized.audit,
    }
    write_json(folder / "meta.json", meta)


def load(folder: Path) -> Tokenized | None:
    """The rows in ``folder``, or None where they are not there, not whole, or not what ``meta.json`` says."""
    import pyarrow as pa

    if not (folder / "meta.json").exists():
        return None
    try:
        meta = read_json(folder / "meta.json")
        train, evaluation = read_rows(folder / "train.parquet"), read_rows(folder / "eval.parquet")
        if fingerprint(train, evaluation) != meta["fingerprint"] or meta["key"] != folder.name:
            raise StoreError("the rows are not those that meta.json names")
        return Tokenized(
            key=meta["key"],
            fingerprint=meta["fingerprint"],
            format=meta["format"],
            train=train,
            eval=evaluation,
            audit=meta["audit"],
            labels=tuple(meta["labels"]),
        )
    except (StoreError, OSError, pa.ArrowException, KeyError, TypeError) as error:
        logger.warning("tokenized data in %s is damaged and is made anew (%s)", folder, error)
        return None
