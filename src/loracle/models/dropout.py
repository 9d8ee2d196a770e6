"""The base model's own dropout: off unless a study asks for it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

ATTRIBUTES = ("p", "dropout", "attention_dropout", "attn_dropout", "resid_dropout", "embd_pdrop")


def _probabilities(model: nn.Module) -> Iterator[tuple[nn.Module, str, float]]:
    """(module, attribute, probability) of everything in ``model`` that drops."""
    for module in model.modules():
        for attribute in ATTRIBUTES:
            value = module.__dict__.get(attribute)
            if isinstance(value, float) and not isinstance(module, nn.ModuleList):
                yield module, attribute, value


def drops(model: nn.Module) -> bool:
    """Whether some dropout of the base is on."""
    return any(value > 0 for _, _, value in _probabilities(model))


def set_base_dropout(model: nn.Module, *, on: bool) -> None:
    """Switch the base's own dropout by its probabilities, without ``eval()``.

    On a CPU with AVX512-BF16, ``eval()`` makes bitsandbytes repack 4-bit weights for a bfloat16 kernel, with rounded
    constants and no exact way back: training must never pass through it.
    """
    for module, attribute, value in list(_probabilities(model)):
        kept = module.__dict__.setdefault("_loracle_dropout", {})
        kept.setdefault(attribute, value)
        module.__dict__[attribute] = kept[attribute] if on else 0.0
