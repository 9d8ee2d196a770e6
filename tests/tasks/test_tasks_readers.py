from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loracle.base.errors import DataError
from loracle.tasks.readers import looks_like_hub_id, read_table


def rows(path: str) -> list[dict[str, Any]]:
    return read_table(Path(path)).rows


def test_json_list_and_data_object(write: Any) -> None:
    assert rows(write("a.json", [{"text": "x"}])) == [{"text": "x"}]
    assert rows(write("b.json", {"version": 1, "data": [{"text": "x"}]})) == [{"text": "x"}]


def test_jsonl_passes_over_blank_lines_and_a_byte_order_mark(write: Any) -> None:
    assert rows(write("a.jsonl", b'\xef\xbb\xbf{"text": "x"}\r\n\n{"text": "y\\u2028z"}\n')) == [
        {"text": "x"},
        {"text": "y\u2028z"},
    ]


def test_csv_quotes_and_line_breaks(write: Any) -> None:
    assert rows(write("a.csv", 'text,label\n"a ""b"", c\nd",1\n\nplain,2\n')) == [
        {"text": 'a "b", c\nd', "label": "1"},
        {"text": "plain", "label": "2"},
    ]


def test_tsv_keeps_stray_quotes_and_opens_balanced_ones(write: Any) -> None:
    text = 'label\tsentence\n0\t"bad" and `` worse\n1\t"a ""fine"" film"\n1\t"it \'s "great" , "no" really "ok"\n'
    assert [row["sentence"] for row in rows(write("a.tsv", text))] == [
        '"bad" and `` worse',
        'a "fine" film',
        '"it \'s "great" , "no" really "ok"',
    ]


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["x", None], "n": [1, 2]}), tmp_path / "a.parquet")
    assert rows(str(tmp_path / "a.parquet")) == [{"text": "x", "n": 1}, {"text": None, "n": 2}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n', r"a\.jsonl:2: not valid JSON"),
        ("a.jsonl", '{"a": 1}\n\n[1]\n', r"a\.jsonl:3: a row must be a JSON object, this is a list"),
        ("a.jsonl", "\n\n", r"a\.jsonl: holds no rows"),
        ("a.jsonl", '{"a": 1}\n{"a": ' + "1" * 5000 + "}", r"a\.jsonl:2: not valid JSON \(a number too long\)"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl:1: not valid JSON \(nested too deeply\)"),
        ("a.json", '[{"a": ' + "1" * 5000 + "}]", r"a\.json: not JSON that can be read \(a number too long\)"),
        ("a.json", "[" * 100_000, r"a\.json: not JSON that can be read \(nested too deeply\)"),
        (
            "a.json",
            '{"data": [{"paragraphs": [{"qas": []}]}]}',
            r"a\.json: data\.0\.paragraphs\.0\.context: is missing",
        ),
        ("a.json", '[{"a": 1},\n {"a" 2}]', r"a\.json:2: not valid JSON"),
        ("a.json", '[{"a": 1},\n {"b": "],"},\n 3]', r"a\.json:3: a row must be a JSON object, this is a number"),
        ("a.json", '{"data": [\n{"a": 1},\n "x"]}', r"a\.json:3: a row must be a JSON object, this is a string"),
        ("a.json", '{"a": 1}\n{"a": 2}', r"a\.json:2: not valid JSON .*name it \.jsonl"),
        ("a.json", '{"rows": []}', r"holds one object: a list of objects is needed"),
        ("a.json", "[]", r"a\.json: holds no rows"),
        ("a.csv", "a,b\n1,2\n\n1,2,3\n", r"a\.csv:4: 3 fields where the header has 2 \(a, b\)"),
        ("a.csv", 'a,b\n1,"x\ny"\n1,"open\nnever closed\n', r"a\.csv:4: not valid CSV: a quote that opens here"),
        ("a.csv", "a,a\n1,2\n", r"a\.csv:1: column 'a' stands twice"),
        ("a.csv", "a,b\n", r"a\.csv: holds no rows"),
        ("a.tsv", "a\tb\n1\n", r"a\.tsv:2: 1 fields where the header has 2"),
        ("a.csv", b"a,b\n1,2\ncaf\xe9,3\n", r"a\.csv: not UTF-8 text: byte 0xe9 on line 3"),
        ("a.jsonl", b"", r"a\.jsonl: the file is empty"),
        ("a.parquet", b"PAR1 no", r"a\.parquet: not a readable parquet file"),
        ("a.txt", "x", r"'\.txt' is not an ending loracle reads"),
    ],
)
def test_each_mistake_is_one_line_with_its_place(write: Any, name: str, content: Any, message: str) -> None:
    path = write(name, content)
    with pytest.raises(DataError, match=message) as caught:
        rows(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_suggested(write: Any, tmp_path: Path) -> None:
    write("train.jsonl", "{}")
    with pytest.raises(DataError, match=r"no such file, did you mean 'train\.jsonl'\?"):
        rows(str(tmp_path / "trian.jsonl"))
    with pytest.raises(DataError, match="is a folder"):
        rows(str(tmp_path))


def test_only_org_and_name_is_a_hub_id() -> None:
    assert looks_like_hub_id("tatsu-lab/alpaca")
    assert not any(map(looks_like_hub_id, ["csv", "a b/c", "x/y.jsonl", "../x/y", "a/b/c", "https://x.org/y"]))


def test_offline_hub_is_an_honest_line_at_once(tmp_path: Path) -> None:
    code = (
        "from loracle.tasks.hub import read_hub\n"
        "from loracle.base.errors import DataError\n"
        "try: read_hub('nosuch-org/nosuch-set', None, 'train')\n"
        "except DataError as e: print(e)"
    )
    began = time.monotonic()
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60, check=True)
    assert "nosuch-org/nosuch-set: no such file and no such data set reachable" in done.stdout
    assert done.stdout.count("\n") == 1
    assert time.monotonic() - began < 30
