"""Where things lie inside a study folder. Every name is checked, so nothing is written outside it."""

from __future__ import annotations

from pathlib import Path

from loracle.base.errors import StoreError
from loracle.base.names import is_safe


class StudyFolder:
    """Paths inside one study folder (docs/files.md). Holds no state and touches no disk by itself."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def _named(self, *parts: str) -> Path:
        for part in parts:
            if not is_safe(part):
                raise StoreError(f"'{part}' is not a safe name (a-z, 0-9, '.', '_', '-')")
        return self.root.joinpath(*parts)

    @property
    def study_yaml(self) -> Path:
        return self.root / "study.yaml"

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def lock(self) -> Path:
        return self.root / "study.lock"

    def eval_set(self, key: str | None = None) -> Path:
        """The tokenized evaluation set; ``key`` only where a study has several."""
        return self.root / "eval.parquet" if key is None else self._named(f"eval-{key}.parquet")

    def job(self, job_id: str) -> Path:
        return self._named("jobs", job_id)

    def cohort(self, cohort_id: str) -> Path:
        return self._named("cohorts", cohort_id)

    def run(self, run_id: str) -> Path:
        return self._named("runs", run_id)

    def run_record(self, run_id: str) -> Path:
        return self.run(run_id) / "record.json"

    def probe(self, cell_id: str) -> Path:
        return self._named("probes", cell_id)

    @property
    def similarity(self) -> Path:
        return self.root / "diagnose" / "similarity.json"

    @property
    def agreement(self) -> Path:
        return self.root / "diagnose" / "agreement.json"

    @property
    def sensitivity(self) -> Path:
        return self.root / "diagnose" / "sensitivity.json"

    @property
    def sensitivity_sweeps(self) -> Path:
        return self.root / "diagnose" / "sensitivity_sweeps.json"

    @property
    def mixed_precision(self) -> Path:
        return self.root / "diagnose" / "mixed_precision.json"

    @property
    def report(self) -> Path:
        return self.root / "report"
