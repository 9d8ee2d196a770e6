"""r*: the smallest rank that is good enough, by testing downward from the largest and stopping (closed
testing).

Each step is a test at full level: a smaller rank is looked at only after all larger ones were supported, so
the probability of any false "supported" along the way stays at that of one test (Marcus, Peritz & Gabriel
1976, fixed-sequence form). The caller brings the verdicts: against 16-bit at the same rank, or against the
largest rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from loracle.verdict.noninferiority import REJECTED, SUPPORTED, UNDECIDED, Verdict


@dataclass(frozen=True)
class RankThreshold:
    """``rank`` is the smallest supported one (None: not even the largest), ``stopped_at`` the first that was
    not.
    """

    verdict: Verdict
    rank: int | None
    stopped_at: int | None
    exact: bool
    text: str


def rank_threshold(verdicts: Mapping[int, Verdict], largest_is_reference: bool = False) -> RankThreshold:
    """Closed test downward over ``{rank: verdict}``.

    With ``largest_is_reference`` the largest rank is the reference and holds by definition (give it or leave
    it out of its own verdict: it is not read), and the claim is about the ranks below it.
    """
    ranks = sorted(verdicts, reverse=True)
    if not ranks:
        raise ValueError("no rank was tested")
    smallest = None
    if largest_is_reference:
        smallest, ranks = ranks[0], ranks[1:]
    first = verdicts[ranks[0]] if ranks else UNDECIDED
    for rank in ranks:
        if verdicts[rank] != SUPPORTED:
            return _stopped(first, smallest, rank, verdicts[rank])
        smallest = rank
    if largest_is_reference and not ranks:
        return RankThreshold(UNDECIDED, smallest, None, False, "only one rank was tested")
    return RankThreshold(SUPPORTED, smallest, None, False, f"r* ≤ {smallest} (smallest tested)")


def _stopped(first: Verdict, smallest: int | None, rank: int, state: Verdict) -> RankThreshold:
    if smallest is None:
        words = "rejected" if state == REJECTED else "undecided"
        return RankThreshold(first, None, rank, False, f"no r* among the tested ranks ({rank}, the largest, {words})")
    if state == REJECTED:
        return RankThreshold(first, smallest, rank, True, f"r* = {smallest}")
    return RankThreshold(first, smallest, rank, False, f"r* ≤ {smallest} ({rank} undecided)")
