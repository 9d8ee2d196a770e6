"""What a decision is made from: plan, records and per-item scores as plain values, and runs paired by seed.

A run that did not end as ``done`` never just disappears: ``Pairing.lost`` names each missing seed with its
reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from loracle.verdict.paired import Array

Record = Mapping[str, Any]

WAITING = {"not run", "interrupted"}


@dataclass(frozen=True)
class RunScores:
    """One run's predictions.parquet: ``items`` (int), ``loss`` (nats, summed), ``tokens``, 0..1 scores by
    name.

    A score is NaN where the item was not generated. ``groups`` is each item's group, None where it has none.
    """

    items: npt.NDArray[np.int64]
    loss: Array
    tokens: npt.NDArray[np.int64]
    scores: Mapping[str, Array] | None = None
    groups: Sequence[str | None] | None = None


@dataclass(frozen=True)
class StudyEvidence:
    """All that ``decide`` reads. ``questions``: ``{name, margin or None, primary, compare}``; ``sensitivity``: the sweeps
    of sensitivity_sweeps.json, which only the hypotheses and failure modes read.
    """

    plan: Record
    records: Sequence[Record]
    scores: Mapping[str, RunScores]
    similarity: Record | None
    agreement: Record | None
    probes: Sequence[Record]
    questions: Sequence[Record]
    seeds: Sequence[int] = field(default_factory=tuple)
    sensitivity: Record | None = None

    @cached_property
    def cells(self) -> dict[str, Record]:
        return {str(c["id"]): c for c in self.plan.get("cells", [])}

    @cached_property
    def runs(self) -> dict[str, dict[int, Record]]:
        """``{cell: {seed: record}}`` of runs that count (role "run"), whatever their status."""
        found: dict[str, dict[int, Record]] = {}
        for record in self.records:
            if record.get("role", "run") == "run":
                found.setdefault(str(record["cell"]), {})[int(record["seed"])] = record
        return found

    def planned_seeds(self, cell: str) -> list[int]:
        """Seeds of a cell in the order of the study: planned ones, then any that have a record."""
        planned = [
            int(r["seed"]) for r in self.plan.get("runs", []) if r["cell"] == cell and r.get("role", "run") == "run"
        ]
        known = {*planned, *self.runs.get(cell, {})}
        order = [int(s) for s in self.seeds]
        return [s for s in order if s in known] + sorted(known - set(order))

    def state(self, cell: str, seed: int) -> str | None:
        """None for a usable run; else why it is not (its status, or what is missing)."""
        record = self.runs.get(cell, {}).get(seed)
        if record is None:
            return "not run"
        if record.get("status") != "done":
            return str(record.get("status", "unknown"))
        scores = self.scores.get(str(record["id"]))
        if scores is None:
            return "no predictions"
        return None if np.all(np.isfinite(scores.loss)) else "loss not finite"


@dataclass(frozen=True)
class Pairing:
    """An arm and its reference, paired by seed; ``lost`` are seeds that cannot be, in words.

    ``ended`` are the study's seeds, in order, up to the first whose runs are still to come (for looks).
    """

    arm: Record
    reference: Record
    seeds: tuple[int, ...]
    lost: tuple[str, ...]
    diverged: bool
    unlike: tuple[str, ...]
    ended: tuple[int, ...]

    def take(self, n: int | None) -> tuple[int, ...]:
        """The paired ones of the study's first ``n`` seeds (a look at n), or all."""
        return self.seeds if n is None else tuple(s for s in self.seeds if s in self.ended[:n])

    def run_ids(self, evidence: StudyEvidence, seeds: Sequence[int]) -> list[str]:
        cells = (str(self.arm["id"]), str(self.reference["id"]))
        return [str(evidence.runs[c][s]["id"]) for c in cells for s in seeds]


def pair(evidence: StudyEvidence, arm: Record, reference: Record) -> Pairing:
    """Pair two cells' runs by seed."""
    a, b = str(arm["id"]), str(reference["id"])
    seeds, lost, unlike, ended = [], [], [], []
    diverged = waiting = False
    order = evidence.planned_seeds(a)
    for seed in [*order, *(s for s in evidence.planned_seeds(b) if s not in order)]:
        states = {"arm": evidence.state(a, seed), "reference": evidence.state(b, seed)}
        bad = {k: v for k, v in states.items() if v}
        waiting = waiting or bool(WAITING & set(bad.values()))
        ended += [] if waiting else [seed]
        diverged = diverged or "diverged" in bad.values()
        if bad:
            lost.append(f"seed {seed} ({', '.join(f'{k} {v}' for k, v in bad.items())})")
            continue
        seeds.append(seed)
        unlike += _unlike_seeds(evidence.runs[a][seed], evidence.runs[b][seed])
    return Pairing(arm, reference, tuple(seeds), tuple(lost), diverged, tuple(dict.fromkeys(unlike)), tuple(ended))


def _unlike_seeds(a: Record, b: Record) -> list[str]:
    """Seeds of one pair that should be equal and are not: then the pair is no pair."""
    left, right = a.get("config", {}), b.get("config", {})
    return [k for k in ("init_seed", "order_seed") if k in left and k in right and left[k] != right[k]]


def losses(evidence: StudyEvidence, pairing: Pairing, seeds: Sequence[int]) -> tuple[Array, Array, Array]:
    """Summed losses of arm and reference ``[n_seeds, n_items]`` and ``tokens [n_items]`` over the common
    items.
    """
    arm, reference = _scores(evidence, pairing, seeds)
    items = _common([*arm, *reference])
    tokens = np.stack([_pick(s, s.tokens, items) for s in [*arm, *reference]])
    if not np.all(tokens == tokens[0]):
        raise ValueError("the two were scored on different tokens of the same items")
    return _matrix(arm, items), _matrix(reference, items), tokens[0]


def task_scores(evidence: StudyEvidence, pairing: Pairing, seeds: Sequence[int], name: str) -> tuple[Array, Array]:
    """Scores of arm and reference ``[n_seeds, n_items]`` over the items that every run generated."""
    arm, reference = _scores(evidence, pairing, seeds)
    if not all(s.scores and name in s.scores for s in [*arm, *reference]):
        raise ValueError(f"not every run has {name}")
    items = _common([*arm, *reference], name)
    stacked = [np.stack([_pick(s, (s.scores or {})[name], items) for s in group]) for group in (arm, reference)]
    return stacked[0], stacked[1]


def run_metrics(evidence: StudyEvidence, pairing: Pairing, seeds: Sequence[int], name: str) -> tuple[Array, Array]:
    """A figure of the records' ``metrics`` for arm and reference, ``[n_seeds]`` each."""
    found = []
    for cell in (pairing.arm, pairing.reference):
        records = [evidence.runs[str(cell["id"])][s] for s in seeds]
        found.append([(r.get("metrics") or {}).get(name) for r in records])
    if any(not isinstance(x, int | float) for group in found for x in group):
        raise ValueError(f"not every run has {name}")
    return np.asarray(found[0], float), np.asarray(found[1], float)


def has_score(evidence: StudyEvidence, name: str) -> bool:
    """Whether any run has the score, by item or in its record's ``metrics``."""
    if any(s.scores is not None and name in s.scores for s in evidence.scores.values()):
        return True
    return any((r.get("metrics") or {}).get(name) is not None for r in evidence.records)


def _scores(evidence: StudyEvidence, pairing: Pairing, seeds: Sequence[int]) -> tuple[list[RunScores], list[RunScores]]:
    def of(cell: Record) -> list[RunScores]:
        return [evidence.scores[str(evidence.runs[str(cell["id"])][s]["id"])] for s in seeds]

    return of(pairing.arm), of(pairing.reference)


def _common(runs: Sequence[RunScores], score: str | None = None) -> npt.NDArray[np.int64]:
    sets = []
    for run in runs:
        keep = np.ones(len(run.items), bool) if score is None else np.isfinite((run.scores or {})[score])
        sets.append(set(np.asarray(run.items)[keep].tolist()))
    common = sorted(set.intersection(*sets)) if sets else []
    if len(common) < 2:
        raise ValueError("fewer than two evaluation items are common to the runs")
    return np.asarray(common, np.int64)


def _pick(run: RunScores, values: npt.NDArray[Any], items: npt.NDArray[np.int64]) -> Array:
    order = np.argsort(run.items, kind="stable")
    return np.asarray(np.asarray(values)[order][np.searchsorted(np.asarray(run.items)[order], items)], float)


def _matrix(runs: Sequence[RunScores], items: npt.NDArray[np.int64]) -> Array:
    return np.stack([_pick(s, s.loss, items) for s in runs])


def lacks_score(evidence: StudyEvidence, cell: str, name: str) -> bool:
    """Whether runs of the cell were scored, and not by this score: its task has none such."""
    records = evidence.runs.get(cell, {}).values()
    known = [r.get("metrics") or {} for r in records if any(v is not None for v in (r.get("metrics") or {}).values())]
    items = [s.scores for r in records if (s := evidence.scores.get(str(r["id"]))) is not None and s.scores]
    return bool(known) and not any(name in found for found in [*known, *items])


def item_groups(
    evidence: StudyEvidence, pairing: Pairing, seeds: Sequence[int], score: str | None = None
) -> list[str | None]:
    """Each common item's group, in the order of ``losses`` (or of ``task_scores`` of ``score``).

    A ``ValueError`` where no run names groups or two runs name another one for the same item.
    """
    arm, reference = _scores(evidence, pairing, seeds)
    runs = [*arm, *reference]
    named = [dict(zip(np.asarray(r.items).tolist(), r.groups, strict=True)) for r in runs if r.groups is not None]
    if not named:
        raise ValueError("no run names groups")
    items = _common(runs, score).tolist()
    found = [[one.get(item) for item in items] for one in named]
    if any(other != found[0] for other in found):
        raise ValueError("the runs name different groups for the same item")
    return found[0]
