"""The YAML at the head of a card, written by huggingface_hub's own classes, so that no text of a study can break it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from loracle.report.cards.licences import Licence, combined
from loracle.report.cards.results import HUB_METRICS, results, spread
from loracle.report.cards.subject import Subject, base_id, data_id, of_task
from loracle.report.evidence import Record, StudyData
from loracle.report.inert import plain
from loracle.spec.study import FOUR_BIT

if TYPE_CHECKING:
    from huggingface_hub import CardData, DatasetCardData, EvalResult, ModelCardData

SEVERAL = "see-the-section-licences"
METRICS_OF_THE_HUB = {"perplexity", "accuracy", "f1", "exact_match"}
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def header(card: CardData) -> str:
    """The block between ``---`` lines. CardData sorts nothing and knows no clock: the same data, the same bytes."""
    return f"---\n{card.to_yaml()}\n---\n"


def model_card_data(data: StudyData, subjects: Sequence[Subject], licences: Sequence[Licence]) -> ModelCardData:
    """What the Hub reads of MODEL_CARD.md. Only what the records hold: what is not known is left out."""
    from huggingface_hub import ModelCardData

    measured = [s for s in subjects if s.run is not None]
    told = measured or subjects
    found = [r for s in measured for r in _eval_results(data, s)]
    licence = combined(licences)
    full = {s.method for s in told} == {"full"}
    return ModelCardData(
        base_model=one_or_all(base_id(s.section("base")) for s in told),
        base_model_relation="finetune" if full else "adapter",
        library_name="transformers" if full else "peft",
        license=licence,
        license_name=SEVERAL if licence == "other" else None,
        datasets=unique(data_id(s.section("task")) for s in told) or None,
        language=languages(s.section("task") for s in told),
        pipeline_tag=one_or_none(_pipeline(s) for s in told),
        tags=_tags(told),
        metrics=unique(r.metric_type for r in found if r.metric_type in METRICS_OF_THE_HUB) or None,
        model_name=plain(data.name) if found else None,
        eval_results=found or None,
    )


def _eval_results(data: StudyData, subject: Subject) -> list[EvalResult]:
    """Means over seeds; ``metric_args`` has what they rest on, and the value of the adapter that the card hands out."""
    from huggingface_hub import EvalResult

    assert subject.cell is not None
    assert subject.run is not None
    task = subject.section("task")
    about = {"cell": subject.cell.id, "adapter_of_run": subject.run.id, "base": subject.base}
    return [
        EvalResult(
            task_type=_pipeline(subject),
            dataset_type=data_id(task) or subject.task,
            dataset_name=subject.task,
            dataset_config=_text(task, "subset"),
            dataset_split=_text(task, "eval_split"),
            metric_type=HUB_METRICS[result.name],
            metric_name=f"{result.label}; mean over seeds of {plain(subject.cell.label)} on {subject.base}",
            metric_value=result.mean,
            metric_args={
                **about, **spread(result), "items": result.items, "this_adapter": result.own, "untrained_base": result.before
            },
        )
        for result in results(data, subject)
    ]  # fmt: skip


def dataset_card_data(
    name: str, tasks: Sequence[Record], licences: Sequence[Licence], rows: int | None
) -> DatasetCardData:
    """What the Hub reads of DATA_CARD.md; ``rows`` are those of training and evaluation."""
    from huggingface_hub import DatasetCardData

    ids = unique(one.hub for one in licences)
    return DatasetCardData(
        language=languages(tasks),
        license=ids[0] if len(ids) == 1 else ids,
        pretty_name=plain(name),
        size_categories=size_category(rows),
        source_datasets=unique(f"extended|{found}" for task in tasks if (found := data_id(task))) or None,
        task_categories=unique(pipeline_tag(task) for task in tasks),
        tags=["loracle"],
    )


def size_category(rows: int | None) -> str | None:
    """The Hub's word for how many rows there are."""
    if rows is None:
        return None
    return next((word for bound, word in _SIZES if rows < bound), "n>1M")


def languages(tasks: Iterable[Record]) -> str | list[str] | None:
    """ISO 639 codes that the tasks name; others are left out."""
    known = [str(code) for task in tasks for code in of_task(task, "language") or ()]
    return one_or_all(code for code in known if re.fullmatch(r"[a-z]{2,3}", code))


def pipeline_tag(task: Record) -> str:
    """What the trained model does, in the Hub's words."""
    return "text-classification" if task.get("type") == "classification" else "text-generation"


def _pipeline(subject: Subject) -> str:
    return pipeline_tag(subject.section("task"))


def _tags(subjects: Sequence[Subject]) -> list[str]:
    """Method, precision and ``qlora`` for a LoRA over a 4-bit base."""
    out = ["loracle"]
    for subject in subjects:
        precision = subject.config.get("precision")
        names = list(precision.values()) if isinstance(precision, dict) else [str(precision)]
        out.append(subject.method)
        out += ["qlora"] if subject.method == "lora" and FOUR_BIT & set(names) else []
        out += [plain(name) for name in names]
    return unique(out)


def _text(task: Record, key: str) -> str | None:
    value = of_task(task, key)
    return None if value is None else plain(value)


def unique(found: Iterable[str | None]) -> list[str]:
    """Each once, in order, without None."""
    return list(dict.fromkeys(one for one in found if one is not None))


def one_or_all(found: Iterable[str | None]) -> Any:
    """A single value bare, several as a list, none as None: as the Hub's own cards have it."""
    known = unique(found)
    return known[0] if len(known) == 1 else known or None


def one_or_none(found: Iterable[str | None]) -> str | None:
    """The value that all share, or None."""
    known = unique(found)
    return known[0] if len(known) == 1 else None
