"""Known ways in which a study goes wrong, recognised from its records: one function a mode.

Each says whether the mode is there (with the figures that show it), not there, or could not be checked, and why. A mode that was
not found is not proven absent: the thresholds below are for signs that nobody should overlook.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loracle.verdict import entries
from loracle.verdict.compared import comparisons
from loracle.verdict.confounds import listed
from loracle.verdict.entries import Entry
from loracle.verdict.evidence import Record, StudyEvidence
from loracle.verdict.matrices import untrained

FOUND, NOT_FOUND, NOT_CHECKED = "found", "not found", "not checked"

EXTREME_NATS = 0.1  # added by one matrix alone: 10% more perplexity
FAR_OUT = 3.0  # Tukey's far outlier: this many interquartile ranges above the upper quartile
FEW_MATRICES = 4  # below, quartiles mean nothing
FEW_TRAIN_ROWS, FEW_EVAL_ROWS = 100, 30
MUCH_CUT, MUCH_UNSCORED = 0.2, 0.05  # shares of rows
NEAR_GUESSING, WELL_ABOVE = 0.9, 0.5  # of ln(labels); accuracy that no head near guessing has
SWEEPS = "diagnose/sensitivity_sweeps.json"


@dataclass(frozen=True)
class Mode:
    """What the mode is called, where it comes from, what helps."""

    name: str
    cause: str
    mitigation: str


RANK = Mode(
    "rank too small",
    "the adapter has too few directions for what the task needs, in this precision",
    "use the smallest rank that is shown to be enough, or a larger one; keep alpha/rank when the rank changes (alpha: 2r)",
)
LAYER = Mode(
    "extreme layer sensitivity",
    "one matrix has outliers that the codec's blocks cannot hold",
    "keep that matrix in 16 bits (precision by pattern), or take smaller blocks or more bits for it",
)
MISMATCH = Mode(
    "dataset mismatch",
    "evaluation rows are of another kind than training rows (labels, format, language), or training went on past what they share",
    "look at both sets' rows and labels in the audit, split one set by rows, evaluate more often and stop early",
)
DIVERGENCE = Mode(
    "divergence",
    "the learning rate is too high for this precision, rank and alpha, or fp16 overflowed",
    "lower the learning rate, warm up, clip gradients, compute in bf16",
)
HEAD = Mode(
    "head lost on reload",
    "the classification head or the adapter was not saved, or did not load: what is evaluated is not what was trained",
    "save the head with the adapter (modules_to_save), and trust no figure of a model that was not loaded again",
)
DATA = Mode(
    "data too short or overlapping",
    "evaluation rows also stand in training, or there are too few or too much shortened rows",
    "drop the overlap, take more rows, raise task.max_length; train and evaluate again",
)
ARMS = Mode(
    "confounded arms",
    "two arms differ in more than the factor that they are compared for",
    "make the arms alike, or add the cells that part the factors (a 2 x 2); where the bundle is meant, compare: recipe",
)


@dataclass(frozen=True)
class Finding:
    """``symptom``: the figures found, or why nothing was found or checked; ``records``: run ids, cells or files."""

    mode: Mode
    state: str
    symptom: str
    records: tuple[str, ...] = ()


def failure_modes(found: StudyEvidence, given: Sequence[Entry]) -> list[Finding]:
    """One finding for each mode; ``given`` are the entries of verdicts.json."""
    return [
        rank_too_small(given),
        extreme_layer(found),
        dataset_mismatch(found),
        divergence(found),
        head_lost(found),
        poor_data(found),
        confounded_arms(found),
    ]


def rank_too_small(given: Sequence[Entry]) -> Finding:
    """A tested rank is shown to lose more than the margin: against the largest, or against 16-bit at the same rank."""
    about = [e for e in given if e["question"] in ("rank_enough", "rank_threshold") and e["n"]]
    if not about:
        return Finding(RANK, NOT_CHECKED, "no two ranks with finished runs were compared (question rank_threshold)")
    shown = [e for e in about if e["interval"] is not None]
    records = tuple(dict.fromkeys(r for e in shown or about for r in e["records"]))
    if shown:
        return Finding(RANK, FOUND, " ".join(_unique(e["statement"] for e in shown)), records)
    if all(e["verdict"] != "supported" for e in about):
        return Finding(RANK, NOT_CHECKED, "no comparison of ranks is decided", records)
    return Finding(RANK, NOT_FOUND, "no tested rank is shown to lose more than the margin", records)


def extreme_layer(found: StudyEvidence) -> Finding:
    """One matrix that costs much, and far more than the others; or makes the loss infinite."""
    sweeps = [s for s in untrained(found) if len(_matrices(s)) >= FEW_MATRICES]
    if not sweeps:
        return Finding(LAYER, NOT_CHECKED, "no matrix was quantized by itself (question sensitivity)")
    shown = [text for sweep in sweeps if (text := _extreme(sweep))]
    if shown:
        return Finding(LAYER, FOUND, " ".join(shown), (SWEEPS,))
    worst = max(float(u["delta_loss"]) for s in sweeps for u in _matrices(s))
    return Finding(LAYER, NOT_FOUND, f"the worst matrix adds {worst:+.4f} nats per token", (SWEEPS,))


def _matrices(sweep: Record) -> list[Record]:
    return [unit for unit in sweep.get("units") or [] if unit.get("unit") == "matrix"]


def _extreme(sweep: Record) -> str:
    known = [float(u["delta_loss"]) for u in _matrices(sweep) if u.get("delta_loss") is not None]
    low, middle, high = np.quantile(known, [0.25, 0.5, 0.75]) if known else (0.0, 0.0, 0.0)
    limit = max(EXTREME_NATS, float(high + FAR_OUT * (high - low)))
    out = [u for u in _matrices(sweep) if u.get("delta_loss") is None or float(u["delta_loss"]) > limit]
    if not out:
        return ""
    shown = listed(
        [
            f"{u['module']} {'not finite' if u.get('delta_loss') is None else format(u['delta_loss'], '+.4f')}"
            for u in out
        ]
    )
    return (
        f"{sweep.get('base')}, {sweep.get('codec')}: {shown} nats per token by itself; the median matrix {middle:+.4f}."
    )


def dataset_mismatch(found: StudyEvidence) -> Finding:
    """Labels that training has not; or cells whose training loss fell below the base's and whose evaluation loss did not."""
    audits = _audits(found)
    checked = [r for r in _finished(found) if _numbers(r, "eval_loss", "train_loss") and _base(r) is not None]
    if not checked and not any("unknown_eval_labels" in audit for audit in audits.values()):
        return Finding(
            MISMATCH, NOT_CHECKED, "no finished run has its training and evaluation loss and the untrained base's"
        )
    signs, records = [], []
    for name, audit in audits.items():
        if _count(audit, "unknown_eval_labels"):
            signs.append(f"{audit['unknown_eval_labels']} evaluation rows of {name} have labels that training has not.")
            records.append(f"data {name}")
    for cell in dict.fromkeys(str(r["cell"]) for r in checked):
        runs = [r for r in checked if r["cell"] == cell]
        if all(r["eval_loss"] >= _known_base(r) > r["train_loss"] for r in runs):
            loss, base, trained = (
                float(np.mean(x))
                for x in zip(*((r["eval_loss"], _known_base(r), r["train_loss"]) for r in runs), strict=True)
            )
            signs.append(
                f"{cell}: training loss {trained:.4f}, evaluation loss {loss:.4f}, untrained base {base:.4f} (means of {len(runs)} runs)."
            )
            records += [str(r["id"]) for r in runs]
    if signs:
        return Finding(MISMATCH, FOUND, " ".join(signs), tuple(records))
    return Finding(
        MISMATCH,
        NOT_FOUND,
        f"no cell's evaluation loss stayed at the untrained base's while its training loss fell ({len(checked)} runs)",
    )


def divergence(found: StudyEvidence) -> Finding:
    """Runs that ended as diverged."""
    ended = [r for r in found.records if r.get("status")]
    if not ended:
        return Finding(DIVERGENCE, NOT_CHECKED, "no run has ended")
    lost = [r for r in ended if r["status"] == "diverged"]
    if not lost:
        return Finding(DIVERGENCE, NOT_FOUND, f"none of {len(ended)} runs diverged")
    shown = "; ".join(f"{r['id']}: {r.get('reason') or 'no reason was recorded'}" for r in lost)
    return Finding(
        DIVERGENCE, FOUND, f"{len(lost)} of {len(ended)} runs diverged ({shown})", tuple(str(r["id"]) for r in lost)
    )


def head_lost(found: StudyEvidence) -> Finding:
    """A reload that gives another loss; or a classifier's loss near ln(labels) beside an accuracy far above guessing."""
    checked = [r for r in found.records if (r.get("reload") or {}).get("passed") is not None]
    failed = [r for r in checked if r["reload"]["passed"] is False]
    torn = [r for r in _finished(found) if _near_guessing(r)]
    shown = [f"{r['id']}: {r.get('reason') or 'the reloaded model gives another loss'}." for r in failed]
    shown += [
        f"{r['id']}: evaluation loss {r['eval_loss']:.3f}, near ln {_labels(r)} = {math.log(_labels(r)):.3f}, beside an accuracy of "
        f"{r['metrics']['accuracy']:.2f}."
        for r in torn
    ]
    if shown:
        return Finding(HEAD, FOUND, " ".join(shown), tuple(_unique(str(r["id"]) for r in [*failed, *torn])))
    if not checked:
        return Finding(HEAD, NOT_CHECKED, "no saved adapter was loaded again")
    return Finding(HEAD, NOT_FOUND, f"{len(checked)} saved adapters gave the recorded loss again")


def _near_guessing(record: Record) -> bool:
    accuracy, labels = (record.get("metrics") or {}).get("accuracy"), _labels(record)
    if not isinstance(accuracy, int | float) or labels < 2 or not _numbers(record, "eval_loss"):
        return False
    return accuracy >= WELL_ABOVE and record["eval_loss"] >= NEAR_GUESSING * math.log(labels)


def _labels(record: Record) -> int:
    labels = (record.get("audit") or {}).get("labels")
    return len(labels) if isinstance(labels, list | tuple) else 0


def poor_data(found: StudyEvidence) -> Finding:
    """Evaluation rows that are training rows; few rows; rows much cut, or with nothing to score."""
    audits = _audits(found)
    if not audits:
        return Finding(DATA, NOT_CHECKED, "no data audit was recorded")
    signs = {name: _signs(audit) for name, audit in audits.items()}
    shown = [f"{name}: {'; '.join(found)}." for name, found in signs.items() if found]
    if shown:
        return Finding(DATA, FOUND, " ".join(shown), tuple(f"data {name}" for name, found in signs.items() if found))
    rows = "; ".join(
        f"{a.get('train_rows')} training and {a.get('eval_rows')} evaluation rows" for a in audits.values()
    )
    return Finding(DATA, NOT_FOUND, f"{rows}, no overlap")


def _signs(audit: Record) -> list[str]:
    train, test = audit.get("train_rows"), audit.get("eval_rows")
    rows = (train or 0) + (test or 0)
    found = []
    if _count(audit, "overlap"):
        found.append(f"{audit['overlap']} of {test} evaluation rows also are training rows")
    if isinstance(train, int) and train < FEW_TRAIN_ROWS:
        found.append(f"{train} training rows, below {FEW_TRAIN_ROWS}")
    if isinstance(test, int) and test < FEW_EVAL_ROWS:
        found.append(f"{test} evaluation rows, below {FEW_EVAL_ROWS}")
    # Cuts are counted over all rows that were read, those included that were then of no use.
    whole = rows + _count(audit, "zero_target_rows") + _count(audit, "unknown_eval_labels")
    if whole and _count(audit, "truncated") > MUCH_CUT * whole:
        found.append(f"{audit['truncated']} of {whole} rows were cut ({entries.share(audit['truncated'] / whole)})")
    if rows and _count(audit, "zero_target_rows") > MUCH_UNSCORED * rows:
        found.append(f"{audit['zero_target_rows']} rows had nothing left to score")
    return found


def confounded_arms(found: StudyEvidence) -> Finding:
    """Pairs that differ in more than what they are compared for, those without a twin included; no declared recipes."""
    pairs = comparisons(found)
    if not pairs:
        return Finding(ARMS, NOT_CHECKED, "no two cells are compared")
    bad = [p for p in pairs if p.guard.confounded]
    if not bad:
        return Finding(ARMS, NOT_FOUND, f"{len(pairs)} pairs of arms differ in one factor each")
    shown = _unique(f"{p.arm['id']} against {p.reference['id']}: {listed(p.differences)}" for p in bad)
    return Finding(
        ARMS, FOUND, f"{'; '.join(shown)}", tuple(_unique(str(c["id"]) for p in bad for c in (p.arm, p.reference)))
    )


def _finished(found: StudyEvidence) -> list[Record]:
    return [r for r in found.records if r.get("status") == "done" and r.get("role", "run") == "run"]


def _audits(found: StudyEvidence) -> dict[str, Record]:
    """Audits by data set: the plan's, or the records' own where the plan has none."""
    planned = {str(k): v.get("audit") or v for k, v in (found.plan.get("data") or {}).items() if isinstance(v, Mapping)}
    recorded = [r["audit"] for r in found.records if r.get("audit")]
    known = planned or ({"data": recorded[0]} if recorded else {})
    return {name: audit for name, audit in known.items() if "train_rows" in audit}


def _count(audit: Record, key: str) -> int:
    value = audit.get(key)
    return value if isinstance(value, int) else 0


def _numbers(record: Record, *keys: str) -> bool:
    return all(isinstance(record.get(key), int | float) for key in keys)


def _base(record: Record) -> float | None:
    value = (record.get("metrics") or {}).get("base_eval_loss")
    return float(value) if isinstance(value, int | float) else None


def _known_base(record: Record) -> float:
    return float(record["metrics"]["base_eval_loss"])


def _unique(words: Any) -> list[str]:
    return list(dict.fromkeys(words))
