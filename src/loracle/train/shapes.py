"""A few shapes for all the packed batches of a training: each batch is put into the smallest that holds it.

A shape costs a warm-up and a captured graph, padding costs a share of every step; the shapes are chosen from the lengths of the
batches to come so that the padding is least.
"""

from __future__ import annotations

import numpy as np

from loracle.adapters.batch import PackedShape

STEP = 64  # shapes are multiples of so many tokens
SCORED_STEP = 16
MOST = 6
STEPS_A_SHAPE = 40  # a shape more for so many steps


class PackedShapes:
    """``needs [n, 3]``: tokens, scored positions and longest row of batches to come, of each member or at most."""

    def __init__(self, needs: np.ndarray, steps: int) -> None:
        tokens, scored, longest = up(needs[:, 0], STEP), up(needs[:, 1], SCORED_STEP), int(up(needs[:, 2], STEP).max())
        count = min(MOST, max(1, steps // STEPS_A_SHAPE))
        self.shapes: list[PackedShape] = []
        below = 0
        for edge in best_edges(tokens, count):
            inside = (tokens > below) & (tokens <= edge)
            self.shapes.append(PackedShape(edge, int(scored[inside].max()), min(longest, edge)))
            below = edge

    def holding(self, tokens: int, scored: int, longest: int) -> PackedShape:
        """The smallest shape that holds so much; a new one where none does."""
        for shape in self.shapes:
            if tokens <= shape.tokens and scored <= shape.scored and longest <= shape.longest:
                return shape
        largest = self.shapes[-1]
        made = PackedShape(
            max(largest.tokens, int(up(tokens, STEP))),
            max(largest.scored, int(up(scored, SCORED_STEP))),
            max(largest.longest, int(up(longest, STEP))),
        )
        self.shapes.append(made)
        return made


def up(value: int | np.ndarray, step: int) -> np.ndarray:
    """``value`` rounded up to a multiple of ``step``."""
    return -(-np.asarray(value) // step) * step


def best_edges(values: np.ndarray, count: int) -> list[int]:
    """At most ``count`` of the ``values``, the largest among them, such that rounding every value up to the next costs least."""
    edges, numbers = np.unique(values, return_counts=True)
    if len(edges) > 96:  # coarser, so that the search below stays small
        width = int(np.ceil((edges[-1] - edges[0]) / 96 / STEP)) * STEP
        return best_edges(np.minimum(up(values, max(width, STEP)), edges[-1]), count)
    total = np.concatenate([[0], np.cumsum(numbers)])
    cost = np.full((count + 1, len(edges) + 1), np.inf)
    cost[0, 0], came = 0.0, np.zeros((count + 1, len(edges) + 1), dtype=int)
    for used in range(1, count + 1):
        for end in range(1, len(edges) + 1):
            options = cost[used - 1, :end] + edges[end - 1] * (total[end] - total[:end])
            came[used, end] = int(np.argmin(options))
            cost[used, end] = options[came[used, end]]
    used, end, found = int(np.argmin(cost[:, -1])), len(edges), list[int]()
    while end:
        found.append(int(edges[end - 1]))
        used, end = used - 1, came[used, end]
    return found[::-1]
