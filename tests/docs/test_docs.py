"""The pages say what is there: commands, options, links, keys, and nothing of the place where they were written."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import typer

from loracle.cli.app import app
from loracle.report.figures import FIGURES
from loracle.report.files import TABLE_NOTES
from loracle.report.tables import COLUMNS
from loracle.spec import parse_study
from loracle.spec.methods import METHODS
from loracle.spec.yaml import read_yaml
from loracle.verdict.entries import KEYS
from loracle.verdict.questions import KNOWN

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
PLACES = ("/work/", "../shared", "shared/")


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def code(text: str) -> list[str]:
    """Lines of fenced blocks, and inline code outside of them."""
    fences = re.findall(r"```[a-z]*\n(.*?)```", text, flags=re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [line.strip() for block in fences for line in block.splitlines()] + inline


def block(text: str, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)
    assert found, f"no {language} block"
    return found[1]


@pytest.fixture(params=PAGES, ids=lambda page: page.name)
def page(request) -> Path:
    return request.param


def test_commands_and_options_exist(page: Path) -> None:
    for line in code(read(page)):
        found = re.match(r"loracle ([a-z]+)\b(.*)", line)
        if found is None:
            continue
        name, rest = found.groups()
        assert name in COMMANDS, line
        known = {option for parameter in COMMANDS[name].params for option in parameter.opts} | {"--help", "--debug"}
        assert set(re.findall(r"--[a-z-]+", rest.partition("#")[0])) <= known, line


def test_every_command_is_in_the_readme() -> None:
    named = {found[1] for line in code(read(ROOT / "README.md")) if (found := re.match(r"loracle ([a-z]+)", line))}
    assert named == set(COMMANDS)


def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", read(ROOT / "Makefile"), flags=re.MULTILINE))
    for line in code(read(page)):
        found = re.match(r"make ([a-z-]+)", line)
        assert found is None or found[1] in targets, line


def test_relative_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", read(page)):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_no_workplace_is_named(page: Path) -> None:
    for place in PLACES:
        assert place not in read(page), place


def test_the_readmes_study_is_one() -> None:
    study = parse_study(read_yaml(block(read(ROOT / "README.md"), "yaml"), "README.md"))
    assert study.vary.keys() == {"precision", "rank"}


def test_the_readmes_snippet_is_python_without_loracle() -> None:
    snippet = block(read(ROOT / "README.md"), "python")
    compile(snippet, "README.md", "exec")
    assert "loracle" not in snippet


def test_every_python_snippet_is_python(page: Path) -> None:
    for snippet in re.findall(r"```python\n(.*?)```", read(page), flags=re.DOTALL):
        compile(snippet, page.name, "exec")


def test_the_readmes_picture_is_small() -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", read(ROOT / "README.md"))
    assert pictures
    assert all((ROOT / picture).stat().st_size < 400_000 for picture in pictures)


def test_study_reference_is_up_to_date() -> None:
    path = ROOT / "tools" / "study_reference.py"
    spec = importlib.util.spec_from_file_location("study_reference", path)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert read(ROOT / "docs" / "study.md") == tool.page(), "run: make docs"


def test_columns_and_keys_are_documented() -> None:
    text = read(ROOT / "docs" / "files.md")
    for name, columns in COLUMNS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}.csv`"))
        assert re.findall(r"`(\w+)`", row.partition("|")[2].partition("|")[2]) == list(columns), name
        assert f"| {TABLE_NOTES[name]} |" in row
    for name, *_ in FIGURES:
        assert f"\n| `{name}` | " in text, name
    for key in KEYS:
        assert f"`{key}`" in text, key


def test_keys_of_a_record_are_documented() -> None:
    source = ast.parse(read(ROOT / "src" / "loracle" / "worker" / "records.py"))
    dicts = [node for node in ast.walk(source) if isinstance(node, ast.Dict)]
    keys = [{key.value for key in node.keys if isinstance(key, ast.Constant)} for node in dicts]
    found = {key for one in keys for key in one if "cohort_size" in one or "peak_reason" in one or "optimizer" in one}
    assert {"cohort_size", "peak_reason", "optimizer"} <= found
    text = read(ROOT / "docs" / "files.md").partition("## runs/RUN/record.json")[2].partition("\n## ")[0]
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`\n]+)`", text))))
    assert found - words == set()


def test_metrics_of_a_run_are_documented() -> None:
    text = read(ROOT / "docs" / "files.md").partition("Keys of `metrics`")[2].partition("\n## ")[0]
    shown = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", text, flags=re.MULTILINE)))
    runs = COLUMNS["runs"]
    begin, end = runs.index("perplexity"), runs.index("trainable_params")
    assert sorted(shown) == sorted(runs[begin:end])


def test_methods_are_as_they_are() -> None:
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", read(ROOT / "docs" / "methods.md"), flags=re.MULTILINE)
    table = {name: [cell.strip() for cell in rest.split("|")] for name, rest in rows if rest.count("|") == 4}
    del table["method"]  # the heading
    assert list(table) == list(METHODS)
    for name, method in METHODS.items():
        assert table[name][1:3] == ["yes" if has else "–" for has in (method.rank, method.targets)], name
        assert re.sub(r":.*", "", method.source) in table[name][0] or name == "full", name


def test_methods_for_linear_layers_only_are_named() -> None:
    from tests.adapters.test_adapters_alone import LINEAR_ONLY, QUANTIZED

    text = read(ROOT / "docs" / "methods.md")
    rows = dict(re.findall(r"^\| `(\w+)` \|(?:[^|]*\|){3} ([^|]*\|[^|]*) \|$", text, flags=re.MULTILINE))
    base = {name: [cell.strip() for cell in row.split("|")] for name, row in rows.items() if name in METHODS}
    assert [name for name in METHODS if base[name][0] == "Linear"] == LINEAR_ONLY
    assert [name for name in METHODS if base[name][1] in ("yes", "needs one")] == ["lora", *QUANTIZED]


def test_measured_figures_are_those_of_the_benchmarks() -> None:
    text = read(ROOT / "docs" / "tasks.md")
    banking, sst2, squad = (
        json.loads(read(ROOT / "benchmarks" / f"2026-11-22-{name}.json"))
        for name in ("banking77-cpu", "sst2-reference", "squad-reference")
    )
    for scores in (banking["metrics"], *banking["beside"].values()):
        assert f"| {scores['accuracy']:.4f} | {scores['macro_f1']:.4f} |" in text
    for scores in (sst2, squad):
        for name, x in scores["interval_over_seeds"].items():
            shown = f"{x['mean']:.4f} [{x['low']:.4f}, {x['high']:.4f}]"
            assert shown in text or (name == "eval_loss" and scores is sst2), shown
    first = next(iter(squad["by_seed"].values()))
    for name in ("exact_match", "f1", "eval_loss"):
        assert f"| {first[f'base_{name}']:.4f} |" in text


def test_every_question_is_explained() -> None:
    text = read(ROOT / "docs" / "reading-verdicts.md")
    assert [name for name in KNOWN if f"| `{name}`" not in text] == []


def test_rooms_are_all_in_the_tour() -> None:
    rooms = {path.name for path in (ROOT / "src" / "loracle").iterdir() if (path / "__init__.py").is_file()}
    tour = read(ROOT / "CONTRIBUTING.md")
    assert [room for room in sorted(rooms) if f"\n**{room}** " not in tour] == []


def test_files_named_in_the_tour_exist() -> None:
    tour = read(ROOT / "CONTRIBUTING.md").partition("## A tour of the rooms")[2].partition("## Where a line")[0]
    for room, text in re.findall(r"\n\*\*(\w+)\*\* (.*?)(?=\n\n)", tour, flags=re.DOTALL):
        for name in re.findall(r"`(\w+\.py)`", text):
            assert (ROOT / "src" / "loracle" / room / name).is_file(), f"{room}/{name}"


def test_pinned_versions_meet_what_is_asked_for() -> None:
    lines = [line for line in read(ROOT / "constraints.txt").splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in lines)
    assert "torch==2.13.0" in lines


def test_ci_script_is_sound() -> None:
    script = ROOT / ".ci" / "run"
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    assert subprocess.run([bash, "-n", str(script)], check=False).returncode == 0
    assert "make test" in read(script)


def test_the_guides_studies_are_studies() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", read(ROOT / "docs" / "guide.md"), flags=re.DOTALL)
    studies = [parse_study(read_yaml(text, "guide.md")) for text in blocks]
    assert [study.name for study in studies] == ["by-layer", "my-rows", "my-labels"]


def test_new_pages_are_in_the_readme() -> None:
    text = read(ROOT / "README.md")
    for name in ("guide", "algorithm13_extension", "ethical_considerations"):
        assert f"(docs/{name}.md)" in text
