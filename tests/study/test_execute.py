"""The scheduler, with a worker that has no torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loracle.base.errors import LoracleError, SpecError, StoreError
from loracle.spec import load_study
from loracle.store.claims import claim
from loracle.store.files import read_json
from loracle.study import crew as crew_module
from loracle.study import run_study
from loracle.study.cells import planned_cells


def adapters(folder: Path) -> dict[str, str]:
    return {path.parent.name: read_json(path)["adapter_sha256"] for path in folder.glob("runs/*/record.json")}


def trained(journal: list[str]) -> list[str]:
    return [job for job in journal if job.startswith("cohorts/")]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "study"


def test_a_study_ends_with_every_run_done(fake, make_study, folder):
    outcome = run_study(make_study(), folder, report=lambda root: root / "report" / "index.html")
    assert outcome.exit_code == 0
    assert outcome.summary() == "14 runs: 14 done"
    assert outcome.report == folder / "report" / "index.html"
    plan = read_json(folder / "plan.json")
    assert set(adapters(folder)) == {run["id"] for run in plan["runs"]}
    pairs = read_json(folder / "diagnose" / "similarity.json")["pairs"]
    assert [pair["kind"] for pair in pairs].count("precision") == 6
    assert [pair["kind"] for pair in pairs].count("null") == 2
    assert all(pair["a"].startswith("bf16") for pair in pairs)
    assert len(read_json(folder / "diagnose" / "agreement.json")["pairs"]) == 6
    job = read_json(folder / "cohorts" / plan["cohorts"][0]["id"] / "job.json")
    assert job["eval_file"] == "eval.parquet"
    assert set(job["members"][0]) == {"run", "cell", "label", "seed", "init_seed", "order_seed", "role", "config"}
    assert job["members"][0]["config"]["train"]["steps"] == 6


def test_the_written_study_is_the_study(fake, make_study, folder):
    study = make_study()
    run_study(study, folder)
    assert load_study(folder / "study.yaml") == study


def test_the_written_study_of_a_library_task_is_the_study(fake, make_study, folder):
    study = make_study("task={name: banking77-10, max_length: 512}", "seeds=[1]")
    run_study(study, folder)
    again = load_study(folder / "study.yaml")
    assert again == study
    assert planned_cells(again) == planned_cells(study)
    journal = fake()
    run_study(again, folder)
    assert fake() == journal


def test_doing_it_again_does_nothing(fake, make_study, folder):
    run_study(make_study(), folder)
    before, journal = read_json(folder / "plan.json"), fake()
    outcome = run_study(make_study("run.workers=1", "run.retries=0"), folder)
    assert outcome.exit_code == 0
    assert fake() == journal
    assert read_json(folder / "plan.json") == before


def test_another_seed_trains_only_what_is_new(fake, make_study, folder):
    run_study(make_study(), folder)
    before, old = adapters(folder), len(trained(fake()))
    run_study(make_study("seeds=[42, 43, 44, 45]"), folder)
    new = [read_json(folder / job / "job.json") for job in trained(fake())[old:]]
    assert {member["seed"] for job in new for member in job["members"]} == {45}
    assert before.items() <= adapters(folder).items()


def test_a_crashed_worker_is_tried_again_and_resumes(fake, make_study, folder, tmp_path):
    run_study(make_study(), tmp_path / "quiet")
    fake(crash=2)
    assert run_study(make_study("run.workers=1"), folder).exit_code == 0
    assert adapters(folder) == adapters(tmp_path / "quiet")


def test_kill_9_of_a_worker_changes_nothing(fake, make_study, folder, tmp_path):
    run_study(make_study(), tmp_path / "quiet")
    fake(kill=1)
    assert run_study(make_study(), folder).exit_code == 0
    assert adapters(folder) == adapters(tmp_path / "quiet")
    assert len(trained(fake())) > len(read_json(folder / "plan.json")["cohorts"])


def test_retries_end(fake, make_study, folder):
    fake(crash=99)
    outcome = run_study(make_study("run.retries=1"), folder)
    assert outcome.exit_code == 3
    assert {state.status for state in outcome.states.values()} == {"failed"}
    assert "the fake worker crashes" in next(iter(outcome.states.values())).reason
    assert "after 2 attempts" in next(iter(outcome.states.values())).reason
    record = read_json(next(folder.glob("runs/*/record.json")))
    assert record["kind"] == "run"
    assert record["config"]["init_seed"] is not None
    fake()
    assert run_study(make_study(), folder).exit_code == 0  # a crash is not final


def test_a_caught_failure_is_recorded_and_not_retried(fake, make_study, folder):
    fake(broken_train="ValueError: no such thing")
    outcome = run_study(make_study(), folder)
    assert outcome.exit_code == 3
    assert {state.reason for state in outcome.states.values()} == {"ValueError: no such thing"}
    assert len(trained(fake())) == len(read_json(folder / "plan.json")["cohorts"])


def test_out_of_memory_splits_the_cohort(fake, make_study, folder):
    fake(oom_above=2)
    assert run_study(make_study(), folder).exit_code == 0
    plan = read_json(folder / "plan.json")
    assert plan["splits"]
    assert all(len(half["runs"]) <= 2 for halves in plan["splits"].values() for half in halves)
    journal = fake(oom_above=2)
    assert run_study(make_study(), folder).exit_code == 0
    assert fake() == journal  # the halves are known to be finished


def test_a_run_that_does_not_fit_alone_is_a_result(fake, make_study, folder):
    fake(oom_run="nf4-r4")
    outcome = run_study(make_study(), folder)
    assert outcome.exit_code == 3
    too_large = {run: state for run, state in outcome.states.items() if state.status == "oom"}
    assert len(too_large) == 3
    assert all(run.startswith("nf4-r4") and "needs ≥" in state.reason for run, state in too_large.items())
    journal = fake()
    assert run_study(make_study(), folder).exit_code == 3
    assert trained(fake()) == trained(journal)  # final: not tried again


@pytest.mark.parametrize("kernel", ["counts", "silent"])
def test_sigkill_for_memory_splits(fake, make_study, folder, monkeypatch, kernel):
    counts = iter(range(1000))
    monkeypatch.setattr(crew_module, "memory_kills", (lambda: next(counts)) if kernel == "counts" else lambda: None)
    fake(kill=1 if kernel == "counts" else 2)
    study = make_study("vary.precision=[bf16]", "seeds=[1, 2]", "run.workers=1")
    assert run_study(study, folder).exit_code == 0
    assert len(read_json(folder / "plan.json")["splits"]) == 1


def test_diverged_runs_are_counted(fake, make_study, folder):
    fake(diverge="bf16-r4-all-linear-s43")
    outcome = run_study(make_study(), folder)
    assert outcome.exit_code == 3
    assert outcome.summary() == "14 runs: 13 done, 1 diverged"
    assert len(read_json(folder / "diagnose" / "similarity.json")["pairs"]) == 7


def test_a_run_that_the_worker_forgot_fails(fake, make_study, folder):
    fake(forget="nf4-r2-all-linear-s42")
    outcome = run_study(make_study(), folder)
    assert outcome.summary() == "14 runs: 13 done, 1 failed"


def test_a_failed_diagnosis_is_a_problem(fake, make_study, folder):
    fake(broken_diagnose="no adapters")
    outcome = run_study(make_study(), folder)
    assert outcome.problems == ["diagnose: no adapters"]
    assert outcome.exit_code == 1
    fake()
    assert run_study(make_study(), folder).exit_code == 0


def test_sensitivity_is_measured_once_for_each_base_and_codec(fake, make_study, folder):
    study = make_study("questions=[sensitivity]", "vary.precision=[bf16, nf4, int8]")
    assert run_study(study, folder).exit_code == 0
    sweeps = read_json(folder / "jobs" / "sensitivity" / "job.json")["sweeps"]
    found = [(one["codec"], one["double_quant"], one["block_size"], one["text"], one["when"]) for one in sweeps]
    nf4, int8, rows = ("nf4", True, 64), ("int8", None, None), "evaluation rows"
    assert found[:2] == [(*nf4, "plain text", "before"), (*int8, "plain text", "before")]
    assert found[2:] == [(*codec, rows, when) for codec in (nf4, int8) for when in ("before", "after")]
    first = next(run for run in read_json(folder / "plan.json")["runs"] if run["cell"].startswith("bf16-r2"))
    assert {one["run"] for one in sweeps} == {None, first["id"]}  # with the adapter of a 16-bit run
    assert [one["listed"] for one in sweeps] == [True, True, False, False, False, False]
    journal = fake()
    run_study(study, folder)
    assert fake() == journal
    run_study(make_study("questions=[degradation]", "vary.precision=[bf16, nf4, int8]"), folder)
    assert fake().count("jobs/sensitivity") == 1


def test_probes_run_alone_in_true_storage(fake, make_study, folder):
    study = make_study("questions=[memory, degradation]", "vary.rank=[2]")
    assert run_study(study, folder).exit_code == 0
    storages = {path.parent.name[:4]: read_json(path)["storage"] for path in folder.glob("probes/*/record.json")}
    assert storages == {"bf16": "quantized", "nf4-": "quantized"}
    journal = fake()
    run_study(study, folder)
    assert fake() == journal


def test_a_failed_probe_is_recorded(fake, make_study, folder):
    fake(crash_probe=1)
    outcome = run_study(make_study("questions=[speed]", "vary.rank=[2]"), folder)
    assert outcome.exit_code == 0
    record = read_json(next(folder.glob("probes/*/record.json")))
    assert record["status"] == "failed"
    assert "no probe today" in record["reason"]
    assert record["ms_per_step"] is None


def test_a_second_process_is_refused(fake, make_study, folder):
    with claim(folder / "study.lock", "test"), pytest.raises(StoreError, match="in use by process"):
        run_study(make_study(), folder)


@pytest.mark.parametrize(
    ("options", "error"), [({"usage": "rows.jsonl:3: bad"}, SpecError), ({"broken": "hm"}, LoracleError)]
)
def test_what_cannot_be_planned_leaves_nothing(fake, make_study, tmp_path, options, error):
    fake(**options)
    with pytest.raises(error, match=next(iter(options.values()))):
        run_study(make_study(), tmp_path / "new" / "study")
    assert not (tmp_path / "new").exists()


def test_a_worker_that_dies_at_once_leaves_its_log(make_study, folder, monkeypatch):
    monkeypatch.setenv("LORACLE_WORKER_COMMAND", f"{sys.executable} -c 'raise SystemExit(\"no torch here\")'")
    with pytest.raises(LoracleError, match=r"no torch here.*log\.txt"):
        run_study(make_study(), folder)
    assert (folder / "jobs" / "inspect" / "log.txt").is_file()


def test_a_foreign_folder_is_refused(fake, make_study, folder):
    folder.mkdir()
    (folder / "thesis.doc").write_text("precious")
    with pytest.raises(StoreError, match="not a study folder"):
        run_study(make_study(), folder)


def test_a_copied_plan_is_law(fake, make_study, folder, tmp_path):
    run_study(make_study("run.cohort=auto"), folder)
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "plan.json").write_bytes((folder / "plan.json").read_bytes())
    fake(size=2)  # this machine would measure otherwise
    run_study(make_study("run.cohort=auto"), copy)
    assert read_json(copy / "plan.json") == read_json(folder / "plan.json")
    assert adapters(copy) == adapters(folder)
    assert read_json(copy / "jobs" / "inspect" / "job.json")["measure"] is False


def test_changed_data_is_planned_anew(fake, make_study, folder, rows):
    run_study(make_study(), folder)
    before = {run["id"] for run in read_json(folder / "plan.json")["runs"]}
    rows.write_text('{"prompt": "x", "completion": "y"}\n')
    run_study(make_study(), folder)
    assert not before & {run["id"] for run in read_json(folder / "plan.json")["runs"]}


# The scheduler itself is interrupted or killed: needs processes.


@pytest.fixture
def study_file(tmp_path, rows):
    path = tmp_path / "small.yaml"
    path.write_text(
        "name: small\nbase: some-base\ntask: {data: rows.jsonl}\ntrain: {steps: 20, batch_size: 2}\n"
        "vary: {precision: [bf16, nf4], rank: [2, 4]}\nseeds: [42, 43]\nrun: {cohort: 4, threads: 1, workers: 2}\n"
    )
    return path


def start(study: Path, folder: Path) -> subprocess.Popen[str]:
    code = (
        "import sys\nfrom pathlib import Path\nfrom loracle.spec import load_study\n"
        "from loracle.study import run_study\n"
        "from loracle.base.errors import LoracleError\n"
        "try:\n    sys.exit(run_study(load_study(Path(sys.argv[1])), Path(sys.argv[2])).exit_code)\n"
        "except LoracleError as e:\n    print(e, file=sys.stderr)\n    sys.exit(e.exit_code)\n"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(study), str(folder)], stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_resumable_study(fake, study_file, tmp_path, number, code):
    assert start(study_file, tmp_path / "quiet").wait() == 0
    fake(step_s=0.1)
    folder = tmp_path / "study"
    process = start(study_file, folder)
    wait_for(lambda: list(folder.glob("cohorts/*/checkpoint.json")))
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert f"resume with: loracle run {folder}" in errors
    assert any(json.loads(p.read_text())["status"] == "interrupted" for p in folder.glob("cohorts/*/record.json"))
    fake()
    assert start(study_file, folder).wait() == 0
    assert adapters(folder) == adapters(tmp_path / "quiet")


def test_kill_9_of_the_scheduler_changes_nothing(fake, study_file, tmp_path):
    assert start(study_file, tmp_path / "quiet").wait() == 0
    fake(step_s=0.1)
    folder = tmp_path / "study"
    process = start(study_file, folder)
    wait_for(lambda: list(folder.glob("cohorts/*/checkpoint.json")))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    fake()
    assert start(study_file, folder).wait() == 0
    assert adapters(folder) == adapters(tmp_path / "quiet")
