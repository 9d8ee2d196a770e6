"""Trackers are fed what ``metrics.jsonl`` says, once, whatever happens to them or to the job."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loracle.base.errors import SpecError
from loracle.base.extras import require_trackers
from loracle.store.files import write_json
from loracle.store.layout import StudyFolder
from loracle.worker import tracking
from loracle.worker.tracking import Trackers


@dataclass(frozen=True)
class Run:
    run: str
    label: str
    config: dict[str, Any]


MEMBERS = [Run(f"nf4-r{r}-s42", f"nf4 r={r}", {"precision": "nf4", "adapter": {"rank": r}}) for r in (2, 4)]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyFolder:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return StudyFolder(tmp_path / "study")


def lines(rank: int, first: int, last: int) -> list[dict[str, Any]]:
    """What ``flush`` appends for steps ``first`` to ``last``, an evaluation every second step, one figure not finite."""
    out: list[dict[str, Any]] = []
    for step in range(first, last + 1):
        norm = None if step == 2 else 0.5
        out.append({"step": step, "loss": 3.0 / step + rank, "lr": 1e-3, "grad_norm": norm, "tokens": 10 * step})
        if step % 2 == 0:
            out.append({"step": step, "eval_loss": 4.0 / step + rank})
    return out


def flush(study: StudyFolder, first: int, last: int) -> None:
    for member in MEMBERS:
        path = study.run(member.run) / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as handle:
            handle.writelines(json.dumps(line) + "\n" for line in lines(member.config["adapter"]["rank"], first, last))


def cut_back(study: StudyFolder, step: int) -> None:
    """As ``Fit.restore`` does."""
    for member in MEMBERS:
        path = study.run(member.run) / "metrics.jsonl"
        kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
        path.write_text("".join(f"{line}\n" for line in kept))


def record(study: StudyFolder) -> None:
    for member in MEMBERS:
        facts = {"status": "done", "eval_loss": 1.25, "metrics": {"perplexity": 3.5, "label_accuracy": None}}
        write_json(study.run_record(member.run), facts)


def whole_job(study: StudyFolder, names: tuple[str, ...]) -> None:
    """Killed after step 6 with a checkpoint at 4, then resumed and finished."""
    with Trackers(names, "mystudy", study, MEMBERS) as trackers:
        trackers.feed()
        flush(study, 1, 4)
        trackers.feed()
        flush(study, 5, 6)
        trackers.feed()
    cut_back(study, 4)
    with Trackers(names, "mystudy", study, MEMBERS) as trackers:
        trackers.feed()
        flush(study, 5, 8)
        trackers.feed()
        record(study)
        trackers.finish()


# -- reading back -----------------------------------------------------------------------------------------------------


def chunks(data: bytes) -> Iterator[bytes]:
    """Records of a W&B file: LevelDB's log format (blocks of 32 KiB, header crc, length, type) after 7 bytes."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if at + 7 + length > len(data):  # still being written
            return
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, last
            yield parts
            parts = b""


def wandb_run(path: Path) -> tuple[Any, list[dict[str, Any]], dict[str, Any], int | None]:
    """The run record, its history rows, its summary and its exit code, once W&B's own process has written the last."""
    deadline = time.monotonic() + 30
    while (found := wandb_records(path))[-1] is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def wandb_records(path: Path) -> tuple[Any, list[dict[str, Any]], dict[str, Any], int | None]:
    """What the file holds so far."""
    from wandb.proto.wandb_internal_pb2 import Record

    run, rows, summary, code = None, [], {}, None
    for chunk in chunks(path.read_bytes()):
        item = Record()
        item.ParseFromString(chunk)
        kind = item.WhichOneof("record_type")
        if kind == "run":
            run = item.run
        elif kind == "history":
            rows.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in item.history.item})
        elif kind == "summary":
            summary |= {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in item.summary.update}
        elif kind == "exit":
            code = item.exit.exit_code
    return run, rows, summary, code


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def expected(member: Run, key: str) -> list[tuple[int, float]]:
    rows = lines(member.config["adapter"]["rank"], 1, 8)
    return [(row["step"], row[key]) for row in rows if row.get(key) is not None]


# -- tests ------------------------------------------------------------------------------------------------------------


def test_wandb_offline_one_folder_a_run(study: StudyFolder) -> None:
    pytest.importorskip("wandb")
    whole_job(study, ("wandb",))
    folders = sorted((study.root / "tracking" / "wandb").glob("offline-run-*"))
    assert len(folders) == len(MEMBERS)
    by_name = {}
    for folder in folders:
        run, rows, summary, code = wandb_run(next(folder.glob("*.wandb")))
        by_name[run.display_name] = rows
        assert (run.run_group, run.project, code) == ("mystudy", "loracle", 0)
        assert run.run_id.startswith(run.display_name)
        assert (summary["status"], summary["final/eval_loss"], summary["final/perplexity"]) == ("done", 1.25, 3.5)
        config = {i.key or ".".join(i.nested_key): i.value_json for i in run.config.update}
        assert json.loads(config["precision"]) == "nf4"
    for member in MEMBERS:
        for key in ("loss", "eval_loss", "grad_norm", "tokens"):
            seen = [(row["_step"], row[key]) for row in by_name[member.run] if key in row]
            assert seen == expected(member, key), key


def test_tensorboard_values_and_steps(study: StudyFolder) -> None:
    pytest.importorskip("tensorboard")
    whole_job(study, ("tensorboard",))
    for member in MEMBERS:
        seen = scalars(study.root / "tracking" / "tensorboard" / member.run)
        for key in ("loss", "lr", "grad_norm", "tokens", "eval_loss"):
            assert [s for s, _ in seen[key]] == [s for s, _ in expected(member, key)], key
            assert [v for _, v in seen[key]] == pytest.approx([v for _, v in expected(member, key)], rel=1e-6)
        assert [v for _, v in seen["final/eval_loss"]] == [1.25]
        assert "final/label_accuracy" not in seen


def test_mlflow(study: StudyFolder) -> None:
    mlflow = pytest.importorskip("mlflow", minversion="3")
    whole_job(study, ("mlflow",))
    client = mlflow.MlflowClient()
    found = client.search_runs([client.get_experiment_by_name("mystudy").experiment_id])
    assert sorted(run.info.run_name for run in found) == sorted(m.run for m in MEMBERS)
    for run in found:
        member = next(m for m in MEMBERS if m.run == run.info.run_name)
        assert run.info.status == "FINISHED"
        assert run.data.params["adapter.rank"] == str(member.config["adapter"]["rank"])
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "loss")]
        assert steps == list(range(1, 9))


def test_trackio(study: StudyFolder) -> None:
    pytest.importorskip("trackio")
    whole_job(study, ("trackio",))
    from trackio.sqlite_storage import SQLiteStorage

    for member in MEMBERS:
        name = next(n for n in SQLiteStorage.get_runs("loracle") if n.startswith(member.run))
        rows = SQLiteStorage.get_logs("loracle", name)
        assert [(row["step"], row["loss"]) for row in rows if "loss" in row] == expected(member, "loss")


def test_failing_tracker_is_one_warning(
    study: StudyFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboard")
    from accelerate.tracking import TensorBoardTracker

    def full(self: object, values: object, step: int | None = None, **extra: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(TensorBoardTracker, "log", full)
    whole_job(study, ("tensorboard",))
    told = [r.getMessage() for r in caplog.records if "run.track" in r.getMessage()]
    assert told == ["run.track: tensorboard failed, going on without it: OSError: no space left on device"] * 2  # jobs


def test_hanging_tracker_does_not_hold_the_job(
    study: StudyFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import threading

    never = threading.Event()
    monkeypatch.setattr(tracking, "LAST_WORDS_S", 0.2)
    monkeypatch.setitem(tracking.OPENERS, "tensorboard", lambda member: never.wait())
    pytest.importorskip("tensorboard")
    flush(study, 1, 4)
    with Trackers(("tensorboard",), "mystudy", study, MEMBERS) as trackers:
        trackers.feed()
    assert "still busy" in caplog.text
    never.set()


def test_an_interrupted_run_is_not_done(study: StudyFolder) -> None:
    pytest.importorskip("wandb")
    record(study)  # an older one
    flush(study, 1, 2)
    with Trackers(("wandb",), "mystudy", study, MEMBERS) as trackers:
        trackers.feed()
    for folder in (study.root / "tracking" / "wandb").glob("offline-run-*"):
        _, rows, summary, code = wandb_run(next(folder.glob("*.wandb")))
        assert code == 1
        assert "status" not in summary
        assert [row["_step"] for row in rows] == [1, 2]


def test_wandb_without_a_key_goes_offline(
    study: StudyFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wandb = pytest.importorskip("wandb")
    wandb.teardown()  # it reads its settings once a process
    for name in ("WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "")  # so that what the tracker sets is taken back
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # a host that no key is for
    flush(study, 1, 2)
    with Trackers(("wandb",), "mystudy", study, MEMBERS) as trackers:
        trackers.feed()
    wandb.teardown()
    assert len(list((study.root / "tracking" / "wandb").glob("offline-run-*"))) == len(MEMBERS)
    assert caplog.text.count("wandb goes offline") == 1


def test_nothing_asked_nothing_done(study: StudyFolder) -> None:
    with Trackers((), "mystudy", study, MEMBERS) as trackers:
        trackers.feed()
        trackers.finish()
    assert not study.root.exists()


def test_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch, study: StudyFolder) -> None:
    monkeypatch.setattr("loracle.base.extras.find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"run\.track: the tracker 'wandb' needs .* pip install 'loracle\[track\]'"):
        require_trackers(("wandb",))
    with pytest.raises(SpecError, match="not installed"):
        Trackers(("tensorboard",), "mystudy", study, MEMBERS)
