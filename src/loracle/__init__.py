"""loracle: how many bits, what rank, which layers, will it fit, and is the difference real?

``loracle.load(RUN)`` gives the model and tokenizer of a finished run; everything else is the ``loracle`` command.
"""

from importlib import import_module
from typing import Any

from loracle.base.version import __version__

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":  # torch is loaded only when it is asked for
        return import_module("loracle.evaluate.reload").load_run
    raise AttributeError(f"module 'loracle' has no attribute '{name}'")
