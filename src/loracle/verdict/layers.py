"""Layer variants: adapters that differ in their targets, at equal rank or at equal trainable parameters.

At equal rank variants differ in size, too, and a better one may only be the larger one. At equal parameters they differ in
where the parameters sit. Which of the two a group is follows from the sizes in the plan, whoever chose the ranks.

"Best" is by evaluation loss within a group, all pairs compared at once (Bonferroni), so that picking the lowest biases nothing:
*best* if shown better than every other, *not best* if some other is shown better, else *may be best*. Not covered: a verdict;
no claim was written down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from loracle.spec.study import EQUAL_SIZE
from loracle.verdict import claims
from loracle.verdict.claims import Measured
from loracle.verdict.comparisons import ALPHA
from loracle.verdict.confounds import PLACEMENT, differences, flatten, has_targets, parameters_apart
from loracle.verdict.evidence import Pairing, Record, StudyEvidence, pair
from loracle.verdict.scope import adapter_size, check, method_of, rank_of

EQUAL_RANK, EQUAL_PARAMETERS = "equal rank", "equal parameters"
BEST, MAYBE, NOT_BEST = "best", "may be best", "not best"
OWN = ("adapter.targets", "adapter.rank", "adapter.alpha")


@dataclass(frozen=True)
class Group:
    """Cells alike in all but their targets and what follows from them. ``apart``: how far their sizes are from the middle of the
    largest and the smallest, as a share; None where the plan has no sizes.
    """

    basis: str
    apart: float | None
    cells: tuple[Record, ...]


@dataclass(frozen=True)
class Variant:
    """One cell of a group: what quantization costs it on the same layers (log ratio of the evaluation loss; None for a 16-bit
    cell), whether it is the best of its group (None: not judged), and in what it differs from the others.
    """

    group: Group
    cell: Record
    drop: Measured | None
    n: int
    best: str | None
    differs_in: tuple[str, ...]


def variants(found: StudyEvidence) -> list[Variant]:
    """Every cell of every group, groups in the plan's order, those of equal rank first."""
    return [variant for group in groups(found) for variant in _judged(found, group)]


def groups(found: StudyEvidence) -> list[Group]:
    """Two cells or more each, of different targets; a cell may be in a group of either basis."""
    alike: dict[str, list[Record]] = {}
    for cell in found.cells.values():
        if rank_of(cell) is not None and has_targets(method_of(cell)):
            alike.setdefault(_all_else(cell), []).append(cell)
    return [group for cells in alike.values() for group in _of(cells)]


def _of(cells: Sequence[Record]) -> list[Group]:
    """Groups of equal rank that are no part of a larger one of equal size, then those of equal size."""
    sized = _of_equal_size(cells)
    return [
        *(one for one in _of_equal_rank(cells) if not any(all(c in more.cells for c in one.cells) for more in sized)),
        *sized,
    ]


def _all_else(cell: Record) -> str:
    flat = flatten(cell.get("config") or {})
    return repr(sorted((path, repr(value)) for path, value in flat.items() if path not in OWN))


def _of_equal_rank(cells: Sequence[Record]) -> list[Group]:
    by_rank: dict[Any, dict[str, Record]] = {}
    for cell in cells:
        by_rank.setdefault((rank_of(cell), _alpha(cell)), {}).setdefault(repr(cell.get("targets")), cell)
    return [_group(EQUAL_RANK, list(found.values())) for found in by_rank.values() if len(found) > 1]


def _of_equal_size(cells: Sequence[Record]) -> list[Group]:
    """Around each cell that is in none yet: of every other targets the cell that differs least, then the closest in size, as long
    as all are within 10% of one size.
    """
    result: list[Group] = []
    left = [cell for cell in cells if adapter_size(cell)]
    while left:
        chosen = [left[0]]
        for other in sorted(left, key=lambda cell: _unlike(cell, left[0])):
            new = all(other.get("targets") != cell.get("targets") for cell in chosen)
            if new and (parameters_apart(_sizes([*chosen, other])) or 0.0) <= EQUAL_SIZE:
                chosen.append(other)
        if len({rank_of(cell) for cell in chosen}) > 1:
            result.append(_group(EQUAL_PARAMETERS, [cell for cell in left if cell in chosen]))
        else:  # a group of equal rank already, or nothing beside it
            chosen = chosen[:1]
        left = [cell for cell in left if cell not in chosen]
    return result


def _unlike(cell: Record, first: Record) -> tuple[int, int]:
    found = differences(cell.get("config") or {}, first.get("config") or {})
    return len(found.changed) + len(found.derived), abs((adapter_size(cell) or 0) - (adapter_size(first) or 0))


def _group(basis: str, cells: Sequence[Record]) -> Group:
    return Group(basis, parameters_apart(_sizes(cells)), tuple(cells))


def _sizes(cells: Sequence[Record]) -> list[int | None]:
    return [adapter_size(cell) for cell in cells]


def _alpha(cell: Record) -> Any:
    return ((cell.get("config") or {}).get("adapter") or {}).get("alpha")


# -- which is best ----------------------------------------------------------------------------------------------------


def _judged(found: StudyEvidence, group: Group) -> list[Variant]:
    swept = "targets" if group.basis == EQUAL_RANK else PLACEMENT
    pairs = list(combinations(range(len(group.cells)), 2))
    level = 1.0 - ALPHA / len(pairs)
    better: list[set[int]] = [set() for _ in group.cells]  # shown better than the cell
    shown, unjudged = [0] * len(group.cells), set()
    differs: list[dict[str, None]] = [{} for _ in group.cells]
    for i, j in pairs:
        a, b = group.cells[i], group.cells[j]
        pairing = pair(found, a, b)
        guard = check(found, a, b, swept if rank_of(a) != rank_of(b) else "targets", pairing=pairing)
        for k in (i, j):
            differs[k] |= dict.fromkeys([swept, *_size_too(group), *guard.confounds])
        measured = None if guard.confounded else _loss(found, pairing)
        interval = measured.interval(level) if measured else None
        if interval is None:
            unjudged |= {i, j}
        elif interval[1] < 0 or interval[0] > 0:
            winner, loser = (i, j) if interval[1] < 0 else (j, i)
            better[loser].add(winner)
            shown[winner] += 1
    result = []
    for k, cell in enumerate(group.cells):
        best = NOT_BEST if better[k] else BEST if shown[k] == len(group.cells) - 1 else MAYBE
        drop, n = _drop(found, cell)
        judged = None if k in unjudged and not better[k] else best
        result.append(Variant(group, cell, drop, n, judged, tuple(differs[k])))
    return result


def _size_too(group: Group) -> list[str]:
    return ["number of parameters"] if group.basis == EQUAL_RANK and group.apart != 0 else []


def _drop(found: StudyEvidence, cell: Record) -> tuple[Measured | None, int]:
    """The change of evaluation loss against 16-bit on the same layers, where the two differ in the precision alone; paired seeds."""
    reference = found.cells.get(str(cell.get("reference")))
    if reference is None:
        return None, 0
    pairing = pair(found, cell, reference)
    confounded = check(found, cell, reference, "precision", pairing=pairing).confounded
    return (None if confounded else _loss(found, pairing)), len(pairing.seeds)


def _loss(found: StudyEvidence, pairing: Pairing) -> Measured | None:
    try:
        return claims.degradation().measure(found, pairing, pairing.seeds) if pairing.seeds else None
    except ValueError:
        return None
