"""loracle from Python: nothing is loaded before it is asked for, studies come in every form, and a kernel's interrupt is resumable."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jupyter_client.manager import start_new_kernel

import loracle
from loracle import api
from loracle.base.errors import SpecError, StoreError
from loracle.spec import Study, load_study
from loracle.study import Interrupted

ROOT = Path(__file__).resolve().parents[1]
FAKE = Path(__file__).parent / "study" / "fake_worker.py"
STUDY = {
    "name": "small",
    "base": "some-base",
    "task": {"data": "rows.jsonl"},
    "train": {"steps": 4, "batch_size": 2},
    "vary": {"precision": ["bf16", "nf4"], "rank": [2]},
    "seeds": [42, 43, 44],
    "run": {"cohort": 4, "threads": 1, "workers": 1, "retries": 0},
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with rows and a worker that trains nothing."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORACLE_WORKER_COMMAND", f"{sys.executable} {FAKE}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    behave(monkeypatch, tmp_path)
    return tmp_path


def behave(monkeypatch: pytest.MonkeyPatch, home: Path, **options: object) -> None:
    monkeypatch.setenv("FAKE_WORKER", json.dumps({"state": str(home), **options}))


def test_importing_loads_nothing() -> None:
    heavy = ("torch", "transformers", "pandas", "numpy", "pydantic", "scipy", "typer")
    code = f"import sys, loracle; dir(loracle); print([name for name in {heavy} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert said.stdout == "[]\n"


def test_every_name_is_there_and_in_the_guide() -> None:
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8").partition("## 9.")[2]
    assert set(re.findall(r"^\| `(\w+)` \|", guide, flags=re.MULTILINE)) == set(loracle.__all__) - {"__version__"}
    assert sorted(loracle.__all__) == dir(loracle)
    for name in loracle.__all__:
        assert getattr(loracle, name)
    with pytest.raises(AttributeError, match="no attribute 'runs'"):
        _ = loracle.runs


def test_a_study_comes_in_every_form(home: Path) -> None:
    (home / "small.yaml").write_text(json.dumps(STUDY))
    (home / "there").mkdir()
    (home / "there" / "study.yaml").write_text(json.dumps(STUDY))
    plain = load_study(home / "small.yaml")
    before = json.dumps(STUDY)
    forms: list[Study | dict | str | Path] = [STUDY, plain, "small.yaml", home / "small.yaml", "there"]
    assert [api.read(form) for form in forms] == [plain] * 5
    for form in forms:
        changed = api.read(form, ["seeds=[1]"], "24GB")
        assert (changed.seeds, changed.run.gpu_memory) == ((1,), "24GB")
        assert changed.model_copy(update={"seeds": plain.seeds, "run": plain.run}) == plain
    assert json.dumps(STUDY) == before
    assert plain.task.data == str(home / "rows.jsonl")
    with pytest.raises(SpecError, match="did you mean 'seeds'"):
        api.read({**STUDY, "seed": [1]})


def test_plan_writes_nothing(home: Path) -> None:
    plan = loracle.plan(STUDY)
    assert [cell["label"] for cell in plan["cells"]] == ["bf16-r2-all-linear", "nf4-r2-all-linear"]
    assert sorted(path.name for path in home.iterdir()) == ["rows.jsonl"]


def test_run_and_run_again(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = loracle.run(STUDY)
    said = capsys.readouterr()
    assert folder == Path("runs/small")
    assert (folder / "report" / "index.html").is_file()
    assert said.out == ""
    assert said.err.splitlines()[-1] == "7 runs: 7 done"
    records = loracle.records(folder)
    assert set(records.status) == {"done"}
    stamps = [path.stat().st_mtime_ns for path in folder.glob("runs/*/record.json")]
    assert loracle.run(folder, quiet=True) == folder
    assert capsys.readouterr().err == ""
    assert [path.stat().st_mtime_ns for path in folder.glob("runs/*/record.json")] == stamps
    assert loracle.run(STUDY, "elsewhere", ["seeds=[42]"], quiet=True) == Path("elsewhere")


def test_a_run_that_is_not_done_is_told(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    behave(monkeypatch, home, diverge="nf4-r2")
    monkeypatch.setattr("loracle.report.write_report", lambda folder: folder / "report" / "index.html")
    folder = loracle.run(STUDY)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "7 runs: 4 done, 3 diverged"
    assert sum(": diverged: loss is not finite" in line for line in lines) == 3
    assert loracle.records(folder).status.value_counts()["diverged"] == 3


def test_what_cannot_be_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError, match=r"none\.yaml: no such file"):
        loracle.run("none.yaml")
    with pytest.raises(StoreError, match="no plan here"):
        loracle.verdicts(home)
    behave(monkeypatch, home, usage="targets: [x] match nothing")
    with pytest.raises(SpecError, match="match nothing"):
        loracle.run(STUDY, quiet=True)
    assert not (home / "runs").exists()


def test_what_is_no_study_is_one_line() -> None:
    with pytest.raises(SpecError, match="not NoneType"):
        loracle.plan(None)  # type: ignore[arg-type]


def test_an_interrupted_kernel_leaves_a_resumable_study(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the stop button of a notebook does it: SIGINT to a kernel that has an event loop of its own."""
    behave(monkeypatch, home, step_s=0.3)
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(variable, str(home / variable.lower()))
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(home))
    try:
        # an error aborts what else is asked in the moment after it, unless said otherwise
        asked = client.execute(f"import loracle; study = {STUDY!r}; loracle.run(study)", stop_on_error=False)
        deadline = time.monotonic() + 120
        while not list(home.glob("runs/small/cohorts/*/checkpoint.json")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        manager.interrupt_kernel()
        reply = client.get_shell_msg(timeout=120)
        while reply["parent_header"]["msg_id"] != asked:
            reply = client.get_shell_msg(timeout=120)
        assert reply["content"]["ename"] == Interrupted.__name__
        assert re.search(r"resume with: loracle run runs/small, or by the same call again", reply["content"]["evalue"])
        done = client.execute_interactive("folder = loracle.run(study, quiet=True)", timeout=120)
        assert done["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert set(loracle.records(home / "runs" / "small").status) == {"done"}
