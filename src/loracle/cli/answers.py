"""``eval`` of files that any system may have written: SQuAD predictions, AlpacaEval annotations. Loads no model, asks nobody."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

# The options that each task takes, all of them needed.
TAKES = {"squad": ("--data", "--predictions"), "alpaca_eval": ("--annotations",)}


def scored_files(task: str, given: Mapping[str, str | None]) -> tuple[Mapping[str, object], list[str]]:
    """(scores, lines to print) of the files that ``given`` names by option."""
    files = _files(task, given)
    scores, line = _squad(*files) if task == "squad" else _alpaca_eval(*files)
    return scores, [line]


def _files(task: str, given: Mapping[str, str | None]) -> list[Path]:
    """The files of the task's options, in its order; a wrong, missing or foreign option is a ``SpecError``."""
    from loracle.base.errors import SpecError
    from loracle.base.names import suggest

    if task not in TAKES:
        raise SpecError(f"'{task}' is not a task that can be scored from files, {suggest(task, TAKES)}", "--task")
    takes = TAKES[task]
    for name, file in given.items():
        if file is not None and name not in takes:
            raise SpecError(f"not for --task {task}, which takes {' and '.join(takes)}", name)
    files = [Path(file) for name in takes if (file := given[name]) is not None]
    if len(files) < len(takes):
        missing = " and ".join(name for name in takes if given[name] is None)
        raise SpecError(f"--task {task} needs {missing} too" if files else f"--task {task} needs {missing}")
    return files


def _squad(data: Path, predictions: Path) -> tuple[Mapping[str, object], str]:
    from loracle.tasks.squad import read_predictions, read_squad, score_predictions

    questions, answers = read_squad(data), read_predictions(predictions)
    scores = score_predictions(questions, answers)
    if scores["missing"]:
        print(f"warning: {scores['missing']:,} question(s) have no prediction and score 0", file=sys.stderr)
    if others := len(answers.keys() - questions.keys()):
        print(f"warning: {others:,} prediction(s) are for no question of {data} and are left out", file=sys.stderr)
    return scores, f"exact match {scores['exact_match']:.4f}%, F1 {scores['f1']:.4f}%, {scores['n']:,} questions"


def _alpaca_eval(annotations: Path) -> tuple[Mapping[str, object], str]:
    from loracle.tasks.alpaca_eval import read_preferences, win_rate

    scores = win_rate(read_preferences(annotations))
    error = scores["standard_error"]
    spread = scores.get("standard_error_reason", "") if error is None else f"standard error {error:.4f}%"
    return scores, f"win rate {scores['win_rate']:.4f}%, {spread}, {scores['n']:,} verdict(s)"
