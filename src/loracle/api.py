"""loracle from Python: what ``loracle plan`` and ``loracle run`` do, as functions. The commands call them too.

Never loads torch: workers are processes. What a study left behind is read by ``loracle.report.frames``.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loracle.spec import Study
    from loracle.study import Outcome
    from loracle.study.progress import Progress

NEEDED_LATER = (
    "loracle.report.write",
    "matplotlib.style",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "matplotlib.ticker",
)


def plan(
    study: Study | Mapping[str, Any] | str | Path,
    overrides: Sequence[str] = (),
    *,
    gpu_memory: str | None = None,
    measure: bool = False,
) -> dict[str, Any]:
    """What ``study`` would train and what that takes, as plan.json says it (docs/files.md). Writes nothing, needs no weights.

    ``study``: a study file's keys as a mapping, the file, or the folder of a study. ``overrides``: ``["seeds=[42]"]``, as ``--set``.
    ``gpu_memory``: memory of one GPU to plan for, such as ``24GB``. ``measure``: load the weights and, on a CPU, time cohort sizes.

    Raises ``SpecError`` where the study cannot mean anything, ``LoracleError`` where it cannot be planned.
    """
    from loracle.study.preview import preview_plan
    from loracle.study.progress import for_stream

    return preview_plan(read(study, overrides, gpu_memory), measure=measure, progress=for_stream() if measure else None)


def run(
    study: Study | Mapping[str, Any] | str | Path,
    folder: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    gpu_memory: str | None = None,
    decide: bool = False,
    quiet: bool = False,
) -> Path:
    """Train every run of ``study``, measure, write the report; returns the study's folder (``runs/NAME`` when not named).

    Call it again to go on where it stopped: finished runs are kept. ``decide``: add seeds at looks fixed before training until the
    primary question is decided. ``quiet``: say nothing; ``loracle.records`` has the state of every run. The rest is as in ``plan``.

    Raises ``Interrupted`` after Ctrl-C or the interrupt of a notebook, with finished runs and checkpoints saved; ``StoreError`` where
    another process has the folder; ``SpecError`` or ``LoracleError`` where the study cannot be planned.
    """
    from loracle.study import Interrupted
    from loracle.study.progress import Silent, for_stream

    found = read(study, overrides, gpu_memory)
    try:
        outcome = execute(found, folder or folder_given(study), decide, Silent() if quiet else for_stream(brief=True))
    except Interrupted as stopped:
        raise Interrupted(f"{stopped}, or by the same call again", stopped.exit_code) from None
    for line in () if quiet else (*outcome.troubles(), outcome.summary()):
        print(line, file=sys.stderr)
    return outcome.folder


def read(
    study: Study | Mapping[str, Any] | str | Path, overrides: Sequence[str] = (), gpu_memory: str | None = None
) -> Study:
    """The validated study. Paths in a mapping are taken from the current folder, those in a file from the file's."""
    from loracle.base.errors import SpecError
    from loracle.spec import Study, load_study, parse_study
    from loracle.store.layout import StudyFolder

    more = [*overrides, *([] if gpu_memory is None else [f"run.gpu_memory={gpu_memory}"])]
    if isinstance(study, Study):
        if not more:
            return study
        study = study.model_dump(mode="json", exclude_unset=True)
    if not isinstance(study, Mapping | str | Path):
        raise SpecError(f"a study is a mapping, a study file or a study's folder, not {type(study).__name__}")
    if isinstance(study, Mapping):
        return parse_study(dict(study), more, folder=Path.cwd())
    folder = folder_given(study)
    return load_study(StudyFolder(folder).study_yaml if folder else Path(study), more)


def folder_given(study: object) -> Path | None:
    """The folder, where ``study`` is the path of one."""
    return Path(study) if isinstance(study, str | Path) and Path(study).is_dir() else None


def execute(
    study: Study, folder: str | Path | None = None, decide: bool = False, progress: Progress | None = None
) -> Outcome:
    """``run_study`` with the report at its end, in ``runs/NAME`` unless named; progress on standard error unless given."""
    from loracle.report import primary_verdicts, write_report
    from loracle.study import run_study
    from loracle.study.progress import for_stream

    with _imported_meanwhile():
        return run_study(
            study,
            Path(folder) if folder else Path("runs") / study.name,
            progress=progress or for_stream(),
            report=write_report,
            decide=primary_verdicts if decide else None,
        )


@contextlib.contextmanager
def _imported_meanwhile() -> Iterator[None]:
    """scipy and matplotlib take seconds to import: a thread does it while the first worker is at work. It begins only after a
    moment, so that a study with an error in it ends at once; not a daemon, which must not be stopped amid an import."""
    import threading

    timer = threading.Timer(1.0, lambda: [importlib.import_module(name) for name in NEEDED_LATER])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
