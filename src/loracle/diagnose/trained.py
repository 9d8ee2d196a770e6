"""A trained adapter on a base that stays plain: hooks add scale·B·A·x to the layers it has, so a sweep can quantize under it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from loracle.adapters.peft_files import ModuleAdapter, read_adapter


@contextmanager
def wearing(model: Any, adapter: Path) -> Iterator[None]:
    """Within the block the model answers with the LoRA adapter in the folder; its weights are its own throughout."""
    hooks = []
    try:
        for name, own in read_adapter(adapter).items():
            module = model.get_submodule(name)
            hooks.append(module.register_forward_hook(_update(own, module.weight)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _update(own: ModuleAdapter, weight: torch.Tensor) -> Any:
    """``a: [r, d_in]``, ``b: [d_out, r]`` in the base's dtype."""
    a, b = own.a.to(weight), (own.scale * own.b).to(weight)

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        return output + (inputs[0] @ a.T) @ b.T

    return hook
