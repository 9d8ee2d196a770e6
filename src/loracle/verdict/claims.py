"""The written claims about quality: what is measured, the bound, the good direction, the words.

Defaults (DESIGN section 6): eval loss within 5% (as log ratio, so log 1.05), at least 90% of the tuning gain
kept, a task score within one absolute point. A claim's margin is a fraction of 1 in the study; ``bound`` is
in the unit of the estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from loracle.verdict import entries, evidence, paired
from loracle.verdict.evidence import Pairing, StudyEvidence
from loracle.verdict.gain import GainKept, gain_kept
from loracle.verdict.noninferiority import Direction, signed_bound
from loracle.verdict.paired import Array, Interval, Paired

LOSS_MARGIN = 0.05
GAIN_MARGIN = 0.90
SCORE_MARGIN = 0.01
SCORES = ("accuracy", "macro_f1", "label_accuracy", "f1", "exact_match")
"""Scores a claim may be about, the first one there being primary; ``macro_f1`` is no mean of items."""
OVER_SEEDS = ("macro_f1",)
LABELS = {"macro_f1": "macro F1", "f1": "F1"}


class Measured(Protocol):
    """What a paired mean and a share of the gain have in common."""

    @property
    def estimate(self) -> float: ...
    def interval(self, level: float = ...) -> Interval | None: ...
    def p_value(self, value: float) -> float | None: ...
    def contrast(self, value: float) -> Paired: ...


@dataclass(frozen=True)
class Claim:
    """``words`` and ``headline`` are templates over ``{arm}``, ``{reference}``, ``{where}`` and ``{value}``.

    ``spread`` gives ``[n_seeds, n_items]`` influences, for the item bootstrap below three seeds; None where the figure
    is no mean of items, so that the interval is over seeds alone.
    """

    question: str
    metric: str
    bound: float
    margin: float
    better: Direction
    no_effect: float
    measure: Callable[[StudyEvidence, Pairing, Sequence[int]], Measured]
    spread: Callable[[StudyEvidence, Pairing, Sequence[int]], Array] | None
    show: Callable[[float], str]
    words: str
    headline: str
    margin_text: str


def degradation(margin: float = LOSS_MARGIN) -> Claim:
    """Costs less than ``margin`` (0.05 = 5%) in eval loss: the bound on the log ratio is log(1 + margin)."""
    bound = math.log1p(signed_bound(margin, "lower"))
    return Claim(
        question="degradation",
        metric="eval_loss_log_ratio",
        bound=bound,
        margin=bound,
        better="lower",
        no_effect=0.0,
        measure=lambda f, p, s: paired.log_ratio(*evidence.losses(f, p, s)[:2]),
        spread=lambda f, p, s: paired.log_ratio_influence(*evidence.losses(f, p, s)[:2]),
        show=entries.percent,
        words=f"{{arm}} costs less than {100 * margin:.3g}% in eval loss against {{reference}}{{where}}",
        headline="{arm} costs {value} eval loss against {reference}{where}",
        margin_text=f"margin {100 * margin:.3g}%",
    )


def gain(margin: float = GAIN_MARGIN) -> Claim:
    """Keeps at least ``margin`` of the tuning gain, the gain being over the untrained base in 16 bits."""
    return Claim(
        question="gain_kept",
        metric="gain_kept",
        bound=margin,
        margin=margin,
        better="higher",
        no_effect=1.0,
        measure=_gain,
        spread=_gain_spread,
        show=entries.share,
        words=f"{{arm}} keeps at least {100 * margin:.3g}% of the tuning gain of {{reference}}{{where}}",
        headline="{arm} keeps {value} of the tuning gain of {reference}{where}",
        margin_text=f"margin {100 * margin:.3g}%",
    )


def task_score(name: str, margin: float = SCORE_MARGIN) -> Claim:
    """Loses less than ``margin`` (0.01 = one point) of a 0..1 score."""
    label = LABELS.get(name, name.replace("_", " "))
    whole = name in OVER_SEEDS
    amount = f"{100 * margin:.3g} point{'' if math.isclose(margin, 0.01) else 's'}"
    return Claim(
        question="task_metric",
        metric=name,
        bound=signed_bound(margin, "higher"),
        margin=margin,
        better="higher",
        no_effect=0.0,
        measure=lambda f, p, s: _seed_difference(f, p, s, name) if whole else _item_difference(f, p, s, name),
        spread=None if whole else lambda f, p, s: np.subtract(*evidence.task_scores(f, p, s, name)),
        show=entries.points,
        words=f"{{arm}} loses less than {amount} of {label} against {{reference}}{{where}}",
        headline=f"{{arm}} changes {label} by {{value}} points against {{reference}}{{where}}",
        margin_text=f"margin {amount}",
    )


def _item_difference(found: StudyEvidence, pairing: Pairing, seeds: Sequence[int], name: str) -> Paired:
    return paired.mean_difference(*evidence.task_scores(found, pairing, seeds, name))


def _seed_difference(found: StudyEvidence, pairing: Pairing, seeds: Sequence[int], name: str) -> Paired:
    arm, reference = evidence.run_metrics(found, pairing, seeds, name)
    try:
        return paired.seeds_only(arm - reference)
    except ValueError as error:
        raise ValueError(f"{LABELS.get(name, name)}: {error}") from None


def _gain(found: StudyEvidence, pairing: Pairing, seeds: Sequence[int]) -> GainKept:
    return gain_kept(*evidence.losses(found, pairing, seeds), _base_loss(found, pairing, seeds))


def _base_loss(found: StudyEvidence, pairing: Pairing, seeds: Sequence[int]) -> Array:
    """The untrained base's loss in the reference's (16-bit) precision, by seed, nats per token."""
    records = [found.runs[str(pairing.reference["id"])][s] for s in seeds]
    known = [(r.get("metrics") or {}).get("base_eval_loss") for r in records]
    if any(not isinstance(x, (int, float)) for x in known):
        raise ValueError("the untrained base's eval loss was not recorded")
    return np.asarray(known, float)


def _gain_spread(found: StudyEvidence, pairing: Pairing, seeds: Sequence[int]) -> Array:
    """First-order influences of the share of the gain, around the share itself."""
    arm, reference, tokens = evidence.losses(found, pairing, seeds)
    kept = gain_kept(arm, reference, tokens, _base_loss(found, pairing, seeds))
    if not math.isfinite(kept.estimate):
        raise ValueError("the reference shows no tuning gain, so there is no share of it")
    per_token = [x.sum(axis=1, keepdims=True) / tokens.sum() for x in (arm, reference)]
    residual = [x - rate * tokens for x, rate in zip((arm, reference), per_token, strict=True)]
    unit = tokens.mean() * kept.reference_gain
    return np.asarray(kept.estimate + (kept.estimate * residual[1] - residual[0]) / unit, float)
