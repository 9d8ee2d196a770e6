"""The reload check: what a PEFT user gets from a saved adapter must be what was recorded.

The base is loaded by plain Transformers and the adapter by plain PEFT, in evaluation mode, with no part of loracle in the model.
Some precisions have no plain way to load and go through loracle's own loader with PEFT on top, and the record says so: a mix of
4-bit and 8-bit layers, 4-bit blocks other than 64, HQQ's integers, and a base that comes quantized for another compute dtype.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from loracle.adapters.batch import Row, scored
from loracle.evaluate.loss import ItemLosses, batches_by_length
from loracle.models.load import LoadedBase, load_base, pick_device
from loracle.models.precision import ROUND_TO, TORCH_DTYPES, deploy, evaluates_packed, is_4bit, packed_of, repacks
from loracle.models.prequantized import evaluates_plainly
from loracle.models.pretrained import resize_vocabulary
from loracle.models.source import Source, find, load_tokenizer
from loracle.spec.factors import cell_from_config
from loracle.spec.methods import VIRTUAL
from loracle.spec.study import FOUR_BIT, INTEGER, UNQUANTIZED, Cell
from loracle.store.files import read_json
from loracle.tasks.collate import Batch, collate, pad_token_id

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
    codecs = set(loaded.assignment.values()) - UNQUANTIZED
    if not codecs:
        dtype = ROUND_TO.get(cell.default_precision, loaded.compute_dtype)
        if cell.adapter.method == "full":  # saved as it was trained, not as the base was
            dtype = TORCH_DTYPES.get(cell.adapter.dtype, torch.float32)
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
    if codec in INTEGER:
        return Recipe(compute, compute, None, plain=False, why=f"{codec} (HQQ) loads through loracle.load only")
    if codec in FOUR_BIT and cell.adapter.method == "dora" and repacks(loaded.device):
        misread = "PEFT's dora misreads the weights that bitsandbytes repacks on this CPU in eval(): use loracle.load"
        return Recipe(compute, compute, None, plain=False, why=misread)
    if codec in FOUR_BIT and cell.block_size != 64:
        return Recipe(
            compute, compute, None, plain=False, why=f"Transformers knows no block size but 64 (here {cell.block_size})"
        )
    if not all(evaluates_packed(m) for m in map(packed_of, loaded.model.modules()) if is_4bit(m)):
        return Recipe(
            compute, compute, None, plain=False, why="bitsandbytes cannot evaluate a layer of this shape on this CPU"
        )
    if loaded.held:  # Transformers takes the folder's own config; this one says that the base is quantized, and how
        unlike = evaluates_plainly(loaded.held, cell, compute)
        config = None if unlike else _bits(codec, cell, compute)
        return Recipe(compute, compute, config, plain=unlike is None, why=unlike)
    kept = [name for name, precision in loaded.assignment.items() if precision in UNQUANTIZED]
    config = _bits(codec, cell, compute)
    if kept:
        config["llm_int8_skip_modules"] = [*kept, "lm_head"]
    return Recipe(compute, compute, config, plain=True)


def _bits(codec: str, cell: Cell, compute: str) -> dict[str, Any]:
    """``BitsAndBytesConfig``'s arguments for a base that is all ``codec``."""
    if codec == "int8":
        return {"load_in_8bit": True}
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": codec,
        "bnb_4bit_use_double_quant": bool(cell.double_quant),
        "bnb_4bit_compute_dtype": compute,
    }


def label_names(labels: Sequence[str]) -> dict[str, Any]:
    """``id2label`` and ``label2id`` of a classifier's config."""
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


def load_plain(
    source: Source, how: Recipe, device: torch.device, labels: Sequence[str] = (), pad_id: int | None = None
) -> Any:
    """The base by Transformers alone, in evaluation mode; with ``labels`` as a classifier over them."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig
    from transformers.utils import logging as hf_logging

    extra: dict[str, Any] = {}
    if torch.cuda.is_available():  # else a base that comes quantized would go to the GPU by itself
        extra["device_map"] = {"": device.index or 0 if device.type == "cuda" else "cpu"}
    if labels:
        extra |= {"num_labels": len(labels), **label_names(labels), "pad_token_id": pad_id}
    if how.quantization_config:
        extra["quantization_config"] = BitsAndBytesConfig(**how.quantization_config)
    hf_logging.set_verbosity_error()  # a classifier's head is not in the base: that is known
    kind = AutoModelForSequenceClassification if labels else AutoModelForCausalLM
    model = kind.from_pretrained(
        source.resolved,
        revision=source.revision,
        dtype=TORCH_DTYPES[how.dtype],
        use_safetensors=True,
        trust_remote_code=False,
        **extra,
    )
    if how.dtype != how.compute:
        model.to(TORCH_DTYPES[how.compute])
    model.config.pad_token_id = pad_id if labels else None
    return model.eval()


class Reloader:
    """One base and all adapters of a cohort, each evaluated in turn.

    All adapters are loaded before the first forward pass: on a CPU with AVX512-BF16 that pass repacks bitsandbytes' 4-bit
    weights, and loading another adapter afterwards (it reads a state dict) would unpack them inexactly.
    """

    def __init__(
        self,
        loaded: LoadedBase,
        cell: Cell,
        how: Recipe,
        adapters: Sequence[Path],
        labels: Sequence[str] = (),
        pad_id: int | None = None,
        vocab: int | None = None,
    ) -> None:
        self.device = loaded.device
        self.mixed: torch.dtype | None = None
        self.classifies = cell.task.classifies
        shown = labels if self.classifies else ()
        source = find(str(adapters[0])) if cell.adapter.method == "full" else loaded.source
        base: Any = (
            load_plain(source, how, self.device, shown, pad_id)
            if how.plain
            else deploy(
                load_base(loaded.source, cell, self.device, storage="quantized", labels=shown, vocab=vocab).model
            )
        )
        if cell.base.add_tokens and how.plain and vocab and cell.adapter.method != "full":
            resize_vocabulary(base, vocab)
        base.config.pad_token_id = pad_id if self.classifies else None
        self.selects = "logits_to_keep" in inspect.signature(type(base).forward).parameters
        if cell.adapter.method == "full":
            self.model: Any = base
            return
        # Trained in float32 under autocast, so used like that: PEFT's own layers mix dtypes and fail without it.
        self.mixed = loaded.compute_dtype if cell.alone and loaded.compute_dtype != torch.float32 else None
        options = {"autocast_adapter_dtype": self.mixed is not None, "torch_device": str(self.device)}
        self.model = PeftModel.from_pretrained(base, adapters[0], adapter_name="run-0", **options)
        for i, folder in enumerate(adapters[1:], start=1):
            self.model.load_adapter(folder, adapter_name=f"run-{i}", **options)
        self.model.eval()
        self.selects &= cell.adapter.method not in VIRTUAL

    @property
    def autocast(self) -> str | None:
        """The dtype that the model runs under autocast in, for the record."""
        return None if self.mixed is None else str(self.mixed).removeprefix("torch.")

    @torch.no_grad()
    def item_losses(self, index: int, rows: Sequence[Row], pad_id: int) -> ItemLosses:
        """Each item's summed loss under adapter ``index``: the model's own forward, labels shifted by one, or its own pooling.

        A language model's head runs only on columns in which some row is scored.
        """
        if isinstance(self.model, PeftModel):
            self.model.set_adapter(f"run-{index}")
        sums = np.zeros((1, len(rows)))
        predicted = np.zeros((1, len(rows)), dtype=np.int64) if self.classifies else None
        for items in batches_by_length([len(row.input_ids) for row in rows], 1, self.device.type, recorded=True):
            batch = collate([rows[i] for i in items], pad_id, self.device)  # type: ignore[misc]
            with nullcontext() if self.mixed is None else torch.autocast(self.device.type, dtype=self.mixed):
                if predicted is not None:
                    found, classes = self._classified(batch, [rows[i] for i in items])
                    predicted[0, items] = classes
                else:
                    found = self._language(batch)
            sums[0, items] = found.double().cpu().numpy()
        return ItemLosses(sums, np.array([scored(row)[0].size for row in rows]), predicted)

    def _language(self, batch: Batch) -> torch.Tensor:
        """``[B]``: the summed loss of each row."""
        labels = batch.labels[:, 1:]
        columns = (labels != -100).any(0).nonzero().squeeze(1)  # where some row is scored
        if not self.selects:
            columns = torch.arange(labels.shape[1], device=self.device)
        keep = {"logits_to_keep": columns} if self.selects else {}
        logits = self.model(input_ids=batch.input_ids, **keep).logits[
            :, -batch.input_ids.shape[1] :
        ]  # no virtual tokens
        logits = logits[:, : len(columns)].float()
        # flat rows: over a strided vocabulary torch sums 8,192 terms one after another, and is off by 2e-5
        targets = labels[:, columns]
        losses = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=-100, reduction="none"
        )
        return losses.view(targets.shape).double().sum(1)

    def _classified(self, batch: Batch, rows: Sequence[Row]) -> tuple[torch.Tensor, np.ndarray]:
        """(loss, class) of each row."""
        lengths = torch.tensor([len(row.input_ids) for row in rows], device=self.device)
        mask = torch.arange(batch.input_ids.shape[1], device=self.device) < lengths.unsqueeze(1)
        logits = self.model(input_ids=batch.input_ids, attention_mask=mask.long()).logits.float()
        targets = torch.tensor([row.label_id for row in rows], device=self.device)
        return torch.nn.functional.cross_entropy(logits, targets, reduction="none"), logits.argmax(-1).cpu().numpy()


def load_run(folder: str | Path, device: str = "auto") -> tuple[Any, Any]:
    """(model, tokenizer) of a finished run: its base in its precision, its adapter by PEFT, in evaluation mode.

    A classifier has its labels in ``model.config.id2label``; full fine-tuning gives the model itself.
    """
    record = read_json(Path(folder) / "record.json")
    cell = cell_from_config(record["config"])
    trained, place = Path(folder) / "adapter", pick_device(device)
    labels = tuple(record["audit"]["labels"]) if cell.task.classifies else ()
    base = find(cell.base.model, cell.base.revision)
    tokenizer = load_tokenizer(base, cell.base.add_tokens)
    source = base
    if cell.adapter.method == "full":  # saved as it was trained
        source, cell = find(str(trained)), cell.model_copy(update={"precision": "fp32"})
    loaded = load_base(source, cell, place, storage="quantized", labels=labels, vocab=len(tokenizer))
    model: Any = deploy(loaded.model)
    if labels:
        model.config.pad_token_id = pad_token_id(tokenizer)
    return (model if source is not base else PeftModel.from_pretrained(model, trained).eval()), tokenizer
