"""Adapters as they are at the evaluation points, for the likeness of updates along training (``diagnose.along_training``)."""

from __future__ import annotations

from collections.abc import Sequence

from loracle.adapters.cohort import Cohort
from loracle.adapters.peft_files import save_adapter
from loracle.models.load import LoadedBase
from loracle.store.layout import StudyFolder


def keep(folder: StudyFolder, runs: Sequence[str], loaded: LoadedBase, cohort: Cohort, step: int) -> None:
    """Every run's adapter after ``step``, as PEFT's files; a training that is resumed writes the same ones again."""
    for k, run in enumerate(runs):
        save_adapter(
            folder.along(run, step),
            cohort.adapter(k),
            cohort.members[k],
            loaded.linears,
            base=loaded.source.resolved,
            revision=loaded.source.revision,
        )
