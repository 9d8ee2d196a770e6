"""What cannot share a base: full fine-tuning and PEFT's methods other than LoRA, one run at a time through the same loop.

The model trains in quantized storage where it is quantized, by PEFT's own layers. Parameters are float32 unless the cell says
otherwise; where the base computes in 16 bits, forward passes run under autocast.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from loracle.adapters.adalora import allocation, keep_what_is_there, restore_allocation
from loracle.adapters.batch import CohortBatch
from loracle.adapters.cohort import derived_seed, initial_head
from loracle.adapters.flat import FlatParameters
from loracle.adapters.forward import head_logits, scored_hidden, token_losses
from loracle.adapters.loftq import start_from_error
from loracle.adapters.methods import INITS, check_saved, peft_config
from loracle.base.errors import LoracleError, SpecError, one_line
from loracle.models.linears import Linear
from loracle.models.load import LoadedBase
from loracle.models.precision import TORCH_DTYPES
from loracle.spec.methods import VIRTUAL
from loracle.spec.study import UNQUANTIZED, Cell
from loracle.store.files import file_sha256

NEED_VALUES = ("boft", "shira")  # PEFT makes masks or permutations of theirs at once, which the meta device cannot


@dataclass(frozen=True)
class Single:
    """The one run."""

    name: str
    trainable_params: int


@dataclass
class Steps:
    """Where the loop is."""

    first_row: int = 0


class Alone:
    """One model whose trainable parameters, whatever they are, lie in a flat buffer ``[1, P]``."""

    keeps_base = False
    captures = False  # PEFT's and the base's own code may ask the host
    packs = False
    size = 1

    def __init__(self, name: str, cell: Cell, loaded: LoadedBase, model: Any, seed: int, adapter: Any = None) -> None:
        self.cell, self.loaded, self.seed = cell, loaded, seed
        self.model = model  # without PEFT's wrapper: its layers are PEFT's, its forward its own
        self.adapter = adapter  # PEFT's model, or None for full fine-tuning
        own = [p for p in (adapter or model).parameters() if p.requires_grad]
        dtype = TORCH_DTYPES.get(cell.adapter.dtype, torch.float32)
        for parameter in own:
            parameter.data = parameter.data.to(dtype)
        self.flat = FlatParameters.adopting(own)
        self.members = [Single(name, self.flat.data.shape[1])]
        self.state = Steps()
        self._start: tempfile.TemporaryDirectory[str] | None = None
        if cell.adapter.method in INITS:
            self._keep_start()

    @property
    def virtual(self) -> bool:
        """Whether virtual tokens stand before each row, so that PEFT's own forward is needed."""
        return self.cell.adapter.method in VIRTUAL

    # -- training -----------------------------------------------------------------------------------------------------

    def begin_step(self, step: int) -> None:
        """PEFT's dropout draws from torch's stream: seed it by run and step, so that a resumed run draws the same."""
        torch.manual_seed(derived_seed(self.seed, step))

    def end_step(self, step: int) -> None:
        """AdaLoRA moves its ranks."""
        if self.cell.adapter.method == "adalora":
            self.adapter.base_model.update_and_allocate(step)

    def extra_state(self) -> dict[str, torch.Tensor]:
        """AdaLoRA's importances and masks."""
        return allocation(self.adapter) if self.cell.adapter.method == "adalora" else {}

    def restore_extra(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """What ``extra_state`` gave."""
        if self.cell.adapter.method == "adalora":
            restore_allocation(self.adapter, tensors)

    def penalty(self) -> torch.Tensor | float:
        """AdaLoRA's orthogonality (Zhang et al. 2023, equation 4), in training only; 0 for everything else."""
        if self.cell.adapter.method != "adalora":
            return 0.0
        weight = self.adapter.peft_config["default"].orth_reg_weight
        parts = [p for name, p in self.adapter.named_parameters() if ("lora_A" in name or "lora_B" in name)]
        total = torch.zeros((), device=self.flat.data.device)
        for part in parts:
            gram = part @ part.T if part.shape[0] < part.shape[1] else part.T @ part
            total = total + torch.linalg.matrix_norm(gram - torch.eye(gram.shape[0], device=gram.device))
        return weight * total / max(1, len(parts))

    # -- answering ----------------------------------------------------------------------------------------------------

    def losses(self, batch: CohortBatch) -> torch.Tensor:
        """Cross-entropy of every scored position, in nats: ``[1, N]``."""
        return token_losses(self.logits(batch), batch)

    def logits(self, batch: CohortBatch) -> torch.Tensor:
        """``[N, V]`` of the scored positions."""
        with self.autocast():
            if not self.virtual:
                return head_logits(self.model, scored_hidden(self.model, batch))
            every = self.adapter(input_ids=batch.input_ids).logits[:, -batch.input_ids.shape[1] :]
            return every.flatten(0, 1).index_select(0, batch.positions.reshape(-1))

    @contextmanager
    def answering(self, base: bool = False, alone: int | None = None) -> Iterator[int]:
        """The trained model answers; its base is gone (``keeps_base``)."""
        if base:
            raise LoracleError("a base that was trained itself cannot answer as it was: load it anew")
        yield 1

    def generate(self, prompt: Sequence[int], max_new_tokens: int, eos_ids: Sequence[int], pad_id: int) -> list[int]:
        """Greedy answer to one prompt through PEFT's own generation, for virtual tokens; without the final eos."""
        ids = torch.tensor([list(prompt)], device=self.flat.data.device)
        with self.autocast():
            found = self.adapter.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=list(eos_ids),
                pad_token_id=pad_id,
                use_cache=True,
            )[0].tolist()
        answer = found[len(prompt) :] if found[: len(prompt)] == list(prompt) else found
        return [t for t in answer if t not in set(eos_ids)]

    def as_used(self) -> None:
        """Trained copies of the base's own modules (layer norms, ``modules_to_save``) come back in the base's dtype wherever the
        adapter is loaded: round them so before they are evaluated. They have been saved as they were trained."""
        for name, parameter in (self.adapter or nn.Module()).named_parameters():
            if parameter.requires_grad and ("modules_to_save" in name or "ln_tuning_layers" in name):
                parameter.data = parameter.data.to(self.loaded.compute_dtype)

    def autocast(self) -> AbstractContextManager[Any]:
        """Forward passes are within this: nothing where the base computes in float32."""
        dtype = self.loaded.compute_dtype
        if dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.flat.data.device.type, dtype=dtype)

    # -- files --------------------------------------------------------------------------------------------------------

    def _keep_start(self) -> None:
        """PiSSA and OLoRA take their start out of the base. PEFT turns the difference into a plain LoRA of twice the rank,
        which any base takes, from the start saved here."""
        self._start = tempfile.TemporaryDirectory(prefix="loracle-")
        config = self.adapter.peft_config["default"]
        config.init_lora_weights, before = True, config.init_lora_weights
        self.adapter.save_pretrained(self._start.name)
        config.init_lora_weights = before

    def save(self, folder: Path, base: str, revision: str | None) -> str:
        """PEFT's adapter, or the whole model for full fine-tuning, in ``folder``; the SHA-256 of its weights."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.adapter is None:
            self.model.save_pretrained(folder, max_shard_size="1000GB")
            return file_sha256(folder / "model.safetensors")
        config = self.adapter.peft_config["default"]
        if self.cell.adapter.method == "adalora":
            keep_what_is_there(self.adapter)
        config.base_model_name_or_path, config.revision = base, revision
        extra = {"path_initial_model_for_weight_conversion": self._start.name} if self._start else {}
        self.adapter.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False, **extra)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card, with this machine's path as its base_model
        return file_sha256(folder / "adapter_model.safetensors")


def attach_alone(name: str, cell: Cell, loaded: LoadedBase, init_seed: int, order_seed: int) -> Alone:
    """The cell's method on the base, its initial values seeded by the run."""
    torch.manual_seed(init_seed)
    if cell.adapter.method == "full":
        loaded.model.requires_grad_(True)
        _seed_head(loaded.model, cell, init_seed)
        return Alone(name, cell, loaded, loaded.model, order_seed)
    adapter = wrap(cell, loaded, init_seed)
    return Alone(name, cell, loaded, adapter.get_base_model(), order_seed, adapter)


def wrap(cell: Cell, loaded: LoadedBase, init_seed: int) -> Any:
    """PEFT's model of the cell's method over the base, in place."""
    from peft import get_peft_model

    method = cell.adapter.method
    quantized = bool(loaded.census["quantized_share"])
    check_method(cell, loaded.model, loaded.linears, loaded.device)
    config = peft_config(cell, loaded.model, loaded.linears, init_seed)
    _seed_head(loaded.model, cell, init_seed)
    with _refusing(method):
        adapter: Any = get_peft_model(loaded.model, config)
    if method == "loftq" and loaded.device.type != "meta":  # there are no values to compare
        start_from_error(adapter, cell, loaded)
    if method == "adalora" and quantized:
        _own_outputs(loaded)
    adapter.train()
    return adapter


def check_method(cell: Cell, model: nn.Module, linears: Sequence[Linear], device: torch.device) -> None:
    """Raise ``SpecError`` for what cannot work on this base; ``model`` may be one on the meta device, without quantization."""
    method, quantized = cell.adapter.method, bool(cell.precision_names - UNQUANTIZED)
    if method == "olora" and any(type(model.get_submodule(line.name)).__name__ == "Conv1D" for line in linears):
        raise SpecError(
            "PEFT cannot put olora on this base: it takes Conv1D's weight for its transpose", "adapter.method"
        )
    if method in INITS and quantized:
        raise SpecError(
            f"{method} starts from the base's own weights: quantize afterwards, or use loftq here", "precision"
        )
    if method in INITS and (cell.task.classifies or cell.adapter.modules_to_save or cell.base.add_tokens):
        raise SpecError(
            f"PEFT turns {method} into a LoRA when it is saved, and cannot where modules are trained beside it "
            "(a classification head, modules_to_save, add_tokens)",
            "adapter.method",
        )
    if method == "loftq" and not quantized:
        raise SpecError("loftq makes up for quantization, and this base has none", "precision")
    if method == "loftq" and getattr(model.config, "quantization_config", None) is not None:
        raise SpecError(
            "loftq compares with the base before quantization, and this one comes quantized", "adapter.method"
        )
    if method == "dora" and "int8" in cell.precision_names and device.type == "cpu":
        raise SpecError("PEFT's dora loses the constants of int8 layers on a CPU: use nf4, or a GPU", "precision")
    if method == "prefix_tuning" and cell.train.gradient_checkpointing:
        raise SpecError(
            "prefix_tuning hands keys and values to every layer, which checkpointing drops: switch it off",
            "train.gradient_checkpointing",
        )
    check_saved(cell, model)


@contextmanager
def _refusing(method: str) -> Iterator[None]:
    """What PEFT refuses, as one line."""
    try:
        yield
    except (ValueError, TypeError, NotImplementedError, KeyError, RuntimeError) as error:
        raise SpecError(f"PEFT cannot put {method} on this base: {one_line(error)}", "adapter.method") from None


def _own_outputs(loaded: LoadedBase) -> None:
    """PEFT's AdaLoRA adds into a quantized layer's output in place, and on a CPU bitsandbytes gives it a view: copy it first."""
    for name in loaded.assignment:
        layer = getattr(loaded.model.get_submodule(name), "base_layer", None)
        if layer is not None and not layer.weight.is_floating_point():
            layer.register_forward_hook(lambda module, inputs, output: output.clone())


def _seed_head(model: nn.Module, cell: Cell, seed: int) -> None:
    """A new classification head, as the cohort's: normal with the model's ``initializer_range``, seeded by the run."""
    if not cell.task.classifies:
        return
    score: Any = model.score
    with torch.no_grad():
        score.weight.copy_(initial_head(model, tuple(score.weight.shape), seed))


def count_trainable(cell: Cell, model: nn.Module, linears: Sequence[Linear]) -> int:
    """Parameters that the cell's method trains, from ``model`` on the meta device (changed in place), without any weights."""
    if cell.adapter.method == "full":
        return sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    from peft import get_peft_model

    config = peft_config(cell, model, linears, 0)
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # no decomposition of weights that are not there
    place = "cpu" if cell.adapter.method in NEED_VALUES else "meta"
    if place == "cpu":
        model.to_empty(device=place)  # untouched memory is not taken
    with torch.device(place), _refusing(cell.adapter.method):
        adapter = get_peft_model(model, config, low_cpu_mem_usage=place == "meta")
    return sum(p.numel() for p in adapter.parameters() if p.requires_grad)
