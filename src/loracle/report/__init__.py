"""The report of a study: tables, figures, Markdown and one HTML page, from records alone. Never loads torch.

``write_report(folder)`` is the way in. pyarrow, scipy, matplotlib and Jinja2 are imported when it is called, so that
importing this package costs nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loracle.report.budget import Asked

__all__ = ["primary_verdicts", "write_report"]


def write_report(folder: Path, asked: Asked | None = None) -> Path:
    """Write ``report/`` of a study folder and return the path of ``report/index.html``. ``asked``: a memory budget to
    recommend within, by what the folder has of forecasts for it (``loracle.study.forecasts``).

    Run twice on the same records it writes the same bytes. A study with no plan is a ``StoreError``; runs that are
    missing or did not finish are reported as such.
    """
    from loracle.report.write import write_report as write

    return write(Path(folder), asked)


def primary_verdicts(folder: Path) -> list[dict[str, Any]]:
    """Entries of verdicts.json of a study folder's primary question, as its records stand now."""
    from loracle.report.evidence import read_study
    from loracle.verdict import decide_primary

    return decide_primary(read_study(Path(folder)).evidence())
