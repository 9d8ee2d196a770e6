"""A model to be evaluated: a base in its precision and, if there is one, a PEFT adapter on it, ready to answer.

Not covered: which base and precision a run or an adapter has (the command says so), and data.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loracle.adapters.alone import Alone
from loracle.adapters.forward import Answerer, Untrained
from loracle.base.errors import ModelError, one_line
from loracle.models.load import LoadedBase, load_base
from loracle.models.precision import deploy
from loracle.models.source import Source
from loracle.spec.methods import METHODS, VIRTUAL
from loracle.spec.study import Cell
from loracle.store.files import read_json

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Target:
    """``whole`` is the model as Transformers or PEFT has it; ``who`` answers for it."""

    loaded: LoadedBase
    whole: Any
    who: Answerer


class Deployed(Untrained):
    """A model as it is. Parameters of another dtype than the base's answer under autocast, as they were trained."""

    def __init__(self, model: Any, device: torch.device, dtype: torch.dtype | None) -> None:
        super().__init__(model)
        self.device, self.dtype = device, dtype

    def answering(self, base: bool = False, alone: int | None = None) -> AbstractContextManager[int]:
        """The model answers, whoever is asked for."""
        return self._answering()

    @contextmanager
    def _answering(self) -> Iterator[int]:
        with nullcontext() if self.dtype is None else torch.autocast(self.device.type, dtype=self.dtype):
            yield 1


def load_target(
    source: Source,
    cell: Cell,
    adapter: Path | None,
    device: torch.device,
    labels: Sequence[str] = (),
    vocab: int | None = None,
) -> Target:
    """The base in true quantized storage and evaluation mode, ``adapter`` on it by PEFT. ``labels``, ``vocab``: ``load_base``.

    Raises ``ModelError`` for an adapter that PEFT cannot load whole.
    """
    method = method_of(adapter) if adapter else cell.adapter.method
    cell = cell.model_copy(update={"adapter": cell.adapter.model_copy(update={"method": method})})
    loaded = load_base(source, cell, device, storage="quantized", labels=labels, vocab=vocab)
    model = deploy(loaded.model)
    if adapter is None:
        return Target(loaded, model, Untrained(model))
    whole = with_adapter(model, adapter, device)
    if method in VIRTUAL:
        whole.prompt_encoder.requires_grad_(True)  # what answers through PEFT's own forward is found by its gradient
        return Target(loaded, whole, Alone("target", cell, loaded, whole.get_base_model(), 0, whole))
    mixed = method != "lora" and loaded.compute_dtype != torch.float32
    return Target(loaded, whole, Deployed(whole.get_base_model(), device, loaded.compute_dtype if mixed else None))


def method_of(adapter: Path) -> str:
    """The method that ``adapter_config.json`` names: of several that PEFT stores alike, the first."""
    config = read_json(adapter / "adapter_config.json")
    kind = config.get("peft_type")
    if config.get("use_dora"):
        return "dora"
    for name, method in METHODS.items():
        if method.peft == kind:
            return name
    return str(kind).lower()


def with_adapter(model: Any, adapter: Path, device: torch.device) -> Any:
    """PEFT's model of ``adapter`` on ``model``, in evaluation mode; every one of its tensors must be in the file."""
    from peft import PeftModel

    if not (adapter / WEIGHTS).is_file():
        raise ModelError(f"{adapter}: no {WEIGHTS} in this folder (other formats can run code and are not read)")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = PeftModel.from_pretrained(model, str(adapter), torch_device=str(device))
    except Exception as error:
        raise ModelError(f"{adapter}: PEFT cannot put this adapter on this base: {one_line(error)}") from None
    if any("missing adapter keys" in str(warning.message) for warning in caught):
        raise ModelError(f"{adapter}: {WEIGHTS} lacks tensors that adapter_config.json asks for on this base")
    return found.eval()
