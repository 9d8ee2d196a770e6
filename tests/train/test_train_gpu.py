"""The step on a GPU: what was made faster computes what it stands for, within 16-bit rounding (``pytest -m gpu``)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from loracle.adapters import cohort as cohorts
from loracle.adapters.cohort import attach, member_of
from loracle.models.load import prepare
from loracle.models.source import Source
from loracle.spec.study import Adapter, Cell, Task, Train
from loracle.tasks.rows import Row
from loracle.train.fit import Fit, FitSettings

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")]
CUDA = torch.device("cuda")
SMALL: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 1003, "tie_word_embeddings": True, "max_position_embeddings": 512,
}  # fmt: skip
CONFIGS = {
    "gpt2": GPT2Config(n_layer=3, n_embd=256, n_head=4, vocab_size=1003),
    "llama": LlamaConfig(**SMALL),
    "mistral": MistralConfig(**SMALL, sliding_window=None),
    "qwen2": Qwen2Config(**SMALL),
    "qwen3": Qwen3Config(**SMALL, head_dim=64),
}


def rows(lengths: Sequence[int]) -> list[Row]:
    rng = np.random.default_rng(0)
    found = []
    for item, length in enumerate(lengths):
        ids = rng.integers(2, 1000, length).tolist()
        found.append(Row(item, ids, [-100] * (length // 3) + ids[length // 3 :]))
    return found


def trained(
    kind: str,
    precision: str = "bf16",
    storage: str | None = None,
    members: int = 3,
    steps: int = 4,
    dropout: float = 0.0,
    lengths: Sequence[int] = tuple(range(40, 200, 5)),
    accumulation: int = 1,
    checkpointing: bool = False,
    **settings: Any,
) -> Fit:
    """A few steps of a small random model."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[kind])).to(torch.bfloat16)
    cell = Cell(
        task=Task(data="-"),
        precision=precision,
        adapter=Adapter(rank=8, dropout=dropout, targets="all-linear"),
        train=Train(steps=steps, batch_size=4, learning_rate=1e-3),
    )
    loaded = prepare(model, Source(kind, kind, kind, None, None), cell, CUDA, storage=storage)
    if checkpointing:
        options = {"use_reentrant": False, "preserve_rng_state": False}
        loaded.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    own = [
        member_of(f"run{k}", cell.model_copy(update={"adapter": Adapter(rank=4 + 4 * (k % 2), dropout=dropout, targets="all-linear")}),
                  loaded.linears, loaded.model.config, 0, k, k)
        for k in range(members)
    ]  # fmt: skip
    cohort = attach(loaded.model, own, torch.float32, CUDA)
    chosen = FitSettings(steps, 4, accumulation, 1, "test", **settings)
    fit = Fit(cohort, rows(lengths), [cell.train] * members, list(range(members)), chosen)
    for step in range(steps):
        fit.step(step, fit.batches(step))
    torch.cuda.synchronize()
    return fit


def apart(left: torch.Tensor, right: torch.Tensor) -> float:
    """‖left − right‖ / ‖right‖."""
    return float((left - right).norm() / right.norm())


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_fast_model_is_the_plain_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = trained(kind, steps=1, compile="off", packing=False)
    monkeypatch.setattr(cohorts, "can_quicken", lambda device, dtype: False)
    plain = trained(kind, steps=1, compile="off", packing=False)
    assert float((fast.losses - plain.losses).abs().max()) < 5e-3
    assert apart(fast.cohort.flat.grad, plain.cohort.flat.grad) < 2e-2


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_packed_rows_feel_neither_each_other_nor_padding(kind: str, accumulation: int) -> None:
    settings: dict[str, Any] = {"steps": 1, "compile": "off", "dropout": 0.1, "accumulation": accumulation}
    packed, padded = trained(kind, packing=True, **settings), trained(kind, packing=False, **settings)
    assert packed.shapes is not None
    assert padded.shapes is None
    assert float((packed.losses - padded.losses).abs().max()) < 5e-3
    assert apart(packed.cohort.flat.grad, padded.cohort.flat.grad) < 2e-2


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("precision", ["bf16", "nf4"])
def test_a_captured_step_is_the_plain_step(precision: str, packing: bool) -> None:
    settings: dict[str, Any] = {"steps": 16, "dropout": 0.1, "packing": packing, "accumulation": 2}
    captured = trained("llama", precision, compile="on", **settings)
    plain = trained("llama", precision, compile="off", **settings)
    assert captured.graphs.on
    assert len(captured.graphs.captured) >= 3
    assert captured.graphs.reason is None
    assert float((captured.losses - plain.losses).abs().max()) < 5e-3
    assert apart(captured.norms, plain.norms) < 1e-2


def test_checkpointing_changes_no_more_than_rounding() -> None:
    with_it = trained("gpt2", "nf4", steps=2, checkpointing=True, compile="off", dropout=0.1)
    without = trained("gpt2", "nf4", steps=2, compile="off", dropout=0.1)
    assert float((with_it.losses - without.losses).abs().max()) < 5e-3
    assert apart(with_it.cohort.flat.grad, without.cohort.flat.grad) < 1e-2


def test_both_storages_give_the_same_losses() -> None:
    quantized = trained("llama", "nf4", "quantized", compile="off")
    dequantized = trained("llama", "nf4", "dequantized", compile="off")
    assert float((quantized.losses - dequantized.losses).abs().max()) < 5e-3


def test_a_member_does_not_feel_its_cohort() -> None:
    """Invariant 1 on a GPU, bf16: as near as other shapes of the same products come."""
    together, alone = trained("llama", steps=8), trained("llama", steps=8, members=1)
    assert float((together.losses[:, 0] - alone.losses[:, 0]).abs().max()) < 2e-2


def test_scales_that_16_bits_cannot_hold_are_those_of_the_saved_adapter() -> None:
    """alpha/√rank of rsLoRA, and unlike scales in one cohort."""
    fit = trained("gpt2", steps=1, compile="off")
    layer = next(iter(fit.cohort.layers.values()))  # type: ignore[attr-defined]
    assert {float(scale[k]) for scale in layer.scales for k in range(3)} == {16.0 / 4, 16.0 / 8}
    assert all(scale.dtype == torch.float32 for scale in layer.scales)
