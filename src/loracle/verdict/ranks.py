"""The two readings of r*: does quantization cost anything, and is the rank enough.

``rank_threshold``: each rank against 16-bit at the same rank. ``rank_enough``: each rank against the largest
one tested in the same precision (the best one would be a biased reference). Every step at full level: closed
testing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loracle.verdict import claims, entries, statements
from loracle.verdict.comparisons import ALPHA, Judged, judge_family
from loracle.verdict.confounds import RANK_AND_SCALE
from loracle.verdict.evidence import Record, StudyEvidence
from loracle.verdict.noninferiority import UNDECIDED, Verdict
from loracle.verdict.rank_threshold import RankThreshold, rank_threshold
from loracle.verdict.scope import arms, compare, label, rank_groups, rank_of, scope_of
from loracle.verdict.sequential import look_alpha


def threshold_entries(
    found: StudyEvidence, margin: float, looks: Sequence[int] | None, bundle: Any
) -> list[entries.Entry]:
    """One entry for each quantized precision: r* against 16-bit at the same rank."""
    result = []
    for group in rank_groups(found, arms(found)):
        claim = claims.degradation(margin)
        family = [compare(found, claim, c, found.cells[str(c["reference"])], "precision", bundle) for c in _down(group)]
        judged = judge_family(found, family, looks, adjust=False)
        by_rank = dict(zip(sorted(group, reverse=True), judged, strict=True))
        words = f"from some tested rank up, {label(_largest(group))} costs less than {100 * margin:.3g}% in eval loss"
        words += f" against {family[0].labels[1]} at the same rank"
        result.append(_entry(found, "rank_threshold", group, by_rank, words, looks))
    return result


def enough_entries(
    found: StudyEvidence, margin: float, looks: Sequence[int] | None, bundle: Any
) -> list[entries.Entry]:
    """One entry for each precision: r* against the largest rank tested."""
    result = []
    for group in rank_groups(found, list(found.cells.values())):
        top, claim = _largest(group), claims.degradation(margin)
        family = [compare(found, claim, c, top, "rank", bundle) for c in _down(group)[1:]]
        judged = judge_family(found, family, looks, adjust=False)
        by_rank = dict(zip(sorted(group, reverse=True)[1:], judged, strict=True))
        words = f"a rank below {max(group)} costs less than {100 * margin:.3g}% in eval loss against rank {max(group)}"
        result.append(_entry(found, "rank_enough", group, by_rank, f"{words} ({label(top)})", looks))
    return result


def _entry(
    found: StudyEvidence,
    question: str,
    group: Mapping[int, Record],
    judged: Mapping[int, Judged],
    claim: str,
    looks: Sequence[int] | None,
) -> entries.Entry:
    against_top = question == "rank_enough"
    states: dict[int, Verdict] = dict.fromkeys(group, UNDECIDED)
    states |= {r: UNDECIDED if j.verdict == "confounded" else j.verdict for r, j in judged.items()}
    answer = rank_threshold(states, largest_is_reference=against_top)
    confounded = any(j.verdict == "confounded" for j in judged.values())
    shown = [judged[r] for r in sorted(judged, reverse=True) if answer.stopped_at is None or r >= answer.stopped_at]
    stop = judged.get(answer.stopped_at) if answer.stopped_at is not None else None
    arm = group[answer.rank] if answer.rank is not None else _largest(group)
    scope = {k: v for k, v in scope_of(found, arm).items() if k != "rank"}
    alpha = look_alpha(looks) if looks else ALPHA
    return entries.entry(
        question=question,
        scope=scope,
        claim=claim,
        verdict="confounded" if confounded else answer.verdict,
        statement=_statement(found, question, group, answer, shown, confounded),
        metric="rank",
        estimate=None if confounded else answer.rank,
        interval=(answer.rank, answer.rank) if answer.exact and not confounded else None,
        margin=next((j.comparison.claim.margin for j in judged.values()), None),
        level=1.0 - alpha,
        n=min((len(j.seeds) for j in shown), default=0),
        look=_look(shown),
        needs=stop.needs.as_dict() if stop is not None and stop.needs else None,
        arm=arm["id"],
        reference=_largest(group)["id"] if against_top else arm.get("reference"),
        confounds=tuple(dict.fromkeys(x for j in judged.values() for x in j.comparison.guard.confounds)),
        records=tuple(dict.fromkeys(r for j in shown for r in j.comparison.pairing.run_ids(found, j.seeds))),
    )


def _statement(
    found: StudyEvidence,
    question: str,
    group: Mapping[int, Record],
    answer: RankThreshold,
    shown: Sequence[Judged],
    confounded: bool,
) -> str:
    name = label(_largest(group))
    reading = (
        f"against rank {max(group)}, the largest tested"
        if question == "rank_enough"
        else "against 16-bit at the same rank"
    )
    scope = scope_of(found, _largest(group))
    place = entries.where(scope, ("precision", "rank"))
    if confounded:
        other = [x for j in shown for x in j.comparison.guard.confounds if x != RANK_AND_SCALE]
        parts = [f"{name}{place}, {reading}: confounded by {', '.join(dict.fromkeys(other))}, so no r*."]
    else:
        parts = [f"{name}{place}, {reading}: {answer.text}."]
    parts += [_step(found, j) for j in shown]
    if question == "rank_enough" and any(RANK_AND_SCALE in j.comparison.guard.confounds for j in shown):
        parts.append("Rank and scale together: alpha is fixed, so alpha/rank is swept too.")
    if answer.stopped_at is not None and answer.stopped_at > min(group):
        parts.append(f"Ranks below {answer.stopped_at} were not tested: the downward test stops there.")
    parts += [f"To decide: {j.needs.text}." for j in shown[-1:] if j.needs and not confounded]
    parts += [text for j in shown[-1:] if not confounded and (text := statements.looks_text(j))]
    parts += [statements.lost_text(j.comparison.pairing) for j in shown if j.comparison.pairing.lost]
    return " ".join(dict.fromkeys(parts))


def _step(found: StudyEvidence, judged: Judged) -> str:
    rank = rank_of(judged.comparison.pairing.arm)
    if judged.measured is None:
        return f"Rank {rank}: {judged.problem}."
    value = entries.percent(judged.measured.estimate)
    return f"Rank {rank}: {value} ({statements.figures(found, judged)}), {judged.verdict}."


def _look(shown: Sequence[Judged]) -> dict[str, Any] | None:
    """The latest look that the downward test rests on."""
    looks = [j.look for j in shown if j.look is not None]
    return max(looks, key=lambda look: look.n).as_dict() if looks else None


def _down(group: Mapping[int, Record]) -> list[Record]:
    return [group[r] for r in sorted(group, reverse=True)]


def _largest(group: Mapping[int, Record]) -> Record:
    return group[max(group)]
