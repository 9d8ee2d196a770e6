"""An evaluation pass that does not fit in memory is taken in halves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from loracle.adapters.batch import CohortBatch
from loracle.adapters.forward import Untrained
from loracle.evaluate.loss import item_losses
from loracle.models.pretrained import from_pretrained
from loracle.models.source import find, load_config
from loracle.tasks.rows import Row


class Small(Untrained):
    """A model on a device with room for ``most`` rows."""

    most = 100

    def losses(self, batch: CohortBatch) -> torch.Tensor:
        if len(batch.input_ids) > self.most:
            raise torch.OutOfMemoryError("no room")
        return super().losses(batch)


def test_halves_give_the_same_losses() -> None:
    source = find("gpt2-demo", None)
    who = Small(from_pretrained(source, load_config(source), torch.float32, classifies=False))
    rows = [Row(i, [5 + (3 * i + j) % 90 for j in range(8)], [-100, *range(5, 12)]) for i in range(7)]
    whole = item_losses(who, rows, 0, torch.device("cpu"))
    for who.most in (3, 1):
        parts = item_losses(who, rows, 0, torch.device("cpu"))
        np.testing.assert_allclose(parts.sums, whole.sums, rtol=1e-5)
    who.most = 0
    with pytest.raises(torch.OutOfMemoryError):
        item_losses(who, rows, 0, torch.device("cpu"))
