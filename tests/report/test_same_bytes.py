"""The same records give the same bytes in every file, whoever writes them, where, when and with what settings of matplotlib."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from part_two import write_classification
from synthetic_study import write_study
from test_sensitivity import add_sensitivity

UNFINISHED = {"nf4-r4-qkv-s44": ("failed", "reload"), "bf16-r16-qkv-s43": ("oom", "needs at least 1.2 GB")}

HOSTILE_RC = """
font.family: monospace
font.size: 23
figure.dpi: 31
savefig.dpi: 47
savefig.bbox: tight
savefig.facecolor: red
axes.facecolor: green
axes.spines.left: True
axes.prop_cycle: cycler('color', ['y'])
axes.autolimit_mode: round_numbers
lines.linewidth: 9
lines.antialiased: False
text.hinting: none
text.usetex: False
path.simplify: False
path.sketch: 1, 100, 2
image.cmap: hot
timezone: Asia/Tokyo
axes.formatter.use_locale: True
figure.constrained_layout.h_pad: 1
"""

WRITE = """
import socket, sys, time
def refuse(*args, **kwargs):
    raise OSError("no network here")
socket.socket.connect = socket.create_connection = refuse
if sys.argv[1] == "later":
    clock = time.time
    time.time = lambda: clock() + 4e8
from pathlib import Path
from loracle.report import write_report
for folder in sys.argv[2:]:
    write_report(Path(folder))
"""


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Studies that have every figure between them."""
    root = tmp_path_factory.mktemp("here")
    whole, classified = root / "whole", root / "classified"
    for folder in (whole, classified):
        folder.mkdir()
    add_sensitivity(write_study(whole, ranks=(4, 16), states=UNFINISHED))
    write_classification(classified)
    return [whole, classified]


def write(when: str, folders: list[Path], environment: dict[str, str], cwd: Path) -> None:
    given = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PATH": os.environ["PATH"], **environment}
    command = [sys.executable, "-c", WRITE, when, *map(str, folders)]
    done = subprocess.run(command, env=given, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def another_dejavu(folder: Path) -> None:
    """A font of the user's that calls itself DejaVu Sans and is none."""
    import matplotlib
    from fontTools.ttLib import TTFont

    font = TTFont(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono.ttf")
    for record in font["name"].names:
        if record.nameID in (1, 4, 6, 16):
            record.string = "DejaVu Sans" if record.nameID != 6 else "DejaVuSans"
    folder.mkdir(parents=True)
    font.save(folder / "DejaVuSans.ttf")


def test_every_file_is_the_same_under_other_circumstances(studies: list[Path], tmp_path: Path) -> None:
    plain_home = tmp_path / "plain"
    plain_home.mkdir()
    write("now", studies, {"HOME": str(plain_home), "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"}, plain_home)

    home = tmp_path / "an other höme"
    another_dejavu(home / ".fonts")
    (home / "matplotlibrc").write_text(HOSTILE_RC)
    shutil.copytree(home / ".fonts", home / "data" / "fonts")
    elsewhere = [Path(shutil.copytree(study, home / f"study {i}")) for i, study in enumerate(studies)]
    shutil.rmtree(elsewhere[1] / "report")  # the other report is written over
    for i, path in enumerate(sorted(home.rglob("*"))):
        os.utime(path, (1_000_000_000 + i, 1_000_000_000 + i))
    settings = {
        "HOME": str(home), "XDG_DATA_HOME": str(home / "data"), "MATPLOTLIBRC": str(home / "matplotlibrc"), "MPLBACKEND": "svg",
        "MPLCONFIGDIR": str(home / "config"), "PYTHONHASHSEED": "4711", "OMP_NUM_THREADS": "2", "TZ": "Asia/Tokyo",
        "LC_ALL": "C", "LANG": "de_DE.UTF-8", "SOURCE_DATE_EPOCH": "2000000000", "COLUMNS": "40", "PYTHONUTF8": "1",
    }  # fmt: skip
    write("later", elsewhere, settings, home)

    for study, other in zip(studies, elsewhere, strict=True):
        assert contents(study / "report") == contents(other / "report")


def test_no_room_of_the_report_asks_for_the_date() -> None:
    """``datetime`` cannot be set forward as ``time.time`` is above."""
    import loracle.report
    import loracle.verdict

    for room in (loracle.report, loracle.verdict):
        for path in Path(str(room.__file__)).parent.glob("*.py"):
            assert not {"datetime", "localtime", "gmtime"} & set(
                path.read_text(encoding="utf-8").replace(".", " ").split()
            ), path


def test_what_was_compared_is_everything(studies: list[Path]) -> None:
    """The comparison above would miss a figure or a table that none of its studies has."""
    from loracle.report.columns import COLUMNS
    from loracle.report.figures import FIGURES
    from loracle.report.write import write_report

    for study in studies:
        if not (study / "report").exists():
            write_report(study)
    drawn = {path.name for study in studies for path in (study / "report" / "figures").iterdir()}
    assert drawn == {name for name, *_ in FIGURES}
    filled = set()
    for study in studies:
        filled |= {p.stem for p in (study / "report" / "tables").iterdir() if p.read_text().count("\n") > 1}
    assert filled >= {
        "runs",
        "similarity_by_layer",
        "memory",
        "confusion",
        "layer_sensitivity",
        "quality_memory",
    }
    assert filled <= set(COLUMNS)
