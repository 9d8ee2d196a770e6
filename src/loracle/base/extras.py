"""Optional packages: is one there, and if not, what to say. Nothing is imported to find out."""

from __future__ import annotations

from importlib.util import find_spec

from loracle.base.errors import SpecError

# Tracker name → (modules that it needs, what installs them).
TRACKERS = {
    "wandb": (("wandb",), "'loracle[track]'"),
    "tensorboard": (("tensorboard",), "'loracle[track]'"),
    "mlflow": (("mlflow",), "mlflow"),
    "trackio": (("trackio",), "trackio"),
}


def require(modules: tuple[str, ...], what: str, where: str, install: str) -> None:
    """``SpecError`` at ``where`` unless all top-level ``modules`` can be imported; ``install`` is what pip should get."""
    for module in modules:
        if find_spec(module) is None:
            raise SpecError(f"{what} needs the package {module}, which is not installed: pip install {install}", where)


def require_trackers(names: tuple[str, ...]) -> None:
    """``SpecError`` unless the packages of all trackers in ``run.track`` are there."""
    for name in names:
        modules, install = TRACKERS[name]
        require(modules, f"the tracker '{name}'", "run.track", install)
