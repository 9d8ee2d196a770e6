import io

import pytest

from loracle.study.launch import parse_event, worker_environment
from loracle.study.progress import Bars, Brief, Plain, describe, for_stream

EVENT = {
    "event": "progress",
    "phase": "train",
    "step": 3,
    "steps": 60,
    "loss": 2.5,
    "tokens_per_s": 5210.4,
    "peak_bytes": 8.1e8,
}


def tell(progress):
    progress.started("inspect", "looking", 0)
    progress.event("inspect", {"phase": "load"})
    progress.ended("inspect", "done", "")
    progress.open(10, 2)
    progress.started("c1", "c1", 1)
    progress.event("c1", EVENT)
    progress.event("c1", {**EVENT, "step": 4})
    progress.event("c1", {"phase": "evaluate", "step": 1, "steps": None})
    progress.event("unknown", EVENT)
    progress.note("a [note] with brackets")
    progress.ended("c1", "oom", "does not fit")
    progress.advance(4)
    progress.close()


def test_plain_lines():
    stream = io.StringIO()
    tell(Plain(stream))
    lines = stream.getvalue().splitlines()
    assert "c1: train 3/60, loss 2.500, 5,210 tokens/s, peak 810 MB" in lines
    assert not any("train 4/60" in line for line in lines)
    assert "c1: oom: does not fit" in lines
    assert "6 of 10 runs have ended" in lines


def test_brief_lines():
    """However many jobs: what has ended, what went wrong, and a line now and then."""
    stream = io.StringIO()
    progress = Brief(stream)
    tell(progress)
    lines = stream.getvalue().splitlines()
    assert lines == [
        "looking: load",
        "10 runs, 2 of them finished before",
        "a [note] with brackets",
        "c1: oom: does not fit",
        "6 of 10 runs have ended",
    ]
    progress._said -= progress.every_s
    progress.event("c1", EVENT)
    progress.event("c2", EVENT)
    assert stream.getvalue().splitlines()[5:] == [f"c1: {describe(EVENT)}"]


@pytest.mark.parametrize("kind", [Plain, Brief])
def test_a_study_that_cannot_work_prints_no_progress(kind):
    stream = io.StringIO()
    progress = kind(stream)
    progress.started("inspect", "looking", 0)
    progress.event("inspect", {"phase": "load"})
    progress.event("inspect", {"phase": "tokenize"})
    progress.ended("inspect", "failed", "rows.jsonl:3: not valid JSON")
    progress.close()
    assert stream.getvalue() == ""  # the error line is the command's


def test_plain_shows_the_first_look_once_it_measures():
    stream = io.StringIO()
    progress = Plain(stream)
    progress.started("inspect", "looking", 0)
    progress.event("inspect", {"phase": "load"})
    assert stream.getvalue() == ""
    progress.event("inspect", {"phase": "measure"})
    assert stream.getvalue().splitlines() == ["looking: started", "looking: load", "looking: measure"]


def test_bars(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    tell(Bars())
    assert "a [note] with brackets" in capsys.readouterr().err


def test_describe_makes_do_with_little():
    assert describe({}) == "working"


def test_no_bars_without_a_terminal():
    assert isinstance(for_stream(io.StringIO()), Plain)


@pytest.mark.parametrize("line", [b"hello", b"{", b"3", b'{"event": "other"}', b"\xff\xfe"])
def test_other_output_is_no_progress(line):
    assert parse_event(line) is None


def test_worker_environment():
    ours = worker_environment({"HOME": "/h", "PYTHONPATH": "/x"}, 3, "1")
    assert ours["HOME"] == "/h"
    assert ours["OMP_NUM_THREADS"] == ours["MKL_NUM_THREADS"] == "3"
    assert ours["CUDA_VISIBLE_DEVICES"] == "1"
    assert ours["PYTHONPATH"].endswith(":/x")
    assert "CUDA_VISIBLE_DEVICES" not in worker_environment({}, 1)
