"""The diagnose job: similarity of pairs of runs and agreement of their generations, from the runs' files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from loracle.diagnose.similarity import compare_adapters, token_match
from loracle.store.files import SCHEMA, read_json, write_json
from loracle.store.layout import StudyFolder


def diagnose(folder: StudyFolder, job: dict[str, Any]) -> dict[str, Any]:
    """Write ``diagnose/similarity.json`` and ``diagnose/agreement.json`` for the job's pairs."""
    pairs = []
    for pair in job.get("pairs", []):
        modules = read_json(folder.run_record(pair["a"])).get("modules", {})
        layers = compare_adapters(folder.run(pair["a"]) / "adapter", folder.run(pair["b"]) / "adapter", modules)
        pairs.append({**pair, "layers": layers})
    write_json(folder.similarity, {"schema": SCHEMA, "pairs": pairs})
    agreement = [
        {**pair, **agree(folder.run(pair["run"]), folder.run(pair["twin"]))} for pair in job.get("agreement", [])
    ]
    write_json(folder.agreement, {"schema": SCHEMA, "pairs": agreement})
    return {"status": "done", "pairs": len(pairs), "agreement": len(agreement)}


def agree(run: Path, twin: Path) -> dict[str, Any]:
    """Mean token match and share of identical answers over the items that both generated for."""
    answers = [_generated(path) for path in (run, twin)]
    items = sorted(answers[0].keys() & answers[1].keys())
    if not items:
        return {"token_match": None, "exact": None, "items": 0, "reason": "no generations to compare"}
    rates = [token_match(answers[0][i], answers[1][i]) for i in items]
    same = [list(answers[0][i]) == list(answers[1][i]) for i in items]
    return {"token_match": sum(rates) / len(items), "exact": sum(same) / len(items), "items": len(items)}


def _generated(run: Path) -> dict[int, list[int]]:
    path = run / "predictions.parquet"
    if not path.exists():
        return {}
    frame = pd.read_parquet(path)
    if "prediction_ids" not in frame:
        return {}
    return {int(i): list(ids) for i, ids in zip(frame["item"], frame["prediction_ids"], strict=True) if ids is not None}
