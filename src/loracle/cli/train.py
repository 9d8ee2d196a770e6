"""``train``: one run without a study file. It is a study of one cell and one seed, and goes the way of every study."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loracle.cli import show, studies
from loracle.cli.options import named, number, tree, words

if TYPE_CHECKING:
    from loracle.spec import Study
    from loracle.study import Outcome

# Option → dotted path of the study.
PATHS = {
    "--model": "base.model",
    "--task": "task.name",
    "--data": "task.data",
    "--format": "task.format",
    "--eval": "task.eval",
    "--max-length": "task.max_length",
    "--precision": "precision",
    "--method": "adapter.method",
    "--rank": "adapter.rank",
    "--alpha": "adapter.alpha",
    "--dropout": "adapter.dropout",
    "--targets": "adapter.targets",
    "--steps": "train.steps",
    "--epochs": "train.epochs",
    "--batch-size": "train.batch_size",
    "--learning-rate": "train.learning_rate",
    "--optimizer": "train.optimizer",
    "--gradient-checkpointing": "train.gradient_checkpointing",
    "--track": "run.track",
}
# A metric of the record and the same before training.
BEFORE = "base_"


def train(
    model: Annotated[str, typer.Option("--model", help="The base: a hub id, a folder, or gpt2-demo (built in).")],
    data: Annotated[
        str | None, typer.Option("--data", metavar="FILE|HUB", help="Rows to train on, or a hub data set.")
    ] = None,
    task: Annotated[str | None, typer.Option("--task", metavar="NAME", help="A task of the library.")] = None,
    format: Annotated[str | None, typer.Option("--format", help="How a row reads [guessed from its columns].")] = None,
    eval: Annotated[
        str | None, typer.Option("--eval", metavar="FILE", help="Rows to evaluate on [a tenth of the data].")
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="Of the frozen base: bf16, nf4, … [bf16].")
    ] = None,
    method: Annotated[str | None, typer.Option("--method", help="lora, full, dora, ia3, … [lora].")] = None,
    rank: Annotated[int | None, typer.Option("--rank", help="Rank of the adapter [8].")] = None,
    alpha: Annotated[
        str | None, typer.Option("--alpha", help="A number, or a multiple of the rank as 2r [16].")
    ] = None,
    dropout: Annotated[float | None, typer.Option("--dropout", help="Of the adapter's input [0].")] = None,
    targets: Annotated[str | None, typer.Option("--targets", help="Modules, as q,v or c_attn [all-linear].")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Optimizer steps.")] = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", help="Passes over the data, in place of steps [1].")
    ] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Rows of a step [8].")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="At its highest [2e-4].")] = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", help="Tokens of a row; longer ones are cut [512].")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of initial weights, data order and dropout.")] = 42,
    optimizer: Annotated[
        str | None, typer.Option("--optimizer", help="adamw or one of its 8-bit and paged kin [adamw].")
    ] = None,
    checkpointing: Annotated[bool, typer.Option("--gradient-checkpointing", help="Less memory for more time.")] = False,
    track: Annotated[
        list[str] | None, typer.Option("--track", help="A tracker: wandb, tensorboard, mlflow, trackio; repeatable.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder; runs/MODEL-TASK-PRECISION when absent.")
    ] = None,
    set_: studies.Set = None,
    as_json: studies.Json = False,
) -> None:
    """Train one adapter, check that it reloads, and say what it gained. Run it again: nothing is trained twice."""
    from loracle.api import execute
    from loracle.base.errors import SpecError

    if steps is not None and epochs is not None:
        raise SpecError("not with --epochs: give one of them", "--steps")
    given = {
        "--model": model,
        "--task": task,
        "--data": data,
        "--format": format,
        "--eval": eval,
        "--max-length": max_length,
        "--precision": precision,
        "--method": method,
        "--rank": rank,
        "--alpha": number(alpha),
        "--dropout": dropout,
        "--targets": words(targets),
        "--steps": steps,
        "--epochs": epochs,
        "--batch-size": batch_size,
        "--learning-rate": learning_rate,
        "--optimizer": optimizer,
        "--gradient-checkpointing": checkpointing or None,
        "--track": track or None,
    }
    with named({PATHS[option]: option for option, value in given.items() if value is not None} | {"seeds": "--seed"}):
        study = one_run({PATHS[option]: value for option, value in given.items()}, seed, set_ or [])
        outcome = execute(study, out)
    _print(outcome, as_json)
    raise typer.Exit(outcome.exit_code)


def one_run(settings: dict[str, Any], seed: int, overrides: list[str]) -> Study:
    """The study of one cell and one seed that ``settings`` (dotted path → value) make, asking nothing unless told to."""
    from loracle.base.errors import SpecError
    from loracle.base.names import slug
    from loracle.spec import parse_study
    from loracle.spec.factors import precision_label

    raw = tree(settings) | {"name": "run", "seeds": [seed], "diagnose": {"null_runs": 0}}
    if (
        not any(item.startswith(("task=", "task.", "data_path=", "dataset=")) for item in overrides)
        and "task" not in raw
    ):
        raise SpecError("name the data: --data FILE or --task NAME")
    study = parse_study(raw, overrides, folder=Path.cwd())
    if study.vary or study.cells or len(study.seeds) > 1:
        raise SpecError("this is one run: several are a study (loracle new writes one, loracle run trains it)", "--set")
    update: dict[str, Any] = {} if "questions" in study.model_fields_set else {"questions": ()}
    if study.name == "run":
        what = study.task.name or Path(study.task.data or "").stem
        base = Path(study.base.model).name
        update["name"] = slug(f"{slug(base, 48)}-{slug(what, 48)}-{precision_label(study.precision)}", 120)
    return study.model_copy(update=update)


def _print(outcome: Outcome, as_json: bool) -> None:
    from loracle.store.files import read_json
    from loracle.store.layout import StudyFolder

    [(run, state)] = outcome.states.items()
    layout = StudyFolder(outcome.folder)
    record = read_json(layout.run_record(run)) if layout.run_record(run).is_file() else {}
    if as_json:
        figures = {key: record.get(key) for key in ("eval_loss", "train_loss", "metrics", "steps", "wall_s")}
        adapter = str(layout.run(run) / "adapter") if state.status == "done" else None
        shown = {**studies.outcome_json(outcome), "run": run, "adapter": adapter, **figures}
        print(json.dumps(shown, indent=1, ensure_ascii=False))
        return
    for line in outcome.troubles():
        print(line, file=sys.stderr)
    print(
        "\n".join(_lines(record, layout.run(run), outcome.report) if state.status == "done" else [str(outcome.folder)])
    )


def _lines(record: dict[str, Any], folder: Path, report: Path | None) -> list[str]:
    """What a person reads of a finished run."""
    metrics = dict(record["metrics"])
    rows = [["eval loss", _figure(metrics.pop("base_eval_loss", None)), _figure(record["eval_loss"])]]
    rows += [
        [name.replace("_", " "), _figure(metrics.get(BEFORE + name)), _figure(value)]
        for name, value in metrics.items()
        if not name.startswith(BEFORE)
    ]
    trained = f"{record['trainable_params']:,} of {record['total_params']:,} parameters trained"
    seconds = record["wall_s"]
    took = f"{seconds:.1f} s" if seconds < 60 else show.duration(seconds)
    return [
        f"{record['id']}: {record['steps']:,} steps in {took}, {trained}",
        show.table(["", "before", "after"], rows),
        f"adapter: {folder / 'adapter'}",
        f'load it: loracle.load("{folder}"), or {_plain(record, folder)}',
        *([f"report: {report}"] if report else []),
    ]


def _plain(record: dict[str, Any], folder: Path) -> str:
    """How the adapter loads without loracle."""
    how = (record.get("reload") or {}).get("load") or {}
    if record["config"]["adapter"]["method"] == "full":
        return f'from_pretrained("{folder / "adapter"}"): it is the whole model'
    if how.get("plain") is False:
        return f"not by PEFT alone: {how.get('reason')}"
    return f'PeftModel.from_pretrained(base, "{folder / "adapter"}"), the base as reload.load of record.json says'


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
