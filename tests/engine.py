"""Small helpers to train cohorts in tests: one call, one result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from loracle.adapters.cohort import Cohort, Member, attach
from loracle.adapters.ranks import site_sizes
from loracle.adapters.targets import resolve_targets
from loracle.models.load import LoadedBase, load_base
from loracle.models.source import find
from loracle.spec.study import Adapter, Cell, Task, Train
from loracle.train.fit import Fit, FitSettings


@dataclass(frozen=True)
class RunSpec:
    """One member in a test."""

    name: str
    rank: int = 4
    alpha: float = 8.0
    targets: Any = "all-linear"
    dropout: float = 0.0
    seed: int = 42
    train: Train = Train(learning_rate=5e-3)
    pattern: Mapping[str, int] = field(default_factory=dict)
    per_rank: str | None = None  # alpha as a multiple of each layer's rank


def base(model: str | Path = "gpt2-demo", precision: Any = "fp32", dtype: str = "float32", **cell: Any) -> LoadedBase:
    """A frozen base on the CPU; ``dtype`` float64 widens an unquantized one."""
    loaded = load_base(find(str(model)), Cell(task=Task(data="x"), precision=precision, **cell), torch.device("cpu"))
    if dtype == "float64":
        loaded.model.to(torch.float64)
        loaded = replace(loaded, compute_dtype=torch.float64)
    return loaded


def member(loaded: LoadedBase, spec: RunSpec) -> Member:
    """A cohort member for a spec."""
    sites = tuple(resolve_targets(loaded.linears, spec.targets))
    adapter = Adapter(rank=spec.rank, alpha=spec.per_rank or spec.alpha, rank_pattern=dict(spec.pattern))
    sizes = site_sizes(adapter, sites) if spec.pattern else {}
    return Member(spec.name, sites, spec.rank, adapter.alpha_value, spec.dropout, spec.seed, spec.seed, sizes=sizes)


def make_fit(
    loaded: LoadedBase,
    specs: Sequence[RunSpec],
    rows: Sequence[Any],
    steps: int,
    batch_size: int = 4,
    accumulation: int = 1,
    **settings: Any,
) -> tuple[Fit, Cohort]:
    """An attached cohort and its Fit."""
    cohort = attach(loaded.model, [member(loaded, s) for s in specs], loaded.compute_dtype, loaded.device)
    fit = Fit(
        cohort,
        rows,
        [s.train for s in specs],
        [s.seed for s in specs],
        FitSettings(steps, batch_size, accumulation, pad_id=1, identity="test", **settings),
    )
    return fit, cohort


def train(
    loaded: LoadedBase, specs: Sequence[RunSpec], rows: Sequence[Any], steps: int, **kwargs: Any
) -> tuple[torch.Tensor, list[dict[Any, Any]]]:
    """(losses ``[steps, K]``, each member's adapter) after training; the base is left with its adapters detached."""
    from loracle.adapters.cohort import detach

    fit, cohort = make_fit(loaded, specs, rows, steps, **kwargs)
    for step in range(steps):
        fit.step(step, fit.batches(step))
    adapters = [{k: (a.clone(), b.clone()) for k, (a, b) in cohort.adapter(i).items()} for i in range(len(specs))]
    detach(loaded.model, cohort)
    return fit.losses.clone(), adapters


def worst(first: dict[Any, Any], second: dict[Any, Any]) -> float:
    """Largest absolute difference between two adapters."""
    assert first.keys() == second.keys()
    return max(float((x - y).abs().max()) for key in first for x, y in zip(first[key], second[key], strict=True))


def tiny_llama(folder: Path, vocab_size: int = 96, tied: bool = False) -> str:
    """The folder of a Llama of two layers with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=vocab_size,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(1)
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)
