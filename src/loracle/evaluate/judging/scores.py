"""From verdicts to figures: win rate, mean ratings, tokens and cost; and AlpacaEval's own file of annotations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from loracle.evaluate.judging.items import ASPECTS, Answers, Identity, key
from loracle.tasks.alpaca_eval import win_rate

Lines = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Prices:
    """Of a million tokens, in any currency; null where not known."""

    prompt: float | None = None
    completion: float | None = None


def lines_of(answers: Answers, judge: Identity, lines: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The judge's verdicts on these answers, in the items' order; other lines of the store are left aside."""
    found = (lines.get(key(item, judge)) for item in answers.items)
    return [line for line in found if line is not None]


def scores(answers: Answers, judge: Identity, lines: Lines, prices: Prices) -> dict[str, Any]:
    """The figures of one judge on one model (docs/evaluation.md)."""
    paired = answers.reference_name is not None
    values = [line["preference" if paired else "ratings"] for line in lines]
    given = [value for value in values if value is not None]
    return {
        **(_win_rate(given) if paired else {aspect: _mean([v[aspect] for v in given]) for aspect in ASPECTS}),
        "nulls": len(values) - len(given),
        "unfinished": len(answers.items) - len(lines),
        "judge": dict(judge),
        **bill(lines, prices, judge["kind"]),
    }


def _win_rate(preferences: Sequence[float]) -> dict[str, Any]:
    if not preferences:
        return {"win_rate": None, "standard_error": None, "n": 0, "reason": "there is no verdict to count"}
    return dict(win_rate(preferences))


def _mean(ratings: Sequence[float]) -> dict[str, Any]:
    """Mean and s/√n with the sample deviation s (n − 1)."""
    n = len(ratings)
    if n < 2:
        reason = "one rating alone has no standard error" if n else "there is no rating to take a mean of"
        return {"mean": ratings[0] if n else None, "standard_error": None, "n": n, "reason": reason}
    return {"mean": fmean(ratings), "standard_error": stdev(ratings) / math.sqrt(n), "n": n}


def bill(lines: Lines, prices: Prices, kind: str) -> dict[str, Any]:
    """``usage`` (tokens of all replies to these items, as the endpoint counted them) and ``cost``, null with its reason."""
    if kind != "endpoint":
        return {"usage": None, "cost": None, "cost_reason": "a local model has no price"}
    asked = [line for line in lines if line["attempts"]]
    counted = [line["usage"] for line in asked if line["usage"] is not None]
    usage = {name: sum(one[name] for one in counted) for name in ("prompt_tokens", "completion_tokens")}
    usage["requests"] = sum(line["attempts"] for line in asked)
    if prices.prompt is None or prices.completion is None:
        return {"usage": usage, "cost": None, "cost_reason": "no prices were given (--price-in, --price-out)"}
    if unknown := len(asked) - len(counted):
        reason = f"the endpoint reported no token counts for {unknown:,} of {len(asked):,} verdict(s)"
        return {"usage": usage, "cost": None, "cost_reason": reason}
    cost = (usage["prompt_tokens"] * prices.prompt + usage["completion_tokens"] * prices.completion) / 1e6
    return {"usage": usage, "cost": cost}


def annotation_rows(answers: Answers, judge: Identity, lines: Lines) -> list[dict[str, Any]]:
    """AlpacaEval's file: model in ``output_2``, reference in ``output_1``, whatever the order was that the judge saw."""
    preference = {line["item"]: line["preference"] for line in lines}
    return [
        {
            "instruction": item.instruction,
            "output_1": item.reference,
            "generator_1": answers.reference_name,
            "output_2": item.answer,
            "generator_2": answers.name,
            "annotator": annotator(judge),
            "preference": preference[item.item],
        }
        for item in answers.items
        if item.item in preference
    ]


def annotator(judge: Identity) -> str:
    """The judge's name in AlpacaEval's files."""
    return f"loracle-{judge['kind']}-{judge['model']}"
