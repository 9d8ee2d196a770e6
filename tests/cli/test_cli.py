"""The command line as a user meets it: exit codes, one-line errors, where things are written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import loracle.report
from loracle.cli import main
from loracle.cli.doctor import advise
from loracle.spec import load_study
from loracle.store.claims import claim

FAKE = Path(__file__).parents[1] / "study" / "fake_worker.py"
STUDY = """\
name: small
base: some-base
task: {data: rows.jsonl}
train: {steps: 4, batch_size: 2}
vary: {precision: [bf16, nf4], rank: [2, 4]}
seeds: [42, 43, 44]
run: {cohort: 4, threads: 1, workers: 2, retries: 0}
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder to work in, with a study, a fake worker and a report that costs nothing."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    (tmp_path / "small.yaml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORACLE_WORKER_COMMAND", f"{sys.executable} {FAKE}")
    monkeypatch.setenv("FAKE_WORKER", json.dumps({"state": str(tmp_path)}))
    monkeypatch.setattr(loracle.report, "write_report", fake_report)
    return tmp_path


def fake_report(folder: Path, asked: object = None) -> Path:
    (folder / "report").mkdir(exist_ok=True)
    (folder / "report" / "verdicts.json").write_text("[]")
    (folder / "report" / "index.html").write_text("<html>")
    return folder / "report" / "index.html"


@pytest.fixture
def call(capsys):
    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def behave(monkeypatch, home, **options):
    monkeypatch.setenv("FAKE_WORKER", json.dumps({"state": str(home), **options}))


def test_run_and_report(home, call):
    code, out, _ = call("run", "small.yaml")
    assert code == 0
    assert out.splitlines() == ["14 runs: 14 done", "runs/small", "runs/small/report/index.html"]
    code, out, _ = call("report", "runs/small")
    assert (code, out) == (0, "runs/small/report/index.html\n")
    code, out, _ = call("report", "runs/small", "--json")
    assert json.loads(out)["verdicts"] == []


def test_run_json(home, call):
    code, out, _ = call("run", "small.yaml", "--out", "there", "--set", "seeds=[1]", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["folder"] == "there"
    assert {run["status"] for run in found["runs"].values()} == {"done"}


def test_run_goes_on_from_a_folder(home, call):
    call("run", "small.yaml", "--out", "there")
    code, out, _ = call("run", "there")
    assert code == 0
    assert "14 done" in out


def test_plan(home, call):
    code, out, err = call("plan", "small.yaml")
    assert code == 0
    assert "nf4-r4-all-linear" in out
    assert "14 runs (2 of them for the similarity null)" in out
    assert "2 row(s) stand more than once" in err
    assert "were cut" in err
    assert not (home / "runs").exists()
    code, out, _ = call("plan", "small.yaml", "--json", "--set", "rank=8", "--set", "lr=1e-3")
    plan = json.loads(out)
    assert {cell["rank"] for cell in plan["cells"]} == {8}
    assert {"cells", "runs", "cohorts", "null_pairs", "data", "sizing", "study_sha256", "plan_id"} <= set(plan)


def test_exit_3_when_a_run_is_not_done(home, call, monkeypatch):
    behave(monkeypatch, home, diverge="nf4-r2")
    code, out, err = call("run", "small.yaml")
    assert code == 3
    assert "14 runs: 11 done, 3 diverged" in out
    assert "diverged: loss is not finite" in err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "none.yaml"], 2, "none.yaml: no such file"),
        (["plan", "none.yaml"], 2, "none.yaml: no such file"),
        (["run", "small.yaml", "--set", "adapter.rnk=3"], 2, "did you mean 'rank'"),
        (["run", "small.yaml", "--set", "vary.rank=[0]"], 2, "rank"),
        (["run", "small.yaml", "--set", "novalue"], 2, "KEY=VALUE"),
        (["run", "small.yaml", "--set", "vary.precision=[nf5]"], 2, "not a precision"),
        (["run", "small.yaml", "--set", "task={name: nosuch}"], 2, "not a task of the library"),
        (["run"], 2, "STUDY"),
        (["run", "small.yaml", "--wrong"], 2, "--wrong"),
        (["fly"], 2, "fly"),
        (["report", "nowhere"], 1, "not a study folder"),
        (["run", "small.yaml", "--out", "rows.jsonl/x"], 1, "rows.jsonl"),
        (["new", "small.yaml"], 1, "--force"),
        (["new", "rows.jsonl/x.yaml"], 1, "rows.jsonl"),
    ],
)
def test_errors_are_one_line(home, call, arguments, code, words):
    found, out, err = call(*arguments)
    assert found == code
    assert words in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert out == ""
    assert not (home / "runs").exists()


@pytest.mark.parametrize(
    ("options", "code"),
    [({"usage": "targets: [x] match nothing"}, 2), ({"broken": "ModelError: only .bin weights"}, 1)],
)
def test_what_the_inspect_job_refuses(home, call, monkeypatch, options, code):
    behave(monkeypatch, home, **options)
    for command in ("run", "plan"):
        found, _, err = call(command, "small.yaml")
        assert found == code
        assert next(iter(options.values())) in err.splitlines()[-1]
    assert not (home / "runs").exists()


def test_a_study_in_use(home, call):
    with claim(home / "runs" / "small" / "study.lock", "test"):
        code, _, err = call("run", "small.yaml")
    assert code == 1
    assert "in use by process" in err


def test_a_bug_is_one_line_unless_debug(home, call, monkeypatch):
    monkeypatch.setattr(loracle.report, "write_report", lambda folder: 1 / 0)
    call("run", "small.yaml")
    code, _, err = call("report", "runs/small")
    assert code == 1
    assert err.count("\n") == 1
    assert "--debug" in err
    assert "Traceback" in call("report", "runs/small", "--debug")[2]


def test_a_full_disk_is_one_line(home, call, monkeypatch):
    def full(folder):
        raise OSError(28, "No space left on device", "report/index.html")

    monkeypatch.setattr(loracle.report, "write_report", full)
    code, _, err = call("run", "small.yaml")
    assert code == 1
    assert err.splitlines()[-1] == "error: report/index.html: No space left on device"


def test_ctrl_c_before_anything(home, call, monkeypatch):
    def pressed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("loracle.spec.load_study", pressed)
    assert call("run", "small.yaml")[0] == 130


def test_new(home, call):
    code, out, _ = call("new", "mine.yaml", "--model", "some/model", "--data", "rows.jsonl")
    assert (code, out) == (0, "mine.yaml\n")
    study = load_study(home / "mine.yaml")
    assert (study.name, study.base.model) == ("mine", "some/model")
    assert study.task.data == str(home / "rows.jsonl")
    assert call("new", "mine.yaml")[0] == 1
    assert call("new", "mine.yaml", "--force")[0] == 0
    assert load_study(home / "mine.yaml").task.name == "banking77-10"
    (home / "deep").mkdir()
    call("new", "deep", "--data", "rows.jsonl")
    assert load_study(home / "deep" / "study.yaml").task.data == str(home / "rows.jsonl")
    assert load_study(home / "deep" / "study.yaml").name == "deep"


def test_new_takes_awkward_names(home, call):
    call("new", "My Study!.yaml", "--model", 'a: "b" #c')
    study = load_study(home / "My Study!.yaml")
    assert study.name == "my-study"
    assert study.base.model == 'a: "b" #c'


def test_new_schema_and_tasks(home, call):
    assert "properties" in json.loads(call("new", "--schema")[1])
    assert "banking77-10" in call("new", "--tasks")[1]
    assert not (home / "study.yaml").exists()


def test_demo(home, call, monkeypatch):
    code, out, _ = call("demo", "--out", "demo", "--json")
    assert code == 0
    assert len(json.loads(out)["runs"]) == 30 + 2
    code, out, _ = call("demo", "--quick", "--json")
    assert len(json.loads(out)["runs"]) == 12 + 2


def test_doctor(home, call, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, _ = call("doctor", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["torch"] == "2.0"
    assert facts["hub"].startswith("offline")
    assert facts["cores"] >= 1
    text = call("doctor")[1]
    assert "bitsandbytes is missing" in text
    assert "bytecode" not in text
    assert any("PYTHONPYCACHEPREFIX" in line for line in advise({"torch": "2.0", "bytecode": False}))
    monkeypatch.setenv("LORACLE_WORKER_COMMAND", f"{sys.executable} -c 'raise SystemExit(\"broken\")'")
    assert "broken" in call("doctor")[1]


def test_version(call):
    assert call("--version")[1].startswith("loracle ")


def test_no_command_shows_the_help(call):
    code, out, _ = call()
    assert code == 0
    assert "demo" in out
    assert call("--debug", "--help")[1] == out


def fresh(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)


HEAVY = "{'torch', 'transformers', 'peft', 'bitsandbytes', 'datasets'}"


def test_help_loads_nothing_heavy():
    code = f"""
import sys
from loracle.cli import main
try:
    main(['--help'])
except SystemExit:
    pass
print('HEAVY', sorted(({HEAVY} | {{'numpy', 'scipy', 'pandas', 'matplotlib', 'pydantic'}}) & set(sys.modules)))
"""
    assert "HEAVY []" in fresh(code).stdout
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "loracle", "--help"], capture_output=True, check=True)
    assert time.monotonic() - began < 2.0  # about 0.15 s on an idle machine


def test_no_command_loads_torch(home):
    code = f"""
import sys
import loracle.cli.app, loracle.study, loracle.study.preview, loracle.study.demo, loracle.report, loracle.tasks.library
from loracle.cli import main
for arguments in (['plan', 'small.yaml'], ['run', 'small.yaml', '--set', 'seeds=[1]'], ['new', 'x.yaml'], ['doctor']):
    try:
        main(arguments)
    except SystemExit:
        pass
print('HEAVY', sorted({HEAVY} & set(sys.modules)))
"""
    assert "HEAVY []" in fresh(code).stdout
