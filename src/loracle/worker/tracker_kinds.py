"""The kinds of trackers: how each opens a run, takes its lines and closes it. ``tracking.py`` says when."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loracle.base.errors import one_line
from loracle.base.log import logger
from loracle.store.claims import claim
from loracle.store.files import finite, read_json, read_jsonl

PROJECT = "loracle"
PATIENCE_S = 20.0  # with a server, or with another worker


@dataclass(frozen=True)
class Tracked:
    """One run as its tracker shows it; ``folder`` holds its ``metrics.jsonl`` and, at the end, ``record.json``."""

    run: str
    study: str
    label: str
    config: dict[str, Any]
    folder: Path
    place: Path  # STUDY/tracking
    token: str  # of this study folder: the same study run in another folder is another run to a server


@dataclass
class Feed:
    """One run in one tracker: accelerate's ``tracker``, and how to log to it and close it."""

    tracker: Any
    member: Tracked
    close: Callable[[str, dict[str, Any]], None]  # (status, final figures)
    after: int = -1  # the last step that it has already
    extra: dict[str, Any] = field(default_factory=dict)  # keywords of every ``log``
    read: int = 0

    def feed(self) -> None:
        """Log the lines of ``metrics.jsonl`` that are new; figures that are null are left out."""
        lines = read_jsonl(self.member.folder / "metrics.jsonl")
        for line in lines[self.read :]:
            values = {key: value for key, value in line.items() if key != "step" and value is not None}
            if values and line["step"] > self.after:
                self.tracker.log(values, step=line["step"], **self.extra)
        self.read = len(lines)

    def end(self, recorded: bool) -> None:
        """Close it, with the record's figures where the run got one from this job."""
        self.feed()
        record: dict[str, Any] = (
            read_json(self.member.folder / "record.json") if recorded else {"status": "interrupted"}
        )
        final: dict[str, Any] = {"eval_loss": record.get("eval_loss"), **(record.get("metrics") or {})}
        numbers = {f"final/{k}": v for k, v in finite(final).items() if isinstance(v, int | float)}
        self.close(record["status"], numbers)


def open_wandb(member: Tracked) -> Feed:
    """A W&B run, grouped by study; offline where ``WANDB_MODE`` says so or W&B cannot be reached without a key.

    A resumed online run goes on after its last step. Offline runs cannot be resumed, so an older folder of the same run
    gives way to the new one, which has everything.
    """
    try:
        tracker = start_wandb(member, os.environ.get("WANDB_MODE") or None)
    except Exception as error:
        if os.environ.get("WANDB_MODE"):
            raise
        logger.warning("run.track: wandb goes offline (wandb login, or WANDB_MODE=offline): %s", one_line(error))
        os.environ["WANDB_MODE"] = "offline"
        tracker = start_wandb(member, "offline")
    run = tracker.run
    if run.offline:
        for old in (member.place / "wandb").glob(f"offline-run-*-{run.id}"):
            if old.resolve() != Path(run.dir).parent.resolve():
                shutil.rmtree(old, ignore_errors=True)

    def close(status: str, final: dict[str, Any]) -> None:
        if status == "interrupted":
            run.mark_preempting()
        else:
            run.summary.update({**final, "status": status})
        run.finish(exit_code=0 if status == "done" else 1)

    return Feed(tracker, member, close, after=run.step - 1 if run.resumed else -1)


def start_wandb(member: Tracked, mode: str | None) -> Any:
    """accelerate's W&B tracker, started. Several live in one process, so each is ``create_new``, none takes over the
    console, and none samples the machine; the code and git state of the current folder are not ours to send."""
    import wandb
    from accelerate.tracking import WandBTracker

    settings = {"silent": True, "console": "off", "disable_git": True, "disable_code": True, "x_disable_stats": True}
    tracker = WandBTracker(
        os.environ.get("WANDB_PROJECT", PROJECT),
        group=member.study,
        name=member.run,
        id=f"{member.run[:100]}-{member.token}",
        config={"label": member.label, **member.config},
        dir=str(member.place),
        mode=mode,
        resume="allow",
        reinit="create_new",
        settings=wandb.Settings(**settings, init_timeout=PATIENCE_S, finish_timeout=PATIENCE_S),
    )
    member.place.mkdir(parents=True, exist_ok=True)
    tracker.start()
    return tracker


def open_tensorboard(member: Tracked) -> Feed:
    """Event files in ``tracking/tensorboard/RUN``, written anew; hyperparameters and final figures come at the end."""
    from accelerate.tracking import TensorBoardTracker

    root = member.place / "tensorboard"
    shutil.rmtree(root / member.run, ignore_errors=True)
    tracker = TensorBoardTracker(member.run, root)
    tracker.start()

    def close(status: str, final: dict[str, Any]) -> None:
        tracker.log({"status": status}, step=0)
        if final:  # accelerate would make a run of its own of them; "." keeps them in this one
            tracker.writer.add_hparams({"label": member.label, **flat(member.config)}, final, run_name=".")
        tracker.finish()

    return Feed(tracker, member, close)


def open_mlflow(member: Tracked) -> Feed:
    """An MLflow run in the study's experiment, at ``MLFLOW_TRACKING_URI`` or in ``tracking/mlflow.db``.

    MLflow's active runs are a stack, and a cohort's runs are logged side by side: each leaves the stack at once (still
    ``RUNNING``) and is logged to by its id. A run that is there already goes on after its last step.
    """
    import mlflow
    from accelerate.tracking import MLflowTracker

    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri(f"sqlite:///{member.place / 'mlflow.db'}")
    with claim(member.place / "mlflow.lock", "MLflow's start", PATIENCE_S):  # it makes its tables once
        experiment = mlflow.set_experiment(member.study)
    client = mlflow.MlflowClient()
    name = f"{member.run}-{member.token}"
    found = client.search_runs([experiment.experiment_id], f"tags.`loracle.run` = '{name}'", max_results=1)
    known = found[0].info.run_id if found else None
    tracker = MLflowTracker(member.study, run_id=known, run_name=member.run, tags={"loracle.run": name})
    tracker.start()
    if known is None:
        tracker.store_init_configuration({"label": member.label, **flat(member.config)})
    mlflow.end_run("RUNNING")
    run = tracker.active_run.info.run_id
    steps = [m.step for key in ("loss", "eval_loss") for m in client.get_metric_history(run, key)]

    def close(status: str, final: dict[str, Any]) -> None:
        tracker.log(final, run_id=run)
        client.set_tag(run, "loracle.status", status)
        client.set_terminated(run, {"done": "FINISHED", "interrupted": "KILLED"}.get(status, "FAILED"))

    return Feed(tracker, member, close, after=max(steps, default=-1), extra={"run_id": run})


def open_trackio(member: Tracked) -> Feed:
    """A trackio run, grouped by study, in ``TRACKIO_DIR`` or ``tracking/trackio``; it goes on after its last step."""
    os.environ.setdefault("TRACKIO_DIR", str(member.place / "trackio"))  # read when trackio is imported
    from accelerate.tracking import TrackioTracker

    tracker = TrackioTracker(
        PROJECT,
        name=f"{member.run}-{member.token}",
        group=member.study,
        config={"label": member.label, **flat(member.config)},
        resume="allow",
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    tracker.start()

    def close(status: str, final: dict[str, Any]) -> None:
        if status != "interrupted":
            tracker.log({**final, "status": status})
        tracker.finish()

    return Feed(tracker, member, close, after=tracker.run._next_step - 1)


OPENERS: dict[str, Callable[[Tracked], Feed]] = {
    "wandb": open_wandb,
    "tensorboard": open_tensorboard,
    "mlflow": open_mlflow,
    "trackio": open_trackio,
}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys; what is no number, text or truth value becomes text."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return out
