"""Where a result came from: an allow-list. No environment, no tokens, no host, no user, no command line."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from loracle.base.version import __version__

# Bump when a change may alter a run's numbers: part of every run's identity.
ENGINE = 2

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors", "tokenizers", "numpy")


def versions() -> dict[str, str | None]:
    """Versions of loracle, Python and the packages that results depend on; null where one is not installed."""
    found: dict[str, str | None] = {"loracle": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def provenance(device: str, threads: int | None = None) -> dict[str, Any]:
    """The provenance block of a record. ``device`` names hardware (``cpu``, ``NVIDIA H200``), never a host."""
    return {
        "engine": ENGINE,
        "versions": versions(),
        "system": platform.system(),
        "machine": platform.machine(),
        "device": device,
        "threads": threads,
    }


def without_credentials(url: str) -> str:
    """A URL without user, password, query and fragment; other text as it is."""
    parts = urlsplit(url)
    if not parts.scheme or not parts.netloc:
        return url
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port else ""
    return urlunsplit((parts.scheme, host + port, parts.path, "", ""))
