"""A plan to look at: what a study would do, without a study folder, without weights, without training."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from loracle.spec.study import Study
from loracle.store.layout import StudyFolder
from loracle.study.crew import Crew
from loracle.study.inspect import inspect
from loracle.study.interrupt import Stop
from loracle.study.launch import Launcher, LocalLauncher
from loracle.study.mixing import chosen, resolved, unchosen
from loracle.study.places import Places
from loracle.study.plan import make_plan
from loracle.study.progress import Progress, Silent
from loracle.study.resources import concurrency, this_machine


def preview_plan(
    study: Study, *, measure: bool = False, launcher: Launcher | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """The plan that ``run_study`` would make. ``measure`` also loads the weights and times cohort sizes.

    Without ``measure`` cohorts are a guess and times are unknown: ``run`` measures before it fixes them, and chooses mixed
    precisions, which are left out here and named as ``unchosen``.
    """
    machine = this_machine(study.run.device)
    with tempfile.TemporaryDirectory(prefix="loracle-plan-") as folder, Stop() as stop:
        layout = StudyFolder(Path(folder) / study.name)
        crew = Crew(launcher or LocalLauncher(), stop, progress or Silent(), Places(machine.gpus))
        threads = concurrency(study.run, machine, 1)[1]
        left_out = [] if measure else unchosen(study)
        study = chosen(study, layout, crew, threads) if measure else resolved(study, {})
        measure_sizes = measure and study.run.cohort == "auto"
        record = inspect(study, layout, crew, machine, weights=measure, measure=measure_sizes)
    return make_plan(study, record, machine, elsewhere=not measure) | ({"unchosen": left_out} if left_out else {})
