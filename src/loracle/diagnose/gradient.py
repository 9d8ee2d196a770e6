"""How large the loss's gradient with respect to each adapted weight is, before anything is trained.

Where B is zero the model is its base, and the gradient of the loss with respect to B is scale·G·Aᵀ, with G the gradient with
respect to the weight. A random A of ``PROBES`` rows thus measures G without its ever being there: for entries uniform in ±1/√d_in,
‖G‖² = 3·d_in/PROBES · E‖G·Aᵀ‖² (Hutchinson's estimator; standard error of the norm at most 1/√(2·PROBES), 9% at 64). It is
linear in G, so gradients of several batches add up as they would in G itself.

That ranks go by gradients is GoRA's idea (He et al. 2025, arXiv:2502.12171); their mean |W∘G| needs the dense gradient, the norm does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from loracle.adapters.batch import Row, make_batch
from loracle.adapters.cohort import Cohort, Member, attach, detach
from loracle.adapters.targets import Site
from loracle.diagnose.spectrum import about
from loracle.models.load import LoadedBase

PROBES = 64


@dataclass(frozen=True)
class Gradients:
    """``sites``: a row a site with ``gradient_norm``; of the mean loss over ``tokens`` scored tokens, ``loss`` (nats)."""

    sites: list[dict[str, Any]]
    tokens: int
    loss: float


def gradients(
    loaded: LoadedBase,
    sites: Sequence[Site],
    batches: Sequence[Sequence[Row]],
    pad_id: int,
    *,
    seed: int,
    head: tuple[int, int] | None = None,
) -> Gradients:
    """The gradient norm at every site, of the mean loss over all rows of ``batches``. The base is left as it was."""
    probe = Member("probe", tuple(sites), PROBES, float(PROBES), init_seed=seed, head=head)
    cohort = attach(loaded.model, [probe], torch.promote_types(loaded.compute_dtype, torch.float32), loaded.device)
    try:
        cohort.flat.zero_grad()
        loss, tokens = 0.0, 0
        for rows in batches:
            batch = make_batch([list(rows)], pad_id).to(loaded.device)
            summed = cohort.losses(batch).sum()
            summed.backward()  # type: ignore[no-untyped-call]
            loss, tokens = loss + float(summed.detach()), tokens + int(batch.tokens.sum())
        found = _norms(cohort, max(1, tokens))
        order = [{**about(site), "gradient_norm": found[site]} for site in sites]
        return Gradients(order, tokens, loss / max(1, tokens))
    finally:
        detach(loaded.model, cohort)


def _norms(cohort: Cohort, tokens: int) -> dict[Site, float]:
    """‖G‖ of the mean over ``tokens`` by site, from the gradients of B that the cohort holds."""
    found = {}
    for layer in cohort.layers.values():
        for site, b in zip(layer.sites, layer.B, strict=True):
            assert b.grad is not None
            sketch = float(torch.linalg.vector_norm(b.grad.double())) / tokens
            found[site] = sketch * math.sqrt(3 * site.d_in / PROBES)
    return found
