"""The notebooks: stored in one form, nothing of a machine in them, studies that are studies, and every cell runs in an empty folder."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import loracle
from loracle.spec import load_study, parse_study

ROOT = Path(__file__).resolve().parents[2]
BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SWITCH = "GPU = False"
# A study of the same form in seconds: what the default suite can afford.
SMALLER = """
STUDY["task"] |= {"samples": 40, "eval_samples": 8, "generate_samples": 4}
STUDY["train"] |= {"steps": 4, "eval_every": 2}
STUDY["run"] = {"cohort": 4, "threads": 1}
"""


@pytest.fixture(params=BOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / "tools" / "notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code(path: Path) -> list[str]:
    return [cell.source for cell in read(path).cells if cell.cell_type == "code"]


def study_cell(book: Any) -> int:
    [place] = [i for i, cell in enumerate(book.cells) if "study" in cell.metadata.get("tags", [])]
    return place


def test_there_are_three_and_the_readme_links_them() -> None:
    names = [path.name for path in BOOKS]
    assert names == ["01_baseline_lora.ipynb", "02_qlora.ipynb", "03_diagnosis.ipynb"]
    for page in ("README.md", "docs/guide.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert [name for name in names if f"notebooks/{name})" not in text] == [], page


def test_stored_without_outputs_in_one_form(path: Path, tool: ModuleType) -> None:
    text = path.read_text(encoding="utf-8")
    nbformat.validate(nbformat.reads(text, as_version=4))
    assert text == tool.canonical(text), "run: python tools/notebooks.py"


def test_the_form_takes_away_what_a_kernel_leaves(tool: ModuleType) -> None:
    book = read(BOOKS[0])
    book.metadata.language_info.version = "3.12.1"
    cell = book.cells[1]
    cell.execution_count, cell.id, cell.metadata.collapsed = 7, "a1b2", True
    cell.outputs = [nbformat.v4.new_output("stream", text="hello")]
    assert tool.canonical(nbformat.writes(book)) == BOOKS[0].read_text(encoding="utf-8")


def test_nothing_of_a_machine_is_in_it(path: Path) -> None:
    for cell in read(path).cells:
        text = re.sub(r"(git\+)?https?://\S+", "", cell.source)
        assert not re.findall(r"""(?:^|[\s"'(`=])(?:/|~/|\.\./|[A-Za-z]:\\)\w""", text), cell.source


def test_links_resolve(path: Path) -> None:
    for cell in read(path).cells:
        for target in re.findall(r"\]\(([^)#\s]+)\)", cell.source) if cell.cell_type == "markdown" else ():
            assert "://" in target or (path.parent / target).exists(), target


def test_it_reads_as_a_story(path: Path) -> None:
    """A title, then no two long stretches of code without a word between."""
    kinds = "".join(cell.cell_type[0] for cell in read(path).cells)
    assert read(path).cells[0].source.startswith("# ")
    assert kinds[0] == "m"
    assert "cccc" not in kinds


def test_installs_only_where_loracle_is_missing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = code(path)[0]
    asked: list[list[str]] = []
    monkeypatch.setattr("subprocess.run", lambda command, check: asked.append(command))
    exec(first, {})
    assert asked == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="REPOSITORY"):
        exec(first, {})
    exec(first.replace('REPOSITORY = ""', 'REPOSITORY = "somewhere"'), {})
    assert asked[0][1:] == ["-m", "pip", "install", "--quiet", "somewhere"]


@pytest.mark.parametrize("gpu", [False, True])
def test_its_study_is_one(path: Path, gpu: bool) -> None:
    book = read(path)
    assert any(SWITCH in cell.source for cell in book.cells[: study_cell(book)])
    names: dict[str, Any] = {"GPU": gpu}
    exec(book.cells[study_cell(book)].source, names)
    study = parse_study(names["STUDY"])
    assert study.base.model == ("gpt2-medium" if gpu else "gpt2-demo")


def test_the_gpu_setting_is_the_published_one(path: Path) -> None:
    """As the shipped study of the same comparison has it."""
    names: dict[str, Any] = {"GPU": True}
    exec(read(path).cells[study_cell(read(path))].source, names)
    study, published = parse_study(names["STUDY"]), load_study(ROOT / "studies" / "qlora-diagnostic-gpt2.yaml")
    assert (study.task, study.train) == (published.task, published.train)
    assert study.adapter == published.adapter
    assert set(study.seeds) <= set(published.seeds)


def test_it_calls_what_loracle_has(path: Path) -> None:
    found = [node for text in code(path) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)]
    called = {node.attr for node in found if isinstance(node.value, ast.Name) and node.value.id == "loracle"}
    assert called <= set(loracle.__all__)
    assert "run" in called


def execute(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, more: str = "") -> Path:
    """Run every cell in ``folder``, ``more`` after that of the study; the study's folder."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(variable, str(folder / variable.lower()))
    book, work = read(path), folder / "work"
    work.mkdir()
    if more:
        book.cells.insert(study_cell(book) + 1, nbformat.v4.new_code_cell(more))
    NotebookClient(
        book, timeout=900, startup_timeout=300, kernel_name="python3", resources={"metadata": {"path": str(work)}}
    ).execute()
    assert [path.name for path in work.iterdir()] == ["runs"]
    [study] = (work / "runs").iterdir()
    return study


def test_the_smallest_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = execute(BOOKS[0], tmp_path, monkeypatch, SMALLER)
    assert list(loracle.records(study).status) == ["done"]


@pytest.mark.slow
def test_runs_as_it_stands(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = execute(path, tmp_path, monkeypatch)
    assert set(loracle.records(study).status) == {"done"}
    assert (study / "report" / "index.html").is_file()
