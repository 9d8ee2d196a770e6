"""SQuAD v1.1: exact match and F1 of given answers, as the official evaluation script counts them. No torch.

Source: Rajpurkar et al. 2016 (arXiv:1606.05250) and its ``evaluate-v1.1.py``.
Not covered: making the answers, and SQuAD v2.0 (questions that have no answer).
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from loracle.base.errors import DataError

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}


class Question(NamedTuple):
    """One question, the paragraph that holds its answer, and all reference answers (at least one)."""

    context: str
    question: str
    answers: tuple[str, ...]


class SquadScores(TypedDict):
    """``exact_match`` and ``f1`` in percent over all ``n`` questions; ``missing`` of them have no prediction."""

    exact_match: float
    f1: float
    n: int
    missing: int


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation, without the words a, an, the, and with single spaces, in that order."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the prediction equals any of the answers once both are normalised."""
    return any(normalise(prediction) == normalise(answer) for answer in answers)


def f1(prediction: str, answers: Sequence[str]) -> float:
    """F1 of the normalised words, between 0 and 1: of the answer that fits best.

    Two texts without words get 0, as in the official script, although they are an exact match.
    """
    return max(_word_f1(normalise(prediction).split(), normalise(answer).split()) for answer in answers)


def _word_f1(predicted: list[str], wanted: list[str]) -> float:
    same = (Counter(predicted) & Counter(wanted)).total()
    if same == 0:
        return 0.0
    precision, recall = same / len(predicted), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


def score_predictions(questions: Mapping[str, Question], predictions: Mapping[str, str]) -> SquadScores:
    """Mean exact match and F1 over ``questions`` in percent; one without a prediction scores 0.

    Predictions for other questions are ignored. Raises ``DataError`` when there is no question.
    """
    if not questions:
        raise DataError("there are no questions to score")
    answered = [(predictions[id], question.answers) for id, question in questions.items() if id in predictions]
    n = len(questions)
    return {
        "exact_match": 100.0 * sum(exact_match(text, answers) for text, answers in answered) / n,
        "f1": 100.0 * sum(f1(text, answers) for text, answers in answered) / n,
        "n": n,
        "missing": n - len(answered),
    }


def read_squad(path: Path) -> dict[str, Question]:
    """The questions of a SQuAD v1.1 file by id, in its order; ``DataError`` names the file and the dotted path."""
    found = _load(path)
    if not isinstance(found, dict) or not isinstance(found.get("data"), list):
        raise DataError('not a SQuAD file: an object with a list under "data" is needed', str(path))
    questions = {
        row["id"]: Question(row["context"], row["question"], tuple(answer["text"] for answer in row["answers"]))
        for row in squad_rows(found, path)
    }
    if not questions:
        raise DataError("holds no questions", str(path))
    return questions


def is_squad(value: Any) -> bool:
    """Whether parsed JSON is SQuAD's nesting of articles and paragraphs."""
    articles = value.get("data") if isinstance(value, dict) else None
    return isinstance(articles, list) and any(isinstance(a, dict) and "paragraphs" in a for a in articles)


def squad_rows(value: Any, path: Path) -> Iterator[dict[str, Any]]:
    """One row a question, ``{id, context, question, answers: [{text, …}]}``, of parsed SQuAD v1.1 JSON in its order."""
    seen: set[str] = set()
    for where, context, entry in _entries(value, path):
        id = _get(entry, "id", str, where)
        if id in seen:
            raise DataError(f"'{id}' stands twice in the file", f"{where}.id")
        seen.add(id)
        answers = _get(entry, "answers", list, where)
        if not answers:
            raise DataError(
                "holds no answer: SQuAD v1.1 has one for every question, v2.0 is not read", f"{where}.answers"
            )
        for i, answer in enumerate(answers):
            _get(answer, "text", str, f"{where}.answers.{i}")
        yield {"id": id, "context": context, "question": _get(entry, "question", str, where), "answers": answers}


def _entries(value: Any, path: Path) -> Iterator[tuple[str, str, Any]]:
    """(where, context, entry) of every question; where is the file and the dotted path."""
    for i, article in enumerate(value["data"]):
        at_article = f"{path}: data.{i}"
        for j, paragraph in enumerate(_get(article, "paragraphs", list, at_article)):
            at_paragraph = f"{at_article}.paragraphs.{j}"
            context = _get(paragraph, "context", str, at_paragraph)
            for k, entry in enumerate(_get(paragraph, "qas", list, at_paragraph)):
                yield f"{at_paragraph}.qas.{k}", context, entry


def read_predictions(path: Path) -> dict[str, str]:
    """A JSON object, question id → answer as text."""
    found = _load(path, unique=True)
    if not isinstance(found, dict):
        raise DataError(f"an object of question id and answer is needed, this is {_kind(found)}", str(path))
    for id, text in found.items():
        if not isinstance(text, str):
            raise DataError(f"an answer must be a string, this is {_kind(text)}", f"{path}: {id}")
    return found


def _load(path: Path, unique: bool = False) -> Any:
    """The JSON of a file; ``unique``: a key that stands twice is an error, and not the last one's."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(made := dict(items)) < len(items):
            twice = next(key for key, times in Counter(key for key, _ in items).items() if times > 1)
            raise DataError("stands twice in the file", f"{path}: {twice}")
        return made

    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=pairs if unique else None)
    except FileNotFoundError:
        raise DataError("no such file", str(path)) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", str(path)) from None
    except UnicodeDecodeError:
        raise DataError("not UTF-8 text", str(path)) from None
    except json.JSONDecodeError as error:
        raise DataError(f"not valid JSON ({error.msg}, column {error.colno})", f"{path}:{error.lineno}") from None
    except (RecursionError, ValueError):  # ValueError: an integer of thousands of digits
        raise DataError("not JSON that can be read (nested too deeply, or a number too long)", str(path)) from None


def _get(value: Any, key: str, kind: type, where: str) -> Any:
    """``value[key]``, which must be of this kind."""
    if not isinstance(value, dict):
        raise DataError(f"an object is needed, this is {_kind(value)}", where)
    at = f"{where}.{key}"
    if key not in value:
        raise DataError("is missing", at)
    if not isinstance(value[key], kind):
        raise DataError(f"{_KINDS[kind]} is needed, this is {_kind(value[key])}", at)
    return value[key]


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "a number")
