"""From target names to sites. A site is one adapter: a linear layer, or a slice of a fused one's output.

Logical names (q, k, v, o, up, gate, down) mean the projection they name, also inside a fused layer; raw names and ``all-linear``
mean what PEFT means by them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loracle.base.errors import SpecError
from loracle.base.names import nearest
from loracle.models.linears import LOGICAL, Linear


@dataclass(frozen=True, order=True)
class Site:
    """One adapter's place: output rows ``[start, stop)`` of the linear layer ``module``; ``kind`` names the slice."""

    module: str
    start: int
    stop: int
    d_in: int
    d_out: int
    layer: int | None
    kind: str

    @property
    def width(self) -> int:
        """Output features that the adapter adds to."""
        return self.stop - self.start

    @property
    def key(self) -> str:
        """A stable name: seeds of initial weights and dropout are derived from it."""
        return self.module if self.width == self.d_out else f"{self.module}[{self.start}:{self.stop}]"

    def params(self, rank: int) -> int:
        """Trainable parameters at ``rank``: r·(d_in + width)."""
        return rank * (self.d_in + self.width)


def resolve_targets(
    linears: Sequence[Linear], targets: str | Sequence[str], where: str = "adapter.targets"
) -> list[Site]:
    """All sites that ``targets`` name, in model order, each once."""
    names = [targets] if isinstance(targets, str) else list(targets)
    sites: dict[Site, None] = {}
    for name in names:
        found = list(_sites_of(linears, name, is_regex=isinstance(targets, str)))
        if not found:
            raise SpecError(_nothing_matches(linears, name), where)
        sites.update(dict.fromkeys(found))
    order = {linear.name: i for i, linear in enumerate(linears)}
    return sorted(sites, key=lambda site: (order[site.module], site.start, -site.stop))


def _sites_of(linears: Sequence[Linear], name: str, is_regex: bool) -> Iterable[Site]:
    for linear in linears:
        whole = (0, linear.d_out)
        if name == "all-linear":
            span = whole
        elif name in linear.slices:
            span = linear.slices[name]
        elif name in LOGICAL and any(name in other.slices for other in linears):
            continue  # a logical name of this architecture never also means a raw suffix
        elif linear.name == name or linear.name.endswith("." + name) or (is_regex and _full_match(name, linear.name)):
            span = whole
        else:
            continue
        yield Site(
            linear.name, *span, linear.d_in, linear.d_out, linear.layer, name if name in linear.slices else linear.kind
        )


def _full_match(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error:
        return False


def known_targets(linears: Sequence[Linear]) -> list[str]:
    """Every name that would match something: logical names, raw suffixes, all-linear."""
    logical = [name for name in LOGICAL if any(name in linear.slices for linear in linears)]
    raw = sorted({linear.name.rpartition(".")[2] for linear in linears})
    return [*logical, *raw, "all-linear"]


def _nothing_matches(linears: Sequence[Linear], name: str) -> str:
    known = known_targets(linears)
    close = nearest(name, known)
    hint = f" (did you mean '{close}'?)" if close else ""
    return f"'{name}' matches no linear layer of this model{hint}; these would: {', '.join(known)}"


def check_rank(sites: Sequence[Site], rank: int, where: str = "adapter.rank") -> None:
    """A rank above a layer's width adds parameters and no freedom: an error that names the layer."""
    for site in sites:
        limit = min(site.d_in, site.width)
        if rank > limit:
            raise SpecError(f"{rank} is above the width {limit} of {site.key}: use at most {limit}", where)


def trainable_params(sites: Sequence[Site], rank: int) -> int:
    """Trainable parameters of a LoRA of ``rank`` on ``sites``."""
    return sum(site.params(rank) for site in sites)
