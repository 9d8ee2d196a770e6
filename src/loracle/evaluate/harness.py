"""lm-evaluation-harness on a model in memory: its tasks, its prompts, its metrics (extra ``lm-eval``).

Gao et al., "A framework for few-shot language model evaluation", https://github.com/EleutherAI/lm-evaluation-harness.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loracle.base.errors import DataError, LoracleError, SpecError, one_line
from loracle.base.extras import require
from loracle.base.names import nearest

WHERE = "--lm-eval"


def run_harness(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    batch_size: int = 8,
    num_fewshot: int | None = None,
    include_path: Path | None = None,
) -> dict[str, Any]:
    """Evaluate ``model`` (Transformers or PEFT, on its device) on ``tasks``.

    A task is a name that the harness or ``include_path`` knows, a task's YAML file, or a folder of them (all its tasks).
    Relative ``data_files`` of the user's own tasks are beside their YAML. ``limit``: the first items of each task only.
    ``num_fewshot``: None is the task's own. Seeds Python's, numpy's and torch's generators, as the harness does.

    Returns ``{results: {task: {metric: value or null, metric_stderr: …}}, versions: {task: version}, samples:
    {task: {original, effective}}, higher_is_better: {task: {metric: bool}}, lm_eval, settings}``, plain JSON. A metric
    behind a filter is ``metric,filter``; fractions of 1 where the harness has them so.

    Raises ``SpecError`` (not installed, no such task) and ``DataError`` (a task that cannot be read, its data first of all).
    """
    require(("lm_eval",), "lm-evaluation-harness", WHERE, "'loracle[lm-eval]'")
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    with quiet():
        manager = task_manager(tasks, include_path)
        loaded = [task for name in tasks for task in load(manager, name, include_path)]
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        found = lm_eval.simple_evaluate(
            lm,
            tasks=loaded,
            task_manager=manager,
            limit=limit,
            num_fewshot=num_fewshot,
            log_samples=False,
        )
    own = set(found["versions"])
    return {
        "results": {name: plain(figures) for name, figures in found["results"].items()},
        "versions": found["versions"],
        "samples": found["n-samples"],
        "higher_is_better": {name: better for name, better in found["higher_is_better"].items() if name in own},
        "lm_eval": lm_eval.__version__,
        "settings": {"limit": limit, "num_fewshot": num_fewshot, "batch_size": batch_size},
    }


def task_manager(tasks: Sequence[str], include_path: Path | None) -> Any:
    """The harness's index of tasks. Its own, thousands of files, are read only where a task is asked for by name."""
    from lm_eval.tasks import TaskManager

    if include_path is not None and not include_path.is_dir():
        raise SpecError(f"no such folder: {include_path}", WHERE)
    return TaskManager(include_path=include_path, include_defaults=not all(is_path(name) for name in tasks))


def is_path(name: str) -> bool:
    """Whether a task is given as a file or folder: a suffix says so, or a separator. ``./x`` is always one."""
    return name.endswith((".yaml", ".yml")) or "/" in name or "\\" in name


def load(manager: Any, name: str, include_path: Path | None) -> list[Any]:
    """The tasks and groups behind one name, their data read."""
    from lm_eval.tasks import TaskManager

    if not is_path(name):
        if name not in manager.all_tasks:
            near = nearest(name, manager.all_tasks)
            hint = (
                f"did you mean '{near}'?"
                if near
                else "lm_eval ls tasks lists them; a YAML file of yours needs its path"
            )
            raise SpecError(f"'{name}' is no task of lm-evaluation-harness, {hint}", WHERE)
        return [read(manager, name, include_path)]
    path = Path(name).expanduser().resolve()
    if path.is_dir():
        folder = TaskManager(include_path=path, include_defaults=False)
        if not folder.all_subtasks:
            raise SpecError(f"no task's YAML file in {name}", WHERE)
        return [read(folder, each, path) for each in folder.all_subtasks]
    if not path.is_file():
        raise SpecError(f"no such file: {name}", WHERE)
    return [read(manager, str(path), path.parent)]


def read(manager: Any, name: str, folder: Path | None) -> Any:
    """One task, or group, built by the harness with ``folder`` as the current one."""
    try:
        with contextlib.chdir(folder) if folder else contextlib.nullcontext():
            built = manager.load([name])
    except LoracleError:
        raise
    except Exception as error:
        raise DataError(f"the harness cannot load this task: {one_line(error)}", name) from None
    tops = built["groups"] or built["tasks"]
    return next(iter(tops.values()))


def plain(figures: Mapping[str, Any]) -> dict[str, float | int | None]:
    """``{"acc,none": …, "acc_stderr,none": "N/A"}`` as ``{"acc": …, "acc_stderr": null}``; filters but "none" stay."""
    out: dict[str, float | int | None] = {}
    for key, value in figures.items():
        metric, comma, kind = key.partition(",")
        if comma:
            number = getattr(value, "item", lambda value=value: value)()
            sound = isinstance(number, int | float) and math.isfinite(number)
            out[metric if kind == "none" else key] = number if sound else None
    return out


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The harness's log below a warning is for its own command."""
    log = logging.getLogger("lm_eval")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
