"""From target names to sites. A site is one adapter: a linear layer, or a slice of a fused one's output.

Logical names (q, k, v, o, up, gate, down) mean the projection they name, also inside a fused layer; raw names and ``all-linear``
mean what PEFT means by them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from loracle.base.errors import SpecError
from loracle.base.names import nearest
from loracle.models.linears import LOGICAL, Linear, Rows


@dataclass(frozen=True, order=True)
class Site:
    """One adapter's place: output rows ``[start, stop)`` of the linear layer ``module``; ``kind`` names the slice.

    ``period`` above 0: these of every ``period`` rows (q, k and v that are interleaved by head).
    """

    module: str
    start: int
    stop: int
    d_in: int
    d_out: int
    layer: int | None
    kind: str
    period: int = 0

    @property
    def rows(self) -> Rows:
        """The output rows, as ``Linear.slices`` gives them."""
        return (self.start, self.stop, self.period) if self.period else (self.start, self.stop)

    @property
    def name(self) -> str:
        """What patterns are matched against: the module's name, with a slice's kind behind it (``h.0.attn.c_attn.q``)."""
        return self.module if self.width == self.d_out else f"{self.module}.{self.kind}"

    @property
    def width(self) -> int:
        """Output features that the adapter adds to."""
        return (self.stop - self.start) * (self.d_out // self.period if self.period else 1)

    @property
    def key(self) -> str:
        """A stable name: seeds of initial weights and dropout are derived from it."""
        if self.width == self.d_out:
            return self.module
        return f"{self.module}[{self.start}:{self.stop}{f' of {self.period}' if self.period else ''}]"

    def params(self, rank: int) -> int:
        """Trainable parameters at ``rank``: r·(d_in + width)."""
        return rank * (self.d_in + self.width)

    def spread(self, part: torch.Tensor) -> torch.Tensor:
        """``[.., width]`` → ``[.., d_out]``: in this site's rows, zero elsewhere."""
        if not self.period:
            return nn.functional.pad(part, (self.start, self.d_out - self.stop))
        groups = part.view(*part.shape[:-1], -1, self.stop - self.start)
        return nn.functional.pad(groups, (self.start, self.period - self.stop)).flatten(-2)


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
        whole: Rows = (0, linear.d_out)
        if name == "all-linear":
            rows = whole
        elif name in linear.slices:
            rows = linear.slices[name]
        elif name in LOGICAL and any(name in other.slices for other in linears):
            continue  # a logical name of this architecture never also means a raw suffix
        elif linear.name == name or linear.name.endswith("." + name) or (is_regex and _full_match(name, linear.name)):
            rows = whole
        else:
            continue
        start, stop, *period = rows
        kind = name if name in linear.slices else linear.kind
        yield Site(linear.name, start, stop, linear.d_in, linear.d_out, linear.layer, kind, *period)


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
