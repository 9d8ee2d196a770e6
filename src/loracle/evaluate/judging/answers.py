"""The answers to judge: files in AlpacaEval's format, or the predictions of a run's folder, beside a reference's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loracle.base.errors import DataError
from loracle.evaluate.judging.items import Answers, Item
from loracle.tasks.readers import read_table

PREDICTIONS = "predictions.parquet"
_KNOWN_BY = 40  # characters of an instruction by which it is found in a prompt


def read_answers(target: Path, reference: Path | None) -> Answers:
    """The items of ``target``, a file or a run's folder: pairs where there is a ``reference`` file, else answers alone.

    Raises ``DataError`` with the file and row of what cannot be.
    """
    if target.is_dir():
        rows = _generated(target)
        return _rated_run(target, rows) if reference is None else _paired_run(target, rows, reference)
    rows = read_table(target).rows
    name = _generator(rows, target)
    answers = [(_text(r, "instruction", target, i), _text(r, "output", target, i)) for i, r in enumerate(rows)]
    if reference is None:
        return Answers(name, [Item(i, *answer) for i, answer in enumerate(answers)])
    return _paired(name, answers, target, reference)


def _paired(name: str, answers: Sequence[tuple[str, str]], target: Path, reference: Path) -> Answers:
    """Pairs of two files, row by row where both have the same instructions in the same order, else by instruction."""
    expected, reference_name = _reference(reference)
    if [instruction for instruction, _ in answers] == [instruction for instruction, _ in expected]:
        numbered = list(enumerate(answers))
    else:
        _require_single([i for i, _ in expected], reference)
        _require_single([i for i, _ in answers], target)
        row_of = {instruction: row for row, (instruction, _) in enumerate(expected)}
        numbered = sorted((row_of[answer[0]], answer) for answer in answers if answer[0] in row_of)
    if not numbered:
        raise DataError(f"no instruction of this file stands in {reference}", str(target))
    notes = []
    if lost := len(answers) - len(numbered):
        notes.append(f"{lost:,} answer(s) are to no instruction of {reference} and are left out")
    if open_ := len(expected) - len(numbered):
        notes.append(f"{open_:,} instruction(s) of {reference} have no answer and are left out")
    items = [Item(row, instruction, answer, expected[row][1]) for row, (instruction, answer) in numbered]
    return Answers(name, items, reference_name, notes)


def _paired_run(folder: Path, rows: Sequence[dict[str, Any]], reference: Path) -> Answers:
    """Pairs of a run whose evaluation set was the reference file: ``item`` is the row there."""
    expected, reference_name = _reference(reference)
    items = []
    for row in rows:
        number, prompt = int(row["item"]), " ".join(str(row["prompt"]).split())
        instruction = expected[number][0] if 0 <= number < len(expected) else None
        if instruction is None or not _stands_in(" ".join(instruction.split()), prompt):
            raise DataError(
                f"item {number}'s prompt does not hold the instruction of row {number} of {reference}: "
                "the run was evaluated on other data",
                str(folder / PREDICTIONS),
            )
        items.append(Item(number, instruction, str(row["prediction"]), expected[number][1]))
    notes = [f"{len(expected) - len(items):,} instruction(s) of {reference} have no answer and are left out"]
    return Answers(_name(folder), items, reference_name, notes if len(items) < len(expected) else [])


def _rated_run(folder: Path, rows: Sequence[dict[str, Any]]) -> Answers:
    """Answers alone: the request is the prompt as the model saw it."""
    return Answers(_name(folder), [Item(int(r["item"]), str(r["prompt"]), str(r["prediction"])) for r in rows])


def _generated(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's predictions that hold generated text."""
    path = folder / PREDICTIONS
    if not path.is_file():
        raise DataError(f"not a run's folder: no {PREDICTIONS}", str(folder))
    table = read_table(path)
    if missing := [name for name in ("item", "prompt", "prediction") if name not in table.columns]:
        raise DataError(f"has no column '{missing[0]}': this run generated no answers", str(path))
    rows = [row for row in table.rows if row["prediction"] is not None and row["prompt"] is not None]
    if not rows:
        raise DataError("no item has an answer: this run generated none (task.generate_samples)", str(path))
    _require_single([str(row["item"]) for row in rows], path)
    return rows


def _reference(path: Path) -> tuple[list[tuple[str, str]], str]:
    rows = read_table(path).rows
    pairs = [(_text(r, "instruction", path, i), _text(r, "output", path, i)) for i, r in enumerate(rows)]
    return pairs, _generator(rows, path)


def _generator(rows: Sequence[dict[str, Any]], path: Path) -> str:
    """The one model whose answers these are; the file's name where it does not say."""
    names = sorted({str(row["generator"]) for row in rows if row.get("generator") is not None})
    if len(names) > 1:
        raise DataError(f"holds answers of {len(names)} models ({', '.join(names[:3])}): one is needed", str(path))
    return names[0] if names else path.stem


def _text(row: dict[str, Any], name: str, path: Path, index: int) -> str:
    """A row's text; half of a surrogate pair, which no file could hold, becomes ``?``."""
    value = row.get(name)
    if not isinstance(value, str):
        what = "is missing" if value is None else "is not a text"
        raise DataError(what, f"{path}: {index}.{name}")
    return value.encode("utf-8", "replace").decode()


def _require_single(texts: Sequence[str], path: Path) -> None:
    seen: set[str] = set()
    for text in texts:
        if text in seen:
            raise DataError(f"'{' '.join(text.split())[:40]}' stands twice, so rows cannot be told apart", str(path))
        seen.add(text)


def _stands_in(instruction: str, prompt: str) -> bool:
    """Whether the prompt holds the instruction, or one end of it where the prompt was cut."""
    return instruction[:_KNOWN_BY] in prompt or instruction[-_KNOWN_BY:] in prompt


def _name(folder: Path) -> str:
    return folder.resolve().name
