"""Plain sentences with figures, and the entry of verdicts.json, of a judged comparison."""

from __future__ import annotations

import math

from loracle.verdict import entries, paired
from loracle.verdict.comparisons import Comparison, Judged
from loracle.verdict.evidence import Pairing, StudyEvidence
from loracle.verdict.sequential import next_look


def as_entry(found: StudyEvidence, judged: Judged) -> entries.Entry:
    comparison, claim, pairing = judged.comparison, judged.comparison.claim, judged.comparison.pairing
    return entries.entry(
        question=claim.question,
        scope=comparison.scope,
        claim=_fill(claim.words, comparison),
        verdict=judged.verdict,
        statement=statement(found, judged),
        difference=judged.difference,
        metric=claim.metric,
        estimate=judged.measured.estimate if judged.measured is not None else None,
        interval=judged.interval,
        margin=claim.margin,
        level=1.0 - judged.alpha,
        n=len(judged.seeds),
        look=judged.look.as_dict() if judged.look else None,
        needs=judged.needs.as_dict() if judged.needs else None,
        primary=judged.primary,
        adjusted=judged.adjusted,
        exploratory=judged.exploratory,
        arm=pairing.arm["id"],
        reference=pairing.reference["id"],
        confounds=comparison.guard.confounds,
        records=pairing.run_ids(found, judged.seeds),
    )


def statement(found: StudyEvidence, judged: Judged) -> str:
    """The answer in one sentence; what would decide it, what was lost, bundled or noted in sentences of their
    own.
    """
    comparison = judged.comparison
    parts = [headline(found, judged)]
    if judged.needs:
        parts.append(f"To decide: {judged.needs.text}.")
    parts += [text for text in (looks_text(judged),) if text]
    if comparison.pairing.lost:
        parts.append(lost_text(comparison.pairing))
    parts += [f"{text[0].upper()}{text[1:]}." for text in (comparison.guard.text,) if text]
    parts += [comparison.note] if comparison.note else []
    return " ".join(parts)


def headline(found: StudyEvidence, judged: Judged) -> str:
    """``nf4 costs +1.4% eval loss against bf16 at rank 8 (95% interval …, n = 3 seeds, margin 5%):
    supported.``
    """
    comparison, measured = judged.comparison, judged.measured
    if measured is None or not math.isfinite(measured.estimate):
        reason = judged.problem or "the reference shows no tuning gain, so there is no share of it"
        where = entries.where(comparison.scope, ("precision", "metric"))
        return f"{comparison.labels[0]} against {comparison.labels[1]}{where}: {reason}; {judged.verdict}."
    text = _fill(comparison.claim.headline, comparison, comparison.claim.show(measured.estimate))
    return f"{text} ({figures(found, judged)}): {_end(judged)}."


def figures(found: StudyEvidence, judged: Judged) -> str:
    claim, n = judged.comparison.claim, len(judged.seeds)
    if n < paired.MIN_SEEDS and claim.spread is None:
        interval = "no interval below three seeds"
    elif n < paired.MIN_SEEDS and claim.spread is not None:
        spread = paired.item_bootstrap(claim.spread(found, judged.comparison.pairing, judged.seeds))
        whose = "these two adapters" if n == 1 else f"these {n} pairs of adapters"
        interval = f"on {whose} only: {entries.bounds(spread, claim.show)} by resampling items"
    elif judged.interval is None:
        interval = "no bounded interval, as the reference's own gain is not shown to be above 0"
    else:
        holm = ", Holm-adjusted" if judged.adjusted else ""
        level = entries.level_text(1.0 - judged.alpha)
        alone = " over seeds alone" if claim.spread is None else ""
        interval = f"{level} interval {entries.bounds(judged.interval, claim.show)}{alone}{holm}"
    look = f", {judged.look.text}" if judged.look else ""
    return f"{interval}, {entries.seeds_text(n)}{look}, {claim.margin_text}"


def looks_text(judged: Judged) -> str:
    """What comes after an undecided look: the next planned one, or nothing."""
    if judged.look is None or judged.verdict != "undecided":
        return ""
    following = next_look(judged.look.of, judged.look.n)
    if following is None:
        return "That was the last planned look: the answer stands."
    return f"The next planned look is at {following} seeds (loracle run --decide)."


def lost_text(pairing: Pairing) -> str:
    """Which seeds are missing from a comparison, and why; a diverged run is part of the answer."""
    total = len(pairing.lost) + len(pairing.seeds)
    text = f"{len(pairing.lost)} of {total} seeds left no pair and are not in the figures: {'; '.join(pairing.lost)}."
    return f"{text} A run that diverges is itself a finding." if pairing.diverged else text


def _fill(template: str, comparison: Comparison, value: str = "") -> str:
    where = entries.where(comparison.scope, ("precision", "metric"))
    arm, reference = comparison.labels
    return template.format(arm=arm, reference=reference, where=where, value=value)


def _end(judged: Judged) -> str:
    if judged.verdict == "confounded":
        return "confounded, so no verdict"
    if judged.verdict == "supported" and judged.difference == "worse":
        return "supported; the difference is real, but within the margin"
    if judged.verdict == "supported" and judged.difference == "better":
        return "supported, and better than the reference"
    return str(judged.verdict)
