"""loracle: how many bits, what rank, which layers, will it fit, and is the difference real?

From Python: ``plan`` and ``run`` a study, ``write_report`` of its folder, read it as pandas frames with ``records``, ``curves``,
``tables`` and ``verdicts``, ask for its ``recommendation``, ``load`` the model and tokenizer of a finished run.
(``loracle.report`` and ``loracle.train`` are packages: what the commands of that name do is ``write_report`` and a ``run`` of one cell.)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from loracle.base.version import __version__

if TYPE_CHECKING:
    from loracle.api import plan, run
    from loracle.report import write_report
    from loracle.report.frames import curves, recommendation, records, tables, verdicts

__all__ = [
    "__version__",
    "curves",
    "load",
    "plan",
    "recommendation",
    "records",
    "run",
    "tables",
    "verdicts",
    "write_report",
]

# What is loaded only when it is asked for: torch for ``load``, pandas for the frames.
_PLACES = {
    "load": ("loracle.evaluate.reload", "load_run"),
    "plan": ("loracle.api", "plan"),
    "run": ("loracle.api", "run"),
    "write_report": ("loracle.report", "write_report"),
    **{name: ("loracle.report.frames", name) for name in ("curves", "recommendation", "records", "tables", "verdicts")},
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        module, attribute = _PLACES[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'loracle' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
