"""More seeds until decided: looks fixed in the plan share the error, and after the last the answer stands.

Each of k looks is taken at one-sided error ``min(0.025, 0.05 / k)`` (Bonferroni over looks), so a true effect
at the margin is ever called supported with at most 5%, however the looks depend on each other. Looking at a
number of seeds that is not in the plan is not a look: the data then count up to the last planned one that
they reach.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ONE_SIDED = 0.025
SHARED = 0.05


@dataclass(frozen=True)
class Look:
    """The look at which an answer was taken: ``n`` seeds, one ``of`` the planned numbers."""

    n: int
    of: tuple[int, ...]

    @property
    def last(self) -> bool:
        return self.n == self.of[-1]

    @property
    def text(self) -> str:
        """``look 1 of 3 (3, 5, 8 seeds)``."""
        return f"look {self.of.index(self.n) + 1} of {len(self.of)} ({', '.join(map(str, self.of))} seeds)"

    def as_dict(self) -> dict[str, Any]:
        return {"n": self.n, "of": list(self.of), "last": self.last}


def check_looks(looks: Sequence[int]) -> tuple[int, ...]:
    """The looks as a tuple; they rise and start at three seeds or more."""
    fixed = tuple(int(n) for n in looks)
    if not fixed or fixed[0] < 3 or any(b <= a for a, b in itertools.pairwise(fixed)):
        raise ValueError(f"looks must rise and start at 3 seeds or more, not {list(looks)}")
    return fixed


def look_alpha(looks: Sequence[int]) -> float:
    """Two-sided alpha of each look (one look: 0.05; three: 0.0333)."""
    return 2.0 * min(ONE_SIDED, SHARED / len(check_looks(looks)))


def looks_reached(looks: Sequence[int], n_seeds: int) -> tuple[int, ...]:
    """The planned looks that ``n_seeds`` seeds allow."""
    return tuple(n for n in check_looks(looks) if n <= n_seeds)


def next_look(looks: Sequence[int], n_seeds: int) -> int | None:
    """The number of seeds at which the next look is due; None after the last: the answer stands."""
    return next((n for n in check_looks(looks) if n > n_seeds), None)
