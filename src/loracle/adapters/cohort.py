"""Cohort LoRA: K adapters over one frozen linear layer, in one pass (Hu et al. 2021, ΔW = α/r · B·A, for each member).

The batch is ``[K·b, T, d]``, members in order; the base layer runs once over all of it, the adapters by batched products on
``[K, b·T, d]``. Smaller ranks are zero-padded to the site's largest: both gradients of the padding are zero, so it stays
zero. A member that does not target a site has scale 0 and no parameters there. A cohort of one is plain LoRA.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from loracle.adapters.batch import CohortBatch
from loracle.adapters.dropout import Drop, keep_mask, layer_key, step_keys, threshold, token_codes
from loracle.adapters.flat import FlatParameters
from loracle.adapters.forward import head_logits, model_losses, scored_hidden, token_losses
from loracle.adapters.fused import AdaptedLinear, Scale, input_gradient
from loracle.adapters.ranks import Size, lora_scale, site_sizes, trainable_params
from loracle.adapters.targets import Site, resolve_targets
from loracle.models.attention import attends_by_flash
from loracle.models.dropout import drops
from loracle.models.fast import can_quicken, quicken
from loracle.models.linears import Linear
from loracle.models.precision import has_int8, set_submodule
from loracle.spec.study import Cell


@dataclass(frozen=True)
class Member:
    """One run's adapter. ``init_seed`` seeds A, ``dropout_seed`` its dropout; ``sites`` are where it has parameters, of ``rank``
    and ``alpha`` but where ``sizes`` says otherwise."""

    name: str
    sites: tuple[Site, ...]
    rank: int
    alpha: float
    dropout: float = 0.0
    init_seed: int = 0
    dropout_seed: int = 0
    rslora: bool = False
    head: tuple[int, int] | None = None  # (classes, width) of its classification head
    sizes: Mapping[Site, Size] = field(default_factory=dict)

    def size(self, site: Site) -> Size:
        """Rank and alpha at one of its sites."""
        return self.sizes.get(site) or Size(self.rank, self.alpha)

    def rank_at(self, site: Site) -> int:
        """Its rank at a site; 0 where it has nothing."""
        return self.size(site).rank if site in self.sites else 0

    def scale(self, site: Site) -> float:
        """alpha / rank at one of its sites; alpha / √rank under rsLoRA."""
        size = self.size(site)
        return lora_scale(size.alpha, size.rank, self.rslora)

    @property
    def trainable_params(self) -> int:
        """Trainable parameters of this member alone."""
        own = trainable_params({site: self.size(site) for site in self.sites})
        return own + (math.prod(self.head) if self.head else 0)


def member_of(
    name: str,
    cell: Cell,
    linears: Sequence[Linear],
    config: Any,
    labels: int,
    init_seed: int = 0,
    dropout_seed: int = 0,
) -> Member:
    """The cell's adapter as a member. ``config`` is the base's; ``labels``: how many a classification head has."""
    adapter = cell.adapter
    sites = tuple(resolve_targets(linears, adapter.targets))
    return Member(
        name,
        sites,
        adapter.rank,
        adapter.alpha_value,
        adapter.dropout,
        init_seed,
        dropout_seed,
        adapter.rslora,
        (labels, int(config.hidden_size)) if cell.task.classifies else None,
        site_sizes(adapter, sites) if adapter.rank_pattern or adapter.alpha_pattern else {},
    )


class CohortState:
    """What all layers of a cohort share: who is in it, which step it is, whether dropout is on."""

    def __init__(self, members: Sequence[Member], device: torch.device) -> None:
        self.size = len(members)
        self.training = False
        self.bypass = False  # the base answers alone
        self.alone: int | None = None  # this member answers, on a batch of its own, as PEFT computes it
        self.step = torch.zeros((), dtype=torch.int32, device=device)
        self.first_row = 0
        self.seeds = torch.tensor([m.dropout_seed % (1 << 31) for m in members], dtype=torch.int32, device=device)
        self.dropout = torch.tensor([m.dropout for m in members], dtype=torch.float32, device=device)
        self.has_dropout = any(m.dropout > 0 for m in members)
        self.threshold, self.factor = threshold(self.dropout), 1.0 / (1.0 - self.dropout)
        self.codes: torch.Tensor | None = None  # of a packed batch's tokens


class CohortLoRA(nn.Module):
    """A frozen linear layer of any kind with the adapters of all members that target it, one slot for each site."""

    def __init__(
        self, base: nn.Module, name: str, state: CohortState, dtype: torch.dtype, compute: torch.dtype
    ) -> None:
        super().__init__()
        self.base = base
        self.name = name
        self.state = state
        self.dtype, self.compute = dtype, compute  # of the parameters, and of their products
        self.sites: list[Site] = []
        self.A = nn.ParameterList()  # each [K, r_max, d_in]
        self.B = nn.ParameterList()  # each [K, width, r_max]
        self.scales: list[torch.Tensor] = []  # each [K, 1, 1]
        self.factors: list[Scale] = []  # the same to compute with: one number where all members have it
        self.ranks: list[list[int]] = []  # each [K]; 0: the member has nothing here
        self.low: list[torch.Tensor] = []  # copies of A and B by turns to compute with, where they are kept
        self.key = layer_key(name)

    @property
    def quick(self) -> bool:
        """Whether kernels of ours compute here: adapters in 16 bits over float32 parameters."""
        return self.compute != self.dtype

    def add(
        self,
        site: Site,
        a: nn.Parameter,
        b: nn.Parameter,
        scale: torch.Tensor,
        ranks: list[int],
        low: Sequence[torch.Tensor] = (),
    ) -> None:
        """One more slot."""
        self.low += low
        first = float(scale[0])
        alike = bool((scale == first).all())
        scale = scale.to(a.device)
        self.factors.append(first if self.quick and alike else scale)
        self.sites.append(site)
        self.A.append(a)
        self.B.append(b)
        self.scales.append(scale)
        self.ranks.append(ranks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x: [K·b, T, d_in]`` → ``[K·b, T, d_out]``."""
        if self.state.bypass:
            return self.base(x)
        if self.state.alone is not None:
            return self._as_peft(x, self.base(x), self.state.alone)
        inputs = x.reshape(self.state.size, -1, x.shape[-1])
        rows = self._dropped(inputs, x) if self.state.training and self.state.has_dropout else None
        dx_of = input_gradient(self.base)
        if dx_of is None:
            y = self._by_autograd(inputs, rows)
        else:
            weights = [w for pair in zip(self.A, self.B, strict=True) for w in pair]
            how = (self.sites, self.factors, self.compute, self.low or None)
            y = AdaptedLinear.apply(inputs, rows, self.base, dx_of, *how, *weights)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], y.shape[-1])

    def _by_autograd(self, x: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        """The same sum where the base's backward is its own (bitsandbytes' int8)."""
        y: torch.Tensor = self.base(x)
        seen = (x if rows is None else rows).to(self.dtype)
        for site, a, b, scale in zip(self.sites, self.A, self.B, self.scales, strict=True):
            part = torch.bmm(torch.bmm(seen, a.transpose(1, 2)) * scale, b.transpose(1, 2))
            y = y + site.spread(part).to(y.dtype)
        return y

    def _as_peft(self, x: torch.Tensor, y: torch.Tensor, k: int) -> torch.Tensor:
        """Member ``k``'s output, operation for operation as PEFT computes its saved adapter (no padding, slices fused)."""
        own = [(i, ranks[k]) for i, ranks in enumerate(self.ranks) if ranks[k]]
        if not own:
            return y
        a = torch.cat([self.A[i][k, :rank] for i, rank in own])
        b = torch.cat([self.sites[i].spread(self.B[i][k, :, :rank].T) for i, rank in own]).T
        scale = float(self.scales[own[0][0]][k])
        delta = nn.functional.linear(nn.functional.linear(x.to(self.dtype), a), b.contiguous())
        return (y + delta * scale).to(y.dtype)

    def _dropped(self, inputs: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``inputs [K, n, d]`` after dropout; ``x`` are the same as they came, ``[K·b, T, d]`` where rows lie side by side."""
        state = self.state
        keys = step_keys(state.seeds, state.step, self.key)
        codes = state.codes
        if codes is None:
            codes = token_codes(x.shape[0] // state.size, x.shape[1], state.first_row, x.device)
        if self.quick:
            return Drop.apply(inputs, keys, codes, state.threshold, state.factor)  # type: ignore[no-untyped-call]
        return inputs * keep_mask(keys, state.dropout, codes, x.shape[-1]).to(x.dtype)


class Cohort:
    """The adapters of all members, attached to a model: layers, flat parameters, shared state."""

    keeps_base = True

    def __init__(
        self,
        model: Any,
        members: Sequence[Member],
        layers: dict[str, CohortLoRA],
        flat: FlatParameters,
        state: CohortState,
        captures: bool = False,
        packs: bool = False,
    ) -> None:
        self.captures, self.packs = captures, packs
        self.model = model
        self.members = list(members)
        self.layers = layers
        self.flat = flat
        self.state = state

    @property
    def size(self) -> int:
        """Members."""
        return len(self.members)

    def begin_step(self, step: int) -> None:
        """Optimizer step ``step`` (from 0): dropout is on and a function of it."""
        self.state.training = True
        self.state.step.fill_(step)

    def end_step(self, step: int) -> None:
        """The step is taken: dropout is off."""
        self.state.training = False

    def extra_state(self) -> dict[str, torch.Tensor]:
        """LoRA is its parameters."""
        return {}

    def restore_extra(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Nothing to restore."""

    def penalty(self) -> float:
        """LoRA has none."""
        return 0.0

    def losses(self, batch: CohortBatch) -> torch.Tensor:
        """Cross-entropy of every scored position, in nats: ``[K, N]``, 0 where a member has fewer."""
        self.state.codes = batch.codes
        self.flat.refresh()
        if self.flat.head is not None:
            return token_losses(self.logits(batch), batch)
        return model_losses(self.model, batch)

    def logits(self, batch: CohortBatch) -> torch.Tensor:
        """``[K·N, V]`` of the scored positions: by the model's own head, or by each member's own classification head."""
        hidden = scored_hidden(self.model, batch)
        heads = self.flat.head
        if heads is None:
            return head_logits(self.model, hidden)
        if self.state.alone is not None:
            return nn.functional.linear(hidden.to(heads.dtype), heads[self.state.alone])
        rows = hidden.to(heads.dtype).view(len(self.members), -1, hidden.shape[-1])
        return torch.bmm(rows, heads.transpose(1, 2)).flatten(0, 1)

    @contextmanager
    def answering(self, base: bool = False, alone: int | None = None) -> Iterator[int]:
        """Within the block the base, or member ``alone``, answers a batch of one member. Gives how many answer."""
        self.state.bypass, self.state.alone = base, alone
        self.flat.refresh()
        try:
            yield 1 if base or alone is not None else len(self.members)
        finally:
            self.state.bypass, self.state.alone = False, None

    def head(self, index: int) -> torch.Tensor | None:
        """Member ``index``'s classification head ``[C, d]``, if it has one."""
        return None if self.flat.head is None else self.flat.head[index].detach()

    def adapter(self, index: int) -> dict[Site, tuple[torch.Tensor, torch.Tensor]]:
        """Member ``index``'s own (A ``[r, d_in]``, B ``[width, r]``) for each of its sites, without padding."""
        member = self.members[index]
        own = set(member.sites)
        out: dict[Site, tuple[torch.Tensor, torch.Tensor]] = {}
        for layer in self.layers.values():
            for site, a, b in zip(layer.sites, layer.A, layer.B, strict=True):
                if site in own:
                    rank = member.rank_at(site)
                    out[site] = (a[index, :rank].detach(), b[index, :, :rank].detach())
        return out


def initial_a(seed: int, site: Site, rank: int) -> torch.Tensor:
    """PEFT's initial A, ``[rank, d_in]`` float32: uniform in ±1/√d_in (kaiming_uniform with a = √5), seeded by run and site."""
    bound = 1.0 / math.sqrt(site.d_in)
    return torch.rand(rank, site.d_in, generator=_generator(seed, site.key)).mul_(2 * bound).sub_(bound)


def initial_head(model: Any, shape: tuple[int, int], seed: int) -> torch.Tensor:
    """A classification head ``shape [C, d]`` float32, normal with the model's ``initializer_range`` as Transformers makes it,
    seeded by the run."""
    spread = getattr(getattr(model, "config", None), "initializer_range", None) or 0.02
    return torch.randn(*shape, generator=_generator(seed, "score")) * spread


def derived_seed(seed: int, what: object) -> int:
    """A seed for one use (``what``) of a run's seed."""
    source = hashlib.sha256(f"{seed}:{what}".encode()).digest()
    return int.from_bytes(source[:8], "little") >> 1


def _generator(seed: int, what: str) -> torch.Generator:
    return torch.Generator().manual_seed(derived_seed(seed, what))


def attach(model: nn.Module, members: Sequence[Member], dtype: torch.dtype, device: torch.device) -> Cohort:
    """Wrap every linear layer that some member targets, in place. A from each member's seed, B zero."""
    state = CohortState(members, device)
    slots = sorted({site for member in members for site in member.sites})
    ranks = {site: max(m.rank_at(site) for m in members) for site in slots}
    shapes = [((r, s.d_in), (s.width, r)) for s, r in ranks.items()]
    flat = FlatParameters(len(members), shapes, dtype, device, members[0].head)
    layers: dict[str, CohortLoRA] = {}
    compute = _compute_dtype(model)
    quick = can_quicken(device, compute) and dtype == torch.float32
    keeps = quick and not getattr(model, "is_gradient_checkpointing", False)  # memory is short: no second copy
    own_dropout = drops(model)
    if keeps:
        flat.keep_low(compute)
    if quick:
        quicken(model, compute, attention=not own_dropout)
    with torch.no_grad():
        for slot, (site, (a, b)) in enumerate(zip(slots, flat.pairs, strict=True)):
            layer = layers.get(site.module)
            if layer is None:
                layer = layers[site.module] = CohortLoRA(
                    model.get_submodule(site.module), site.module, state, dtype, compute if quick else dtype
                )
                set_submodule(model, site.module, layer)
            scale = torch.zeros(len(members), 1, 1, dtype=dtype)  # never rounded to 16 bits: the saved adapter's is not
            for k, member in enumerate(members):
                rank = member.rank_at(site)
                if rank and device.type != "meta":  # there are no values to set
                    a[k, :rank] = initial_a(member.init_seed, site, rank).to(device=device, dtype=dtype)
                    scale[k] = member.scale(site)
            ranks_here = [m.rank_at(site) for m in members]
            layer.add(site, a, b, scale, ranks_here, flat.low_pairs[slot] if keeps else ())
        for k, member in enumerate(members):
            if flat.head is not None and member.head is not None and device.type != "meta":
                flat.head[k] = initial_head(model, member.head, member.init_seed).to(device=device, dtype=dtype)
    flat.refresh()
    captures = (
        device.type == "cuda" and not own_dropout and not has_int8(model)
    )  # LLM.int8() asks the host for outliers
    return Cohort(model, members, layers, flat, state, captures, quick and attends_by_flash(model))


def _compute_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of a model's activations: that of its embeddings."""
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    return embeddings.weight.dtype


def detach(model: nn.Module, cohort: Cohort) -> None:
    """Take the adapters off again: the model is as before ``attach``."""
    for name, layer in cohort.layers.items():
        set_submodule(model, name, layer.base)
