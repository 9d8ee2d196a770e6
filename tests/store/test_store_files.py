"""The study folder: atomic writes, torn files, claims, names, identity, provenance."""

from __future__ import annotations

import getpass
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from loracle.base.errors import StoreError, one_line
from loracle.base.names import is_safe, slug, suggest
from loracle.spec.study import Cell, Task
from loracle.store.claims import claim
from loracle.store.files import canonical_json, digest, read_json, read_jsonl, replacing, write_json, write_text
from loracle.store.identity import cell_digest, run_digest
from loracle.store.layout import StudyFolder
from loracle.store.provenance import provenance, without_credentials


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text(f"half {1 // 0}" if temporary.write_text("half") else "")
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert read_json(path) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_json_has_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [float("nan"), float("inf"), 1.5], 3: (1,)})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [None, None, 1.5], "3": [1]}


@pytest.mark.parametrize("content", [b"", b'{"x": 1', b"\xff\xfe"])
def test_a_damaged_file_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"a\.json: not valid JSON .*delete it"):
        read_json(path)


def test_a_newer_schema_is_refused_and_a_missing_file_named(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"schema": 99})
    with pytest.raises(StoreError, match="written by a newer loracle"):
        read_json(tmp_path / "a.json")
    with pytest.raises(StoreError, match="no such file"):
        read_json(tmp_path / "b.json")


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    assert read_jsonl(path) == []
    write_text(path, '{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]


def test_canonical_json_is_one_string_for_one_value() -> None:
    assert canonical_json({"b": 1, "a": [1.5, "é"]}) == b'{"a":[1.5,"\\u00e9"],"b":1}'
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 2.5})


def test_a_second_process_is_refused_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    lock = tmp_path / "study.lock"
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom loracle.store.claims import claim\n"
        "with claim(Path(sys.argv[1]), 'it'):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(StoreError, match=f"the study is in use by process {holder.pid}"), claim(lock, "the study"):
        pass
    begin = time.monotonic()
    with pytest.raises(StoreError), claim(lock, "the study", wait_s=0.5):
        pass
    assert time.monotonic() - begin >= 0.5
    holder.kill()
    holder.wait()
    with claim(lock, "the study", wait_s=5):
        pass
    with claim(lock, "the study"):
        pass


@pytest.mark.parametrize(
    "name", ["..", "a/b", "../a", "", ".a", "A", "a b", "a\n", "a..b", "a" * 129, "é", "-a", "a\x00"]
)
def test_names_stay_inside_the_study(name: str, tmp_path: Path) -> None:
    assert not is_safe(name)
    layout = StudyFolder(tmp_path)
    for place in (layout.run, layout.cohort, layout.probe, layout.job):
        with pytest.raises(StoreError, match="is not a safe name"):
            place(name)
    assert is_safe(slug(name))


def test_safe_names() -> None:
    assert all(map(is_safe, ("a", "nf4-r8-qkv-s42-1e6ab7", "0.5_x", "a" * 128)))
    assert slug("Some Org/Model (v2)…") == "some-org-model-v2"
    assert suggest("rnk", ["rank", "alpha"]) == "did you mean 'rank'?"
    assert suggest("zzz", ["rank", "alpha"]) == "known: alpha, rank"


def settings(**changes: Any) -> dict[str, Any]:
    return Cell(task=Task(data="/a/rows.jsonl")).model_copy(update=changes).model_dump()


def test_identity_is_of_settings_and_contents_not_of_places() -> None:
    one = cell_digest(settings(), "base", "data")
    elsewhere = settings(task=Task(data="/b/other.jsonl", eval="/b/e.jsonl"), storage="quantized")
    elsewhere["base"]["model"] = "/another/place"
    assert cell_digest(elsewhere, "base", "data") == one
    assert cell_digest(settings(precision="nf4"), "base", "data") != one
    assert cell_digest(settings(), "other base", "data") != one
    assert cell_digest(settings(), "base", "other data") != one
    assert len({run_digest(one, *seeds) for seeds in ((1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2))}) == 4


def test_provenance_is_an_allow_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    found = provenance("cpu", 2)
    assert set(found) == {"engine", "versions", "system", "machine", "device", "threads"}
    text = json.dumps(found)
    for private in ("hf_secret", socket.gethostname(), str(Path.home()) + "/", f'"{getpass.getuser()}"', sys.argv[0]):
        assert private not in text
    assert found["versions"]["torch"]


def test_urls_lose_their_credentials() -> None:
    assert without_credentials("https://u:p@h.org:8443/a/b?token=x#y") == "https://h.org:8443/a/b"
    assert without_credentials("PolyAI/banking77") == "PolyAI/banking77"


def test_one_line_of_an_error() -> None:
    assert one_line(StoreError("a\n  b")) == "a b"
    assert one_line(ValueError("x")) == "ValueError: x"
    assert one_line(KeyError()) == "KeyError: KeyError"
    assert len(one_line(ValueError("x" * 900))) == 400
