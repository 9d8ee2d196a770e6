"""What ``eval TARGET`` names: a run, a PEFT adapter or a model, and the job that evaluates it. Loads no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loracle.cli.options import tree

if TYPE_CHECKING:
    from loracle.spec.study import Cell

# Option → dotted path of the study.
PATHS = {
    "--base": "base.model",
    "--task": "task.name",
    "--data": "task.data",
    "--format": "task.format",
    "--max-length": "task.max_length",
    "--precision": "precision",
    "--device": "run.device",
}
# What a task says of its own rows: other data does not have it.
OF_ITS_ROWS = (
    "name",
    "data",
    "eval",
    "subset",
    "split",
    "eval_split",
    "samples",
    "eval_samples",
    "source",
    "licence",
    "description",
    "language",
    "known_biases",
    "group",
)
# How rows of one format read: another format's do not.
OF_ITS_FORMAT = ("format", "columns", "template", "type")
# Settings of a task that change none of its tokenized rows.
OF_ANSWERS = ("generate_samples", "latency_samples")


@dataclass(frozen=True)
class Asked:
    """The command line: ``given`` is option → value, null where it was left out; ``harness`` as ``evaluate.harness`` takes it."""

    target: str
    given: Mapping[str, Any]
    overrides: list[str]
    harness: dict[str, Any] | None = None

    def __getitem__(self, option: str) -> Any:
        return self.given[option]

    @property
    def settings(self) -> dict[str, Any]:
        """Dotted path → value of what was given."""
        return {path: self.given[option] for option, path in PATHS.items() if self.given[option] is not None}


@dataclass(frozen=True)
class Evaluated:
    """A job's payload but for what every job has: the cell to load, and what lies on it."""

    cell: Cell
    device: str
    adapter: Path | None = None
    tokenizer: str | None = None
    data: Path | None = None
    fingerprint: str | None = None

    def payload(self) -> dict[str, Any]:
        """As docs/jobs.md has it."""
        return {
            "cell": self.cell.model_dump(mode="json"),
            "device": self.device,
            "adapter": None if self.adapter is None else str(self.adapter),
            "tokenizer": self.tokenizer,
            "data": None if self.data is None else str(self.data),
            "fingerprint": self.fingerprint,
        }


def evaluated(asked: Asked) -> Evaluated:
    """What ``asked.target`` is. Raises ``SpecError`` for what cannot be evaluated."""
    from loracle.base.errors import SpecError

    path = Path(asked.target).expanduser()
    folder = path.resolve()
    if path.is_file():
        raise SpecError("is a file: name a run's, an adapter's or a model's folder, or a hub id", asked.target)
    record = _record(folder) or (_record(folder.parent) if folder.name == "adapter" else None)
    if record is not None:
        return _run(folder if _record(folder) else folder.parent, record, asked)
    if (folder / "adapter_config.json").is_file():
        return _adapter(folder, asked)
    if path.is_dir() and not (folder / "config.json").is_file():
        raise SpecError(_no_model(path), asked.target)
    if asked["--base"] is not None:
        raise SpecError("is for an adapter, and this is a model of its own", "--base")
    return _model(asked)


def _record(folder: Path) -> dict[str, Any] | None:
    """The record of a run's folder."""
    from loracle.store.files import read_json

    if not (folder / "record.json").is_file():
        return None
    record = read_json(folder / "record.json")
    return record if isinstance(record, dict) and record.get("kind") == "run" else None


def _no_model(folder: Path) -> str:
    runs = sorted(path.parent.name for path in folder.glob("runs/*/record.json"))
    if runs:
        return f"is a study: name one of its runs, for instance {folder / 'runs' / runs[0]}"
    return "holds no record.json of a run, no adapter_config.json and no config.json: there is nothing to evaluate"


def _model(asked: Asked) -> Evaluated:
    """A base alone, in the precision that was asked for."""
    cell, device = _cell({"base": {"model": asked.target}, **_task(asked)}, asked)
    return Evaluated(cell, device)


def _adapter(folder: Path, asked: Asked) -> Evaluated:
    """A foreign adapter. It never chooses its base by itself: a folder from elsewhere must not say what is loaded."""
    from loracle.base.errors import SpecError
    from loracle.store.files import read_json

    if asked["--base"] is None:
        named = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        hint = f" (its adapter_config.json says {named})" if named else ""
        raise SpecError(f"an adapter alone needs its base: --base MODEL{hint}", asked.target)
    cell, device = _cell(_task(asked), asked)
    return Evaluated(cell, device, adapter=folder)


def _task(asked: Asked) -> dict[str, Any]:
    """The section of a model that brings no task: the library's, or all rows of the data."""
    from loracle.base.errors import SpecError

    if asked.harness is not None:
        return {"task": {"data": "none"}}  # the harness brings its own
    own = any(item.startswith(("task=", "task.", "dataset=", "data_path=")) for item in asked.overrides)
    if asked["--task"] is None and asked["--data"] is None and not own:
        raise SpecError("name what to evaluate on: --task NAME, --data FILE or --lm-eval TASKS")
    return {"task": _rows(asked)}


def _rows(asked: Asked) -> dict[str, Any]:
    """Data of one's own is evaluated whole: its rows are the evaluation rows."""
    data = asked["--data"]
    found = {} if data is None else {"data": data, "eval": data}
    return found if asked["--eval-samples"] is None else {**found, "eval_samples": asked["--eval-samples"]}


def _run(folder: Path, record: dict[str, Any], asked: Asked) -> Evaluated:
    """A run of loracle: base, precision, adapter and task as its record says, but for what was asked for otherwise."""
    from loracle.base.errors import SpecError
    from loracle.spec.factors import cell_from_config

    config = cell_from_config(record["config"]).model_dump(mode="json")
    full = config["adapter"]["method"] == "full"
    adapter = folder / "adapter"
    if not (adapter / ("config.json" if full else "adapter_config.json")).is_file():
        ended = ": ".join(str(part) for part in (record.get("status"), record.get("reason")) if part)
        raise SpecError(f"this run has no adapter ({ended})", asked.target)
    labels = tuple((record.get("audit") or {}).get("labels") or ())
    raw = {key: config[key] for key in ("base", "precision", "double_quant", "block_size", "compute_dtype")}
    raw["task"] = _task_of_run(config["task"], labels, asked)
    if asked["--precision"] is not None:
        raw |= {"double_quant": True, "block_size": raw["block_size"] or 64}
    vocabulary = None
    if full:  # its folder is a whole model, whose weights were trained and saved as they computed
        vocabulary = raw["base"]["model"]
        raw["base"] = {"model": str(adapter), "add_tokens": raw["base"].get("add_tokens", ())}
        raw["precision"] = "fp32"
    cell, device = _cell(raw, asked)
    if asked.harness is not None and cell.task.classifies:
        raise SpecError("the harness needs a language model, this run has a classification head", "--lm-eval")
    if cell.task.classifies != (config["task"].get("type") == "classification"):
        head = "a language model" if cell.task.classifies else "a classification head"
        raise SpecError(f"this run has {head}, which cannot do a task of type {cell.task.type}", "--task")
    own = None if asked.harness else _own_rows(folder.parent.parent, record, cell, config["task"])
    there = (record["config"]["base"] or {}).get("fingerprint") if asked["--base"] is not None else None
    return Evaluated(cell, device, None if full else adapter, vocabulary, own, there)


def _task_of_run(task: dict[str, Any], labels: tuple[str, ...], asked: Asked) -> dict[str, Any]:
    """The run's task; with ``--data`` other rows that read as its own do, with ``--task`` another task."""
    known = {"labels": list(labels)} if labels else {}
    if asked["--task"] is not None:
        return _rows(asked) | (known if task.get("type") == "classification" else {})
    if asked["--data"] is None:
        return {**task, **known}
    other = asked["--format"] not in (None, task["format"])
    dropped = {*OF_ITS_ROWS, *(OF_ITS_FORMAT if other else ())}
    return {key: value for key, value in task.items() if key not in dropped} | known | _rows(asked)


def _own_rows(study: Path, record: dict[str, Any], cell: Cell, task: dict[str, Any]) -> Path | None:
    """The run's tokenized rows in its study's folder, where it is evaluated on just its own task."""
    from loracle.spec.factors import cell_from_config
    from loracle.store.files import read_json

    recorded = cell_from_config({**record["config"], "task": task}).task.model_dump(mode="json")
    now = cell.task.model_dump(mode="json")
    if {k: v for k, v in recorded.items() if k not in (*OF_ANSWERS, "labels")} != {
        k: v for k, v in now.items() if k not in (*OF_ANSWERS, "labels")
    }:
        return None
    if not (study / "plan.json").is_file():
        return None
    cells = {entry["id"]: entry.get("data") for entry in read_json(study / "plan.json").get("cells", ())}
    key = cells.get(record["cell"])
    return study / "data" / key if key else None


def _cell(raw: dict[str, Any], asked: Asked) -> tuple[Cell, str]:
    """(the cell to load, the device to load it on)."""
    from loracle.spec import parse_study
    from loracle.study.cells import planned_cells

    whole = tree(asked.settings)
    for key, value in raw.items():
        whole[key] = {**value, **whole.get(key, {})} if isinstance(value, dict) else whole.get(key, value)
    study = parse_study({"name": "eval", **whole}, asked.overrides, folder=Path.cwd())
    return planned_cells(study)[0].cell, study.run.device
