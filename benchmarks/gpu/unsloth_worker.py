"""unsloth in a process of its own (its import patches Transformers): loads models and times steps on request, until its input ends.

A request is a JSON line on standard input, its answer one on standard output; what unsloth prints goes to standard error. Knows
nothing of loracle: it runs with another PYTHONPATH.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import sys
import time
import traceback
from typing import Any

ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import unsloth  # noqa: E402, I001  (before transformers, as it asks)
import torch  # noqa: E402

CUDA = torch.cuda.is_available()


class Model:
    """One QLoRA model by unsloth's own fast path, with torch's AdamW and bfloat16 autocast (as ``Trainer(bf16=True)`` has it)."""

    def __init__(self, folder: str, rank: int, checkpointing: bool | str, length: int, four_bit: bool) -> None:
        self.others = torch.cuda.memory_allocated() if CUDA else 0
        self.others_reserved = torch.cuda.memory_reserved() if CUDA else 0
        model, _ = unsloth.FastLanguageModel.from_pretrained(
            model_name=folder,
            max_seq_length=length,
            dtype=torch.bfloat16,
            load_in_4bit=four_bit,
            use_gradient_checkpointing=checkpointing,
            local_files_only=True,
            use_exact_model_name=True,
        )
        self.model = unsloth.FastLanguageModel.get_peft_model(
            model,
            r=rank,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            lora_alpha=16,
            lora_dropout=0,
            bias="none",
            use_gradient_checkpointing=checkpointing,
            random_state=0,
            max_seq_length=length,
        )
        self.model.train()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=2e-4, weight_decay=0.0)

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """One optimizer step, clipped to a norm of 1."""
        placed = ids.to("cuda", non_blocking=True) if CUDA else ids
        with torch.autocast("cuda" if CUDA else "cpu", torch.bfloat16):
            loss = self.model(input_ids=placed, attention_mask=torch.ones_like(placed), labels=placed).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def facts(self) -> dict[str, Any]:
        """What was set up."""
        weights = {str(p.dtype).removeprefix("torch.") for p in self.parameters}
        return {
            "trainable_params": sum(p.numel() for p in self.parameters),
            "layers_in_4_bits": sum(getattr(p, "quant_state", None) is not None for p in self.model.parameters()),
            "adapter_dtype": " ".join(sorted(weights)),
            "unsloth": unsloth.__version__,
        }


def clear() -> None:
    """Give back what nothing refers to."""
    gc.collect()
    if CUDA:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


class Worker:
    """Models by name. ``load``, ``peak``, ``time`` and ``free`` are its requests."""

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.batches: dict[str, list[torch.Tensor]] = {}

    def load(
        self, name: str, folder: str, rank: int, checkpointing: bool | str, length: int, four_bit: bool
    ) -> dict[str, Any]:
        """Set a model up."""
        clear()
        self.models[name] = Model(folder, rank, checkpointing, length, four_bit)
        return self.models[name].facts()

    def inputs(self, batch: int, length: int, vocab: int) -> list[torch.Tensor]:
        """Ready-made batches on the host."""
        key = f"{batch}x{length}"
        if key not in self.batches:
            draw = torch.Generator().manual_seed(0)
            made = [torch.randint(2, vocab, (batch, length), generator=draw) for _ in range(4)]
            self.batches[key] = [ids.pin_memory() if CUDA else ids for ids in made]
        return self.batches[key]

    def peak(self, name: str, batch: int, length: int, vocab: int, steps: int) -> dict[str, Any]:
        """Peaks of some steps, less what lay there before the model was set up."""
        model, inputs = self.models[name], self.inputs(batch, length, vocab)
        for i in range(2):
            model.step(inputs[i % 4])
        clear()
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        losses = [float(model.step(inputs[i % 4])) for i in range(steps)]
        allocated = torch.cuda.max_memory_allocated() - model.others if CUDA else None
        reserved = torch.cuda.max_memory_reserved() - model.others_reserved if CUDA else None
        clear()
        return {"peak_allocated_bytes": allocated, "peak_reserved_bytes": reserved, "last_loss": losses[-1]}

    def time(
        self, name: str, batch: int, length: int, vocab: int, warmup: int, seconds: float, least: int, most: int
    ) -> dict[str, Any]:
        """Milliseconds of each step of a visit."""
        model, inputs = self.models[name], self.inputs(batch, length, vocab)
        for i in range(max(0, warmup - 1)):
            model.step(inputs[i % 4])
        guess = sum(self._times(model, inputs, 1))
        return {"ms": self._times(model, inputs, max(least, min(most, int(seconds * 1000 / max(guess, 1e-3)))))}

    def _times(self, model: Model, inputs: list[torch.Tensor], count: int) -> list[float]:
        if not CUDA:
            marks = [time.perf_counter()]
            for i in range(count):
                model.step(inputs[i % 4])
                marks.append(time.perf_counter())
            return [(b - a) * 1000 for a, b in itertools.pairwise(marks)]
        events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        torch.cuda.synchronize()
        events[0].record()
        for i in range(count):
            model.step(inputs[i % 4])
            events[i + 1].record()
        torch.cuda.synchronize()
        return [a.elapsed_time(b) for a, b in itertools.pairwise(events)]

    def free(self, name: str) -> dict[str, Any]:
        """Drop a model."""
        self.models.pop(name, None)
        clear()
        return {}


def main() -> None:
    """Answer until the input ends; a failed request is answered with its error."""
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        what = request.pop("what")
        try:
            answer = getattr(worker, what)(**request)
        except Exception as error:
            traceback.print_exc()
            answer = {
                "error": f"{type(error).__name__}: {error}"[:400],
                "oom": isinstance(error, torch.OutOfMemoryError),
            }
            clear()
        print(json.dumps(answer), file=ANSWERS, flush=True)


if __name__ == "__main__":
    main()
