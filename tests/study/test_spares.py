"""Workers that wait: what a study starts ahead, uses and leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loracle.store.files import read_json, write_json
from loracle.study import run_study
from loracle.study.launch import LocalLauncher


@pytest.fixture
def launcher(fake):
    """A launcher whose fake workers can wait."""
    made = LocalLauncher(spares=True)
    yield made
    made.close()


def waiting(launcher: LocalLauncher) -> list[int]:
    return [spare.process.pid for spares in launcher.spares._waiting.values() for spare in spares]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def job(folder: Path, **more) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / "job.json", {"schema": 1, "kind": "probe", "id": folder.name, **more})
    return folder


def probe_job(tmp_path: Path, name: str = "one") -> Path:
    return job(tmp_path / "study" / "probes" / name, cell=name, config={"storage": "quantized"})


def ended(worker) -> int:
    wait_for(lambda: worker.exit_code() is not None)
    code = worker.exit_code()
    worker.kill()
    return code


def test_a_spare_does_its_one_job_as_a_worker_does(launcher, tmp_path):
    launcher.prepare({(1, None): 1})
    [pid] = waiting(launcher)
    folder = probe_job(tmp_path)
    (folder / "log.txt").write_text("an earlier attempt\n")
    worker = launcher.start(folder, 1)
    assert worker._process.pid == pid
    assert ended(worker) == 0
    assert read_json(folder / "record.json")["status"] == "done"
    assert (folder / "log.txt").read_text() == "an earlier attempt\na spare is ready\n"
    assert not alive(pid)
    assert waiting(launcher) == []


def test_a_spare_reports_progress_and_its_failure(launcher, tmp_path, fake):
    fake(crash_probe=True)
    launcher.prepare({(1, None): 1})
    folder = probe_job(tmp_path)
    worker = launcher.start(folder, 1)
    assert ended(worker) == 1
    log = (folder / "log.txt").read_text()
    assert log.count("a spare is ready") == 1
    assert "RuntimeError: no probe today" in log


def test_a_spare_is_for_jobs_of_its_kind_only(launcher, tmp_path):
    launcher.prepare({(1, "0"): 1})
    [pid] = waiting(launcher)
    worker = launcher.start(probe_job(tmp_path), 1, "1")
    assert worker._process.pid != pid
    assert ended(worker) == 0
    assert waiting(launcher) == [pid]


def test_no_more_are_started_than_wanted(launcher):
    launcher.prepare({(1, None): 2})
    launcher.prepare({(1, None): 2})
    assert len(waiting(launcher)) == 2


def test_a_dead_spare_is_replaced_by_a_fresh_start(launcher, tmp_path):
    launcher.prepare({(1, None): 1})
    [pid] = waiting(launcher)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive(pid))
    worker = launcher.start(probe_job(tmp_path), 1)
    assert worker._process.pid != pid
    assert ended(worker) == 0


def test_a_spare_that_cannot_start_says_why_in_the_log(launcher, tmp_path, fake):
    fake(spare_dies=True)
    launcher.prepare({(1, None): 1})
    folder = probe_job(tmp_path)
    worker = launcher.start(folder, 1)  # at once: it has not died yet
    if ended(worker) != 0:
        assert "this spare dies" in (folder / "log.txt").read_text()


def test_close_leaves_no_process(launcher):
    launcher.prepare({(1, None): 2, (2, "0"): 1})
    pids = waiting(launcher)
    launcher.close()
    assert len(pids) == 3
    assert not any(map(alive, pids))


def test_a_foreign_command_gets_no_spares(fake):
    assert LocalLauncher().keeps_spares is False
    assert LocalLauncher(["worker"]).keeps_spares is False


def test_our_own_worker_does(monkeypatch):
    monkeypatch.delenv("LORACLE_WORKER_COMMAND", raising=False)
    assert LocalLauncher().keeps_spares is True


def test_a_study_with_spares_gives_what_it_gives_without(fake, launcher, make_study, tmp_path, monkeypatch):
    study, spans = make_study("run.threads=1"), tmp_path / "spans"
    run_study(study, tmp_path / "plain")
    fake(spans=str(spans))
    monkeypatch.setattr("loracle.study.resources.usable_cores", lambda: 8)
    assert run_study(study, tmp_path / "study", launcher=launcher).exit_code == 0
    lines = [json.loads(line) for line in spans.read_text().splitlines()]
    assert any(line["spare"] for line in lines if line["job"].startswith("cohorts/"))
    assert not lines[0]["spare"]  # inspect comes first
    assert waiting(launcher) == []
    for path in (tmp_path / "plain").glob("runs/*/record.json"):
        assert read_json(path) == read_json(tmp_path / "study" / "runs" / path.parent.name / "record.json")
    assert not any(alive(line["pid"]) for line in lines)


def test_a_real_spare_works_through_a_job(tmp_path, monkeypatch):
    """The true worker: torch and the rest imported ahead, then a job's record, and what it says in the job's log."""
    monkeypatch.delenv("LORACLE_WORKER_COMMAND", raising=False)
    launcher = LocalLauncher()
    launcher.prepare({(1, None): 1})
    [pid] = waiting(launcher)
    folder = probe_job(tmp_path)  # without data: it fails, and says so
    worker = launcher.start(folder, 1)
    assert worker._process.pid == pid
    wait_for(lambda: worker.exit_code() is not None, 120)
    assert worker.exit_code() == 0
    worker.kill()
    assert read_json(folder / "record.json")["status"] == "failed"
    assert int((folder / "claim.lock").read_text()) == pid
    assert "the job failed" in (folder / "log.txt").read_text()


def started_here(state: Path) -> list[int]:
    """Processes whose environment names this test's folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(state).encode() in path.read_bytes() and alive(int(path.parent.name)):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_study_leaves_no_process(fake, rows, tmp_path, number):
    fake(step_s=0.1)
    study = tmp_path / "small.yaml"
    study.write_text(
        "name: small\nbase: some-base\ntask: {data: rows.jsonl}\ntrain: {steps: 50, batch_size: 2}\nseeds: [42, 43]\n"
        "vary: {precision: [bf16, nf4]}\nrun: {cohort: 2, threads: 1, workers: 1}\n"
    )
    code = (
        "import sys\nfrom pathlib import Path\nfrom loracle.spec import load_study\nfrom loracle.study import execute\n"
        "from loracle.study.launch import LocalLauncher\n"
        "execute.this_machine = lambda _: execute.Machine('cpu', 8)\n"
        "execute.run_study(load_study(Path(sys.argv[1])), Path(sys.argv[2]), launcher=LocalLauncher(spares=True))\n"
    )
    command = [sys.executable, "-c", code, str(study), str(tmp_path / "study")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for(lambda: list(tmp_path.glob("study/cohorts/*/checkpoint.json")))
    wait_for(lambda: len(started_here(tmp_path)) >= 3)  # the study, its worker, a spare
    process.send_signal(number)
    process.wait(30)
    wait_for(lambda: not started_here(tmp_path))


def test_kill_9_of_the_study_takes_its_spares_along(fake, tmp_path):
    code = (
        "import sys, time\nfrom loracle.study.launch import LocalLauncher\n"
        "launcher = LocalLauncher(spares=True)\nlauncher.prepare({(1, None): 2})\n"
        "print(*[s.process.pid for q in launcher.spares._waiting.values() for s in q], flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    process.kill()
    process.wait()
    wait_for(lambda: not any(map(alive, pids)))
