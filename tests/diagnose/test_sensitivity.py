"""Layer sensitivity: the right matrices come out, nothing else changes, and the base is left as it was."""

from __future__ import annotations

import pytest
import torch

from loracle.diagnose.sensitivity import Sweep, sweep, worst_first
from loracle.diagnose.units import Codec
from loracle.models.load import LoadedBase, load_base
from loracle.models.source import find, load_tokenizer
from loracle.spec.study import Base, Cell, Task
from loracle.tasks.collate import pad_token_id
from loracle.tasks.dataset import plain_text

CULPRITS = ["h.1.attn.c_proj", "h.0.mlp.c_proj", "h.1.attn.c_attn"]


def load(model: str = "gpt2-demo") -> LoadedBase:
    return load_base(find(model), Cell(base=Base(model=model), task=Task(data="x")), torch.device("cpu"))


def swept(loaded: LoadedBase, codec: Codec, rows: int = 8) -> Sweep:
    tokenizer = load_tokenizer(loaded.source)
    return sweep(loaded, codec, plain_text(tokenizer, 512)[:rows], pad_token_id(tokenizer))


def of(found: Sweep, unit: str) -> list[dict]:
    return worst_first([one for one in found.units if one["unit"] == unit])


@pytest.fixture(scope="module")
def base() -> LoadedBase:
    return load()


@pytest.fixture(scope="module")
def nf4(base) -> Sweep:
    return swept(base, Codec("nf4"))


def test_the_demos_three_culprits_come_first_in_order(nf4) -> None:
    worst = [one["module"].removeprefix("transformer.") for one in of(nf4, "matrix")]
    assert worst[:3] == CULPRITS
    figures = of(nf4, "matrix")
    assert figures[0]["delta_loss"] > 2 * figures[1]["delta_loss"] > 0.2
    assert all(one["delta_loss"] < figures[2]["delta_loss"] / 1.5 for one in figures[3:])


def test_an_unquantized_codec_changes_nothing_at_all(base) -> None:
    for one in swept(base, Codec("fp32"), rows=2).units:
        assert (one["delta_loss"], one["kl"], one["agreement"]) == (0.0, 0.0, 1.0), one
