"""The rivals: Transformers + PEFT + bitsandbytes, as their users set them up and matched to ours, in a plain training loop.

``USUAL`` is the common QLoRA recipe: ``prepare_model_for_kbit_training`` (everything unquantized to float32, checkpointing on),
PEFT's float32 adapters, autocast as ``Trainer(bf16=True)`` has it, a paged optimizer, the base's own dropout left on, ``labels=``.
``MATCHED`` differs from ours in nothing but the code: no helper, no checkpointing, no dropout, one dtype, torch's AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpu.timing import Arm
from loracle.tasks.rows import Row


@dataclass(frozen=True)
class Recipe:
    """How a rival is set up. ``compile``: None, or a mode of ``torch.compile`` (the loss is then taken outside the model)."""

    quantized: bool = True
    helper: bool = False
    checkpointing: bool = False
    optimizer: str = "adamw"
    base_dropout: bool = False
    adapter_dropout: float = 0.0
    autocast: bool = False
    adapter_dtype: torch.dtype = torch.float32
    compile: str | None = None
    mask: bool = False
    learning_rate: float = 2e-4
    attention: str = "sdpa"


MATCHED = Recipe()
USUAL = Recipe(
    helper=True,
    checkpointing=True,
    optimizer="paged_adamw_32bit",
    base_dropout=True,
    adapter_dropout=0.05,
    autocast=True,
    mask=True,
)
LORA = replace(MATCHED, quantized=False)
USUAL_LORA = replace(USUAL, quantized=False, helper=False, checkpointing=False, optimizer="adamw")


def load(folder: Path, recipe: Recipe, device: torch.device) -> Any:
    """The base by ``from_pretrained``, as the recipe has it."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    quantization = None
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if recipe.quantized:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        quantization_config=quantization,
        dtype=dtype,
        device_map={"": 0 if device.type == "cuda" else "cpu"},
        attn_implementation=recipe.attention,
    )
    model.config.use_cache = False
    return model


def adapt(model: Any, recipe: Recipe, targets: Sequence[str] | str, rank: int, alpha: float) -> Any:
    """The helper where the recipe has it, checkpointing, and PEFT's LoRA."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if recipe.helper:
        model = prepare_model_for_kbit_training(
            model,
            use_gradient_checkpointing=recipe.checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": True},  # what it does by default, said aloud
        )
    elif recipe.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=recipe.adapter_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        bias="none",
        task_type="CAUSAL_LM",
        fan_in_fan_out=model.config.model_type == "gpt2" and not recipe.quantized,
    )
    model = get_peft_model(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(recipe.adapter_dtype)
    model.train()
    if not recipe.base_dropout:
        silence(model, recipe.adapter_dropout)
    return model


def silence(model: nn.Module, adapter_dropout: float) -> None:
    """The base's own dropout off; the adapters' stays."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and "lora_dropout" not in name:
            module.p = 0.0
        for attribute in ("attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop"):
            if isinstance(module.__dict__.get(attribute), float):
                setattr(module, attribute, 0.0)


def optimizer_of(recipe: Recipe, parameters: Iterable[nn.Parameter], device: torch.device) -> Any:
    """torch's AdamW, or bitsandbytes' paged one (which a CPU has not: there it is bitsandbytes' unpaged)."""
    parameters = list(parameters)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0)
    from bitsandbytes.optim import AdamW32bit, PagedAdamW32bit

    kind = PagedAdamW32bit if device.type == "cuda" else AdamW32bit
    return kind(parameters, lr=recipe.learning_rate, weight_decay=0.0)


class RivalRun:
    """A PEFT model in training. ``inputs``: ready-made token batches ``[b, T]`` on the host."""

    def __init__(self, model: Any, recipe: Recipe, inputs: Sequence[torch.Tensor], device: torch.device) -> None:
        self.model, self.recipe, self.device = model, recipe, device
        self.inputs = [ids.pin_memory() if device.type == "cuda" else ids for ids in inputs]
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = optimizer_of(recipe, self.parameters, device)
        self.facts: dict[str, Any] = {"optimizer": recipe.optimizer}
        self.loss_of: Callable[[torch.Tensor], torch.Tensor] = self._outside if recipe.compile else self._inside
        if recipe.compile:
            self._compile(True)

    def _compile(self, whole: bool) -> None:
        torch._dynamo.config.cache_size_limit = 64
        mode = None if self.recipe.compile == "default" else self.recipe.compile
        self.loss_of = torch.compile(self._outside, fullgraph=whole, dynamic=False, mode=mode)
        self.facts["whole_graph"] = whole

    def _inside(self, ids: torch.Tensor) -> torch.Tensor:
        mask = torch.ones_like(ids) if self.recipe.mask else None
        return self.model(input_ids=ids, attention_mask=mask, labels=ids).loss

    def _outside(self, ids: torch.Tensor) -> torch.Tensor:
        logits = self.model(input_ids=ids).logits[:, :-1]
        return nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())

    def _autocast(self) -> AbstractContextManager[Any]:
        cuda = self.device.type == "cuda"
        return torch.autocast("cuda", torch.bfloat16) if self.recipe.autocast and cuda else nullcontext()

    def loss(self, i: int) -> torch.Tensor:
        """Forward and backward of batch ``i``."""
        if self.recipe.compile:
            torch.compiler.cudagraph_mark_step_begin()
        ids = self.inputs[i % len(self.inputs)].to(self.device, non_blocking=True)
        try:
            with self._autocast():
                loss = self.loss_of(ids)
        except Exception:
            if not self.facts.get("whole_graph") or i:
                raise
            torch._dynamo.reset()  # it does not trace as one graph here: with breaks, then
            self._compile(False)
            loss = self.loss_of(ids)
        loss.backward()
        return loss.detach()

    def step(self, i: int) -> None:
        """One optimizer step, clipped to a norm of 1 as ``Trainer`` and ours do."""
        self.loss(i)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def close(self) -> None:
        """Drop everything that lies on the device."""
        compiled = self.recipe.compile
        self.__dict__.clear()
        if compiled:
            torch._dynamo.reset()


def token_batches(rows: Sequence[Row], batch_size: int, count: int) -> list[torch.Tensor]:
    """``count`` batches ``[b, T]`` of equally long rows."""
    ids = torch.tensor([row.input_ids for row in rows])
    return [ids[torch.arange(i * batch_size, (i + 1) * batch_size) % len(ids)] for i in range(count)]


def arm(
    name: str,
    folder: Path,
    recipe: Recipe,
    targets: Sequence[str] | str,
    rank: int,
    rows: Sequence[Row],
    batch_size: int,
    device: torch.device,
    alpha: float = 16.0,
) -> Arm:
    """A rival as an arm; it stays set up between rounds."""
    found = Arm(name, lambda: begin(), storage_of(recipe), 1, recipe.checkpointing, keep=True, warmup=3)

    def begin() -> RivalRun:
        model = adapt(load(folder, recipe, device), recipe, targets, rank, alpha)
        return RivalRun(model, recipe, token_batches(rows, batch_size, 4), device)

    return found


def storage_of(recipe: Recipe) -> str:
    """How the base's weights lie."""
    return "quantized" if recipe.quantized else "unquantized"


# -- whole runs, on rows of their own lengths ----------------------------------------------------------------------------


def padded(rows: Sequence[Row], pad_id: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``(input_ids, attention_mask, labels)``, each ``[b, T]``, as a collator makes them."""
    from loracle.tasks.collate import collate

    batch = collate(rows, pad_id)
    lengths = torch.tensor([len(row.input_ids) for row in rows]).unsqueeze(1)
    mask = (torch.arange(batch.input_ids.shape[1]) < lengths).long()
    return batch.input_ids, mask, batch.labels


def train(
    model: Any,
    recipe: Recipe,
    batches: Iterable[Sequence[Row]],
    rates: Sequence[float],
    pad_id: int,
    device: torch.device,
) -> list[float]:
    """All optimizer steps at the given learning rates; the loss of each, read back at the end."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer_of(recipe, parameters, device)
    cast = recipe.autocast and device.type == "cuda"
    losses = []
    for rate, rows in zip(rates, batches, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids, mask, labels = (part.to(device) for part in padded(rows, pad_id))
        with torch.autocast("cuda", torch.bfloat16) if cast else nullcontext():
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


@torch.no_grad()
def evaluate(
    model: Any, recipe: Recipe, rows: Sequence[Row], batch_size: int, pad_id: int, device: torch.device
) -> float:
    """Mean loss over the rows' scored tokens, as ``Trainer.evaluate`` goes through them."""
    model.eval()
    cast = recipe.autocast and device.type == "cuda"
    total, tokens = torch.zeros((), device=device), 0
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        ids, mask, labels = (part.to(device) for part in padded(some, pad_id))
        count = int((labels[:, 1:] != -100).sum())
        with torch.autocast("cuda", torch.bfloat16) if cast else nullcontext():
            total += model(input_ids=ids, attention_mask=mask, labels=labels).loss * count
        tokens += count
    return float(total) / max(1, tokens)
