"""Files to rows: json, jsonl, csv, tsv, parquet. Every error is one line with ``file:line`` where a line is known.

Not covered: hub data sets (``hub.py``), what a row means (``formats.py``).
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loracle.base.errors import DataError
from loracle.base.names import nearest
from loracle.tasks.squad import is_squad, squad_rows

RawRow = dict[str, Any]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class Table:
    """What a file or data set holds: its rows in order, all columns seen, and its name for messages."""

    name: str
    columns: tuple[str, ...]
    rows: list[RawRow]


def read_table(path: Path) -> Table:
    """All rows of a data file, by its ending; ``DataError`` for what cannot be read."""
    check_file(path)
    try:
        rows = list(READERS[path.suffix.lower()](path))
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text: {_bad_byte(path, error)}; save it as UTF-8", str(path)) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", str(path)) from None
    return table(str(path), rows)


def table(name: str, rows: list[RawRow]) -> Table:
    """A table of ``rows``, with the columns in order of first appearance; an empty one is an error."""
    if not rows:
        raise DataError("holds no rows", name)
    columns: dict[str, None] = {}
    for row in rows:
        if row.keys() - columns.keys():
            columns.update(dict.fromkeys(row))
    return Table(name, tuple(columns), rows)


def file_of(text: str) -> Path | None:
    """The file that ``task.data`` or ``task.eval`` names, whether it exists or not; None for anything else (a hub id)."""
    path = Path(text).expanduser()
    is_path = path.exists() or text.lower().endswith(tuple(READERS)) or text.startswith((".", "/", "~"))
    return path if is_path else None


def looks_like_hub_id(text: str) -> bool:
    """``org/name``, no ending of a data file. Never a bare word: ``datasets`` takes ``csv`` for the current folder."""
    return bool(HUB_ID.fullmatch(text)) and not text.lower().endswith(tuple(READERS))


def check_file(path: Path) -> None:
    """Say at once what is wrong with a path: missing, a folder, empty, an ending that no reader takes."""
    if path.is_dir():
        raise DataError(f"is a folder; name a file in it ({', '.join(READERS)})", str(path))
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        near = nearest(path.name, siblings)
        raise DataError(f"no such file{f', did you mean {near!r}?' if near else ''}", str(path))
    if path.suffix.lower() not in READERS:
        raise DataError(f"'{path.suffix}' is not an ending loracle reads: use {', '.join(READERS)}", str(path))
    if path.stat().st_size == 0:
        raise DataError("the file is empty", str(path))


def read_jsonl(path: Path) -> Iterator[RawRow]:
    """One JSON object a line; blank lines are passed over."""
    with open(path, encoding="utf-8-sig", newline="\n") as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"not valid JSON ({_problem(error)})", where) from None
            if not isinstance(row, dict):
                raise DataError(f"a row must be a JSON object, this is {_kind(row)}", where)
            yield row


def read_json(path: Path) -> Iterator[RawRow]:
    """A JSON list of objects, or ``{"data": [objects]}``; SQuAD's nested file gives one row a question."""
    text = path.read_text(encoding="utf-8-sig")
    if not text.strip():
        raise DataError("the file is empty", str(path))
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; one object a line? then name it .jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"not valid JSON ({error.msg}, column {error.colno}){hint}", f"{path}:{error.lineno}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON that can be read ({_problem(error)})", str(path)) from None
    if is_squad(value):
        yield from squad_rows(value, path)
        return
    start = 0
    if isinstance(value, dict):
        if not isinstance(value.get("data"), list):
            raise DataError('holds one object: a list of objects is needed, or {"data": [objects]}', str(path))
        found = re.search(r'"data"\s*:\s*(?=\[)', text)
        value, start = value["data"], found.end() if found else 0
    if not isinstance(value, list):
        raise DataError(f"a list of objects is needed, this is {_kind(value)}", str(path))
    for index, row in enumerate(value):
        if not isinstance(row, dict):
            line = _item_line(text, start, index)
            raise DataError(f"a row must be a JSON object, this is {_kind(row)}", f"{path}:{line}")
        yield row


def _item_line(text: str, start: int, index: int) -> int:
    """The line on which item ``index`` of the JSON list at ``text[start:]`` begins."""
    decoder, space = json.JSONDecoder(), re.compile(r"[\s,]*")
    position = text.index("[", start) + 1
    for _ in range(index):
        position = decoder.raw_decode(text, _skip(space, text, position))[1]
    return text.count("\n", 0, _skip(space, text, position)) + 1


def _skip(space: re.Pattern[str], text: str, position: int) -> int:
    match = space.match(text, position)
    return match.end() if match else position


def read_csv(path: Path) -> Iterator[RawRow]:
    """Comma-separated, quoted as RFC 4180 says; the first line names the columns."""
    csv.field_size_limit(1 << 30)
    with open(path, encoding="utf-8-sig", newline="") as handle:
        yield from _records(path, _csv_records(path, handle))


def _csv_records(path: Path, handle: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(handle, strict=True)
    line = 1
    try:
        for fields in reader:
            yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        problem = "a quote that opens here is never closed" if "unexpected end" in str(error) else str(error)
        raise DataError(f"not valid CSV: {problem}", f"{path}:{line}") from None


def read_tsv(path: Path) -> Iterator[RawRow]:
    """Tab-separated, one row a line; a field is unquoted only where its quotes are balanced, as pandas writes them."""
    with open(path, encoding="utf-8-sig", newline="\n") as handle:
        lines = ((n, [_unquoted(f) for f in line.rstrip("\r\n").split("\t")]) for n, line in enumerate(handle, 1))
        yield from _records(path, lines)


def _unquoted(text: str) -> str:
    """``"a ""b"" c"`` → ``a "b" c``; SST-2's stray quotes stay."""
    inner = text[1:-1]
    if len(text) < 2 or text[0] != '"' or text[-1] != '"' or '"' in inner.replace('""', ""):
        return text
    return inner.replace('""', '"')


def _records(path: Path, lines: Iterator[tuple[int, list[str]]]) -> Iterator[RawRow]:
    """Rows as dicts, from (line number, fields); the first one is the header."""
    header: list[str] | None = None
    for number, fields in lines:
        where = f"{path}:{number}"
        if header is None:
            header = [name.strip() for name in fields]
            twice = [name for name in header if header.count(name) > 1]
            if twice:
                raise DataError(f"column '{twice[0]}' stands twice in the header", where)
        elif any(fields):
            if len(fields) != len(header):
                raise DataError(f"{len(fields)} fields where the header has {len(header)} ({', '.join(header)})", where)
            yield dict(zip(header, fields, strict=True))


def read_parquet(path: Path) -> Iterator[RawRow]:
    """Rows of a parquet file, a batch at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise DataError(f"not a readable parquet file ({' '.join(str(error).split())[:120]})", str(path)) from None


def _problem(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    # json's other ValueError: an integer of more digits than Python reads
    return "nested too deeply" if isinstance(error, RecursionError) else "a number too long"


def _kind(value: Any) -> str:
    names = {list: "a list", dict: "an object", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _bad_byte(path: Path, error: UnicodeDecodeError) -> str:
    """The line of the first byte that is not UTF-8 (the decoder's own offset is within a chunk)."""
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as bad:
                return f"byte 0x{line[bad.start]:02x} on line {number}"
    return error.reason


READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
}
