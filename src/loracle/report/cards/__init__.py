"""MODEL_CARD.md and DATA_CARD.md: the metadata that the Hub reads, and what a reader should know, from records alone.

huggingface_hub writes the metadata and is imported when ``render`` is called; no network is asked. Whose adapter the
model card is about: ``subject.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loracle.base.errors import StoreError
from loracle.report.cards import data as data_card
from loracle.report.cards import model as model_card
from loracle.report.columns import Table
from loracle.report.evidence import StudyData
from loracle.store.files import read_json
from loracle.store.layout import StudyFolder
from loracle.verdict.entries import Entry

__all__ = ["render"]


def render(
    data: StudyData, entries: Sequence[Entry], tables: Mapping[str, Table], place: StudyFolder
) -> dict[str, str]:
    """File name → text of both cards."""
    return {
        "MODEL_CARD.md": model_card.render(data, entries, tables["groups"], _base_licences(place)),
        "DATA_CARD.md": data_card.render(data),
    }


def _base_licences(place: StudyFolder) -> dict[str, str | None]:
    """Base's name → the licence that the inspect job found beside it; empty where its record cannot be read."""
    try:
        record = read_json(place.job("inspect") / "record.json")
    except (StoreError, OSError):
        return {}
    bases = record.get("bases") if isinstance(record, Mapping) else None
    return {str(b.get("name")): b.get("licence") for b in (bases or {}).values() if isinstance(b, Mapping)}
