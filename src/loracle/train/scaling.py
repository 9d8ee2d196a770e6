"""Loss scales for float16 compute, one a member, so that no member's overflow is felt by its neighbours.

The rule of ``torch.amp.GradScaler``: a step whose gradient overflows is skipped and the scale halved; after ``GROWTH`` good steps in
a row it doubles. A member that overflows at scale 1 has no scale left to blame: it is frozen as diverged. Nothing is read back to
the host. Source: Micikevicius et al. 2018, Mixed Precision Training, section 3.2.
"""

from __future__ import annotations

import torch

INITIAL = 2.0**16
GROWTH = 2000


class LossScale:
    """``value [K]`` and ``good [K]`` (steps since the last overflow). Without ``on`` every scale is 1 and nothing changes."""

    def __init__(self, members: int, device: torch.device, on: bool) -> None:
        self.on = on
        self.value = torch.full((members,), INITIAL if on else 1.0, dtype=torch.float32, device=device)
        self.good = torch.zeros(members, dtype=torch.int32, device=device)

    def of(self, losses: torch.Tensor) -> torch.Tensor:
        """``losses [K]`` times their scales."""
        return losses * self.value if self.on else losses

    def undo(self, grad: torch.Tensor) -> None:
        """Divide ``grad [K, P]`` by the scales, in place."""
        if self.on:
            grad.div_(self.value.unsqueeze(1))

    def update(self, losses: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        """Which members (``[K]`` bool) overflowed and skip this step, by their ``losses`` and gradient ``norms``."""
        if not self.on:
            return torch.zeros_like(losses, dtype=torch.bool)
        overflow = torch.isfinite(losses) & ~torch.isfinite(norms) & (self.value > 1)
        good = torch.where(overflow, 0, self.good + 1)
        grown = good >= GROWTH
        factor = torch.where(overflow, 0.5, torch.where(grown, 2.0, 1.0))
        self.value.copy_(
            torch.clamp(self.value * factor, min=1.0)
        )  # in place: a captured graph reads them where they are
        self.good.copy_(torch.where(grown, 0, good))
        return overflow

    def tensors(self) -> dict[str, torch.Tensor]:
        """State to be saved and copied back into."""
        return {"value": self.value, "good": self.good}
