"""The reload check: what a PEFT user gets from a saved adapter must be what was recorded.

The base is loaded by plain Transformers and the adapter by plain PEFT, in evaluation mode, with no part of loracle in the model.
Two kinds of precision have no plain way to load and go through loracle's own loader with PEFT on top, and the record says so:
a mix of 4-bit and 8-bit layers, and 4-bit blocks other than 64.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loracle.adapters.batch import Row
from loracle.evaluate.loss import batches_by_length
from loracle.models.load import LoadedBase, load_base
from loracle.models.precision import ROUND_TO, TORCH_DTYPES, deploy, evaluates_packed, is_4bit, packed_of
from loracle.models.source import Source, find
from loracle.spec.study import FOUR_BIT, UNQUANTIZED, Cell
from loracle.tasks.collate import collate

# Largest accepted difference of the evaluation loss, in nats: float32 arithmetic, and bfloat16 or float16 on a GPU.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8, torch.bfloat16: 2e-2, torch.float16: 5e-3}


@dataclass(frozen=True)
class Recipe:
    """How to load the base: ``dtype`` and, for a quantized one, ``quantization_config`` as Transformers takes it.

    ``plain`` is false where Transformers alone cannot say it; ``why`` tells. ``compute`` is the dtype to compute in (an unquantized
    bf16 base on a CPU is loaded as bfloat16 and then widened).
    """

    dtype: str
    compute: str
    quantization_config: dict[str, Any] | None
    plain: bool
    why: str | None = None

    def as_record(self) -> dict[str, Any]:
        """For a run's record."""
        return {
            "dtype": self.dtype,
            "compute_dtype": self.compute,
            "quantization_config": self.quantization_config,
            "plain": self.plain,
            "reason": self.why,
        }


def recipe(loaded: LoadedBase, cell: Cell) -> Recipe:
    """The plain way to load this cell's base."""
    compute = str(loaded.compute_dtype).removeprefix("torch.")
    used = set(loaded.assignment.values())
    codecs = used - UNQUANTIZED
    if not codecs:
        dtype = ROUND_TO.get(cell.default_precision, loaded.compute_dtype)
        return Recipe(str(dtype).removeprefix("torch."), compute, None, plain=True)
    if len(codecs) > 1:
        return Recipe(
            compute,
            compute,
            None,
            plain=False,
            why=f"a mix of {' and '.join(sorted(codecs))} loads through loracle.load only",
        )
    codec = next(iter(codecs))
    if codec in FOUR_BIT and cell.block_size != 64:
        return Recipe(
            compute, compute, None, plain=False, why=f"Transformers knows no block size but 64 (here {cell.block_size})"
        )
    if not all(evaluates_packed(m) for m in map(packed_of, loaded.model.modules()) if is_4bit(m)):
        return Recipe(
            compute, compute, None, plain=False, why="bitsandbytes cannot evaluate a layer of this shape on this CPU"
        )
    kept = [name for name, precision in loaded.assignment.items() if precision in UNQUANTIZED]
    config: dict[str, Any] = (
        {"load_in_8bit": True}
        if codec == "int8"
        else {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": codec,
            "bnb_4bit_use_double_quant": bool(cell.double_quant),
            "bnb_4bit_compute_dtype": compute,
        }
    )
    if kept:
        config["llm_int8_skip_modules"] = [*kept, "lm_head"]
    return Recipe(compute, compute, config, plain=True)


def load_plain(source: Source, how: Recipe, device: torch.device) -> Any:
    """The base by Transformers alone, in evaluation mode."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization = BitsAndBytesConfig(**how.quantization_config) if how.quantization_config else None
    extra = {"device_map": {"": device.index or 0}} if device.type == "cuda" else {}
    model = AutoModelForCausalLM.from_pretrained(
        source.resolved,
        revision=source.revision,
        dtype=TORCH_DTYPES[how.dtype],
        quantization_config=quantization,
        use_safetensors=True,
        trust_remote_code=False,
        **extra,
    )
    if how.dtype != how.compute:
        model.to(TORCH_DTYPES[how.compute])
    model.config.pad_token_id = None
    return model.eval()


class Reloader:
    """One base and all adapters of a cohort, each evaluated in turn.

    All adapters are loaded before the first forward pass: on a CPU with AVX512-BF16 that pass repacks bitsandbytes' 4-bit
    weights, and loading another adapter afterwards (it reads a state dict) would unpack them inexactly.
    """

    def __init__(self, source: Source, cell: Cell, how: Recipe, device: torch.device, adapters: Sequence[Path]) -> None:
        from peft import PeftModel

        self.device = device
        base = (
            load_plain(source, how, device)
            if how.plain
            else deploy(load_base(source, cell, device, storage="quantized").model)
        )
        options = {"autocast_adapter_dtype": False, "torch_device": str(device)}
        self.model = PeftModel.from_pretrained(base, adapters[0], adapter_name="run-0", **options)
        for i, folder in enumerate(adapters[1:], start=1):
            self.model.load_adapter(folder, adapter_name=f"run-{i}", **options)
        self.model.eval()
        self.selects = "logits_to_keep" in inspect.signature(type(base).forward).parameters

    @torch.no_grad()
    def item_losses(self, index: int, rows: Sequence[Row], pad_id: int) -> np.ndarray:
        """Each item's summed loss under adapter ``index``, ``[n]``: the model's own forward, labels shifted by one.

        The head runs only on columns in which some row is scored.
        """
        self.model.set_adapter(f"run-{index}")
        sums = np.zeros(len(rows))
        for items in batches_by_length([len(row.input_ids) for row in rows], 1, self.device.type, recorded=True):
            batch = collate([rows[i] for i in items], pad_id, self.device)  # type: ignore[misc]
            labels = batch.labels[:, 1:]
            scored = (labels != -100).any(0).nonzero().squeeze(1)  # columns where some row is scored
            if not self.selects:
                scored = torch.arange(labels.shape[1], device=self.device)
            logits = self.model(
                input_ids=batch.input_ids, **({"logits_to_keep": scored} if self.selects else {})
            ).logits
            logits = logits[:, : len(scored)].float()
            # flat rows: over a strided vocabulary torch sums 8,192 terms one after another, and is off by 2e-5
            targets = labels[:, scored]
            losses = torch.nn.functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=-100, reduction="none"
            ).view(targets.shape)
            sums[items] = losses.double().sum(1).cpu().numpy()
        return sums


def load_run(folder: str | Path, device: str = "auto") -> tuple[Any, Any]:
    """(model, tokenizer) of a finished run: its base in its precision, its adapter by PEFT, in evaluation mode."""
    from peft import PeftModel

    from loracle.models.load import pick_device
    from loracle.models.source import load_tokenizer
    from loracle.spec.factors import cell_from_config
    from loracle.store.files import read_json

    record = read_json(Path(folder) / "record.json")
    cell = cell_from_config(record["config"])
    source = find(cell.base.model, cell.base.revision)
    base = deploy(load_base(source, cell, pick_device(device), storage="quantized").model)
    return PeftModel.from_pretrained(base, str(Path(folder) / "adapter")).eval(), load_tokenizer(source)
