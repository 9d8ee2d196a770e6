"""Execute a study: claim the folder, plan (once), train, measure, report. Top to bottom in ``run_study``.

Not covered here: what a worker does (worker.py) and what the results mean (verdict, report).
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from loracle.base.errors import StoreError
from loracle.base.extras import require_trackers
from loracle.spec.study import Study
from loracle.spec.yaml import write_yaml
from loracle.store.claims import claim
from loracle.store.files import read_json, write_json, write_text
from loracle.store.layout import StudyFolder
from loracle.study import looks
from loracle.study.allocation import allocation
from loracle.study.cells import planned_cells, study_digest
from loracle.study.crew import GRACE_S, Crew
from loracle.study.fits import budget, limit
from loracle.study.inspect import WorkerDied, inspect, unreadable
from loracle.study.interrupt import Interrupted, Stop
from loracle.study.launch import Launcher, LocalLauncher
from loracle.study.looks import Judge
from loracle.study.measuring import comparable, diagnose, probed, probes
from loracle.study.mixing import chosen
from loracle.study.places import Places
from loracle.study.plan import make_plan
from loracle.study.progress import Progress, Silent
from loracle.study.resources import Machine, as_seen, concurrency, lanes, this_machine
from loracle.study.sensitivity import sensitivity
from loracle.study.states import Outcome, finished_runs, states
from loracle.study.training import Training

Report = Callable[[Path], Path]

OURS = {
    "study.lock",
    "study.yaml",
    "plan.json",
    "jobs",
    "data",
    "cohorts",
    "runs",
    "probes",
    "diagnose",
    "tracking",
    "report",
}


def run_study(
    study: Study,
    folder: Path,
    *,
    launcher: Launcher | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
    grace_s: float = GRACE_S,
    decide: Judge | None = None,
) -> Outcome:
    """Bring every run of ``study`` to a named end in ``folder``, then measure and ``report``. Finished work is kept.

    With ``decide``, which judges the primary question, seeds are added at the plan's looks until it has its answer.

    Raises ``StoreError`` when another process has the folder, ``SpecError`` or ``LoracleError`` when the study cannot
    be planned, ``Interrupted`` after SIGINT or SIGTERM (resumable).
    """
    require_trackers(study.run.track)
    layout, machine = StudyFolder(folder), this_machine(study.run.device)
    progress = progress or Silent()
    with _opened(layout, f"study folder {folder}"), contextlib.closing(progress):
        with Stop() as stop, contextlib.closing(launcher or LocalLauncher()) as workers:
            crew = Crew(workers, stop, progress, Places(machine.gpus, cores=machine.cores), grace_s)
            plan, problem, looked = _work(study, layout, crew, machine, decide)
        page = report(layout.root) if report else None
    return Outcome(layout.root, states(layout, plan, without="failed"), [problem] if problem else [], page, looked)


def _work(
    study: Study, layout: StudyFolder, crew: Crew, machine: Machine, judge: Judge | None
) -> tuple[dict[str, Any], str | None, str | None]:
    """Plan, train, measure. (the plan, what went wrong beside the runs, how the looks stand)."""
    plan: dict[str, Any] | None = None
    try:
        study = chosen(study, layout, crew, concurrency(study.run, machine, 1)[1])
        plan = obtain_plan(study, layout, crew, machine, decide=judge is not None)
        machine = as_seen(machine, plan["machine"])
        crew.places = Places(machine.gpus, budget(limit(study.run, plan["machine"])), machine.cores)
        workers, threads = _at_once(study, plan, machine)
        compared = crew.places.kinds(threads, 1) if comparable(plan) else []
        alone = crew.places.kinds(threads, lanes(len(plan["cells"]), machine)) if probed(study) else []
        Training(study, layout, plan, crew).run(workers, [*alone, *compared])
        looked = _until_decided(study, layout, plan, crew, machine, judge) if judge else None
        probes(study, layout, plan, crew, threads, machine, compared)
        problems = [
            diagnose(study, layout, plan, crew, threads),
            sensitivity(study, layout, plan, crew, threads),
            allocation(study, layout, plan, crew, threads),
        ]
        return plan, "; ".join(problem for problem in problems if problem) or None, looked
    except Interrupted as stopped:
        how = _how_to_resume(layout, plan) + (" --decide" if judge and plan else "")
        raise Interrupted(how, stopped.exit_code) from stopped


def _until_decided(
    study: Study, layout: StudyFolder, plan: dict[str, Any], crew: Crew, machine: Machine, judge: Judge
) -> str:
    """Train the seeds of one planned look after the other until the primary question has its answer, or no look is left."""
    while (now := looks.standing(layout, plan, judge)).go_on:
        crew.progress.note(now.text)
        looks.go_on(layout, plan)
        Training(study, layout, plan, crew).run(_at_once(study, plan, machine)[0])
    return now.text


def obtain_plan(
    study: Study, layout: StudyFolder, crew: Crew, machine: Machine, decide: bool = False
) -> dict[str, Any]:
    """The folder's plan where it is this study's (its composition, threads and looks are law), else a new one.
    ``decide``: the plan needs looks; they come before training, or as one more after a plan that had none."""
    plan, begun = _existing_plan(study, layout), bool(finished_runs(layout))
    taken = _looks_so_far(layout) if begun else None
    if taken is not None:
        study = looks.bound(study, taken)  # a changed study keeps the looks that were taken
    elif plan is not None and begun and (decide or study.decide is not None):
        plan = _with_looks(plan, study, layout, crew, machine)
    elif plan is not None and not begun and (not looks.same_looks(study, plan) or (decide and "looks" not in plan)):
        plan = None
    if plan is not None and "looks" in plan:
        study = looks.with_looks(study, plan["looks"])
    elif plan is None and decide and study.decide is None:
        study = looks.with_looks(study)
    if plan is None:
        record = inspect(study, layout, crew, machine, weights=True, measure=study.run.cohort == "auto", ahead=True)
        _readable(record)
        plan = make_plan(study, record, machine, finished_runs(layout))
        plan = plan if taken is None else looks.caught_up(plan, taken)
        _write_study(study, layout)
        write_json(layout.plan, plan)
    elif not _data_is_there(layout, plan):
        record = inspect(study, layout, crew, machine, weights=True, measure=False, ahead=True)
        _readable(record)
        _same_data(plan, record)
        _write_study(study, layout)
    else:
        _write_study(study, layout)
    return plan


def _with_looks(
    plan: dict[str, Any], study: Study, layout: StudyFolder, crew: Crew, machine: Machine
) -> dict[str, Any] | None:
    """A plan whose training has begun without looks, with the one it had and one more.
    None where it has too few seeds for any look to have been: it may be planned anew with looks."""
    if len(study.seeds) < looks.MIN_SEEDS:
        return None
    longer = looks.with_looks(study, looks.one_more(len(study.seeds)))
    if study.decide is not None and study.decide != longer.decide:
        allowed = list(longer.decide.looks if longer.decide else ())
        raise StoreError(
            f"decide.looks: training began without looks, which leaves {allowed}; others need a new folder"
        )
    record = inspect(study, layout, crew, machine, weights=True, measure=False, ahead=True)
    _readable(record)
    _same_data(plan, record)
    record = {**record, "sizing": plan["sizing"]}
    plan = looks.extended(plan, make_plan(longer, record, machine, finished_runs(layout)))
    write_json(layout.plan, plan)
    return plan


def _looks_so_far(layout: StudyFolder) -> dict[str, Any] | None:
    """The folder's last plan, whatever study it was of, where it has looks."""
    plan: dict[str, Any] = read_json(layout.plan) if layout.plan.exists() else {}
    return plan if "looks" in plan else None


def _existing_plan(study: Study, layout: StudyFolder) -> dict[str, Any] | None:
    """plan.json if it follows from this very study and has a cohort for every unfinished run."""
    if not layout.plan.exists():
        return None
    plan: dict[str, Any] = read_json(layout.plan)
    if plan.get("study_sha256") != study_digest(study, planned_cells(study)):
        return None
    covered = {run for cohort in plan["cohorts"] for run in cohort["runs"]}
    missing = {run["id"] for run in plan["runs"]} - covered
    return plan if missing <= set(finished_runs(layout)) else None


def _data_is_there(layout: StudyFolder, plan: dict[str, Any]) -> bool:
    """Whether the tokenized rows are in the folder; not so where only plan.json was copied."""
    return all(
        (layout.root / "data" / key / "train.parquet").is_file()
        and (layout.root / str(entry.get("eval_file"))).is_file()
        for key, entry in plan["data"].items()
    )


def _same_data(plan: dict[str, Any], record: dict[str, Any]) -> None:
    for key, entry in plan["data"].items():
        found = record["data"].get(key, {})
        if found.get("fingerprint") != entry.get("fingerprint"):
            raise StoreError(f"plan.json was made from other data than is there now ({key}): delete it to plan anew")


def _readable(record: dict[str, Any]) -> None:
    for reason in unreadable(record):
        raise StoreError(reason)


def _write_study(study: Study, layout: StudyFolder) -> None:
    """study.yaml with every default, but of a task of the library only what the study itself says: what is unsaid comes
    from the library's entry, and a default written out would overrule it."""
    tree = study.model_dump(mode="json")
    if study.task.name is not None:
        tree["task"] = study.task.model_dump(mode="json", exclude_unset=True)
    text = write_yaml(tree)
    if not layout.study_yaml.exists() or layout.study_yaml.read_text(encoding="utf-8") != text:
        write_text(layout.study_yaml, text)


def _at_once(study: Study, plan: dict[str, Any], machine: Machine) -> tuple[int, int]:
    """(workers, threads of a job that runs alone). Cohorts' own threads are in the plan."""
    threads = max((cohort["threads"] for cohort in plan["cohorts"]), default=1)
    pinned = study.run.model_copy(update={"threads": threads})
    return concurrency(pinned, machine, len(plan["cohorts"]))[0], concurrency(study.run, machine, 1)[1]


@contextlib.contextmanager
def _opened(layout: StudyFolder, what: str) -> Iterator[None]:
    """The study folder, made if need be, and its lock. A folder with other people's files is refused; one that was
    made here for a study that could not be planned is taken away again, but for the log of a worker that died."""
    root = layout.root
    made = [path for path in (root, *root.parents) if not path.exists()]
    if not made and not layout.plan.exists():
        foreign = sorted({path.name for path in root.iterdir() if not path.name.startswith((".", "eval"))} - OURS)
        if foreign:
            raise StoreError(f"{root} is not a study folder (it holds {foreign[0]}): name another with --out")
    with claim(layout.lock, what):
        try:
            yield
        except WorkerDied:
            raise
        except BaseException:
            if made and not layout.plan.exists():
                shutil.rmtree(root, ignore_errors=True)
                for path in made[1:]:
                    with contextlib.suppress(OSError):
                        path.rmdir()
            raise


def _how_to_resume(layout: StudyFolder, plan: dict[str, Any] | None) -> str:
    if plan is None:
        return "interrupted before training began: nothing was written"
    done = sum(state.status == "done" for state in states(layout, plan).values())
    return f"interrupted with {done} of {len(plan['runs'])} runs done; resume with: loracle run {layout.root}"
