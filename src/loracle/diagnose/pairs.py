"""The diagnose job: similarity of pairs of runs and agreement of their generations, from the runs' files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch

from loracle.diagnose.along import along
from loracle.diagnose.similarity import compare_adapters, token_match
from loracle.evaluate.embedding import Encoder, base_encoder, cosines, sentence_encoder
from loracle.models.load import load_base, pick_device
from loracle.models.source import find, load_tokenizer
from loracle.spec.factors import cell_from_config
from loracle.store.files import SCHEMA, read_json, write_json
from loracle.store.layout import StudyFolder


def diagnose(folder: StudyFolder, job: dict[str, Any]) -> dict[str, Any]:
    """Write ``diagnose/similarity.json`` and ``diagnose/agreement.json`` for the job's pairs."""
    pairs = []
    for pair in job.get("pairs", []):
        modules = read_json(folder.run_record(pair["a"])).get("modules", {})
        layers = compare_adapters(folder.run(pair["a"]) / "adapter", folder.run(pair["b"]) / "adapter", modules)
        pairs.append({**pair, "layers": layers})
        if job.get("along"):
            pairs[-1]["along"] = along(folder, pair["a"], pair["b"], modules)
    write_json(folder.similarity, {"schema": SCHEMA, "pairs": pairs})
    encoders = Encoders(job.get("sentence_encoder"), pick_device(job.get("device", "auto")))
    agreement = []
    for pair in job.get("agreement", []):
        run, twin = folder.run(pair["run"]), folder.run(pair["twin"])
        agreement.append({**pair, **agree(run, twin), **likeness(run, twin, encoders)})
    write_json(folder.agreement, {"schema": SCHEMA, "pairs": agreement})
    return {"status": "done", "pairs": len(pairs), "agreement": len(agreement)}


class Encoders:
    """Text encoders, each loaded once: the one that was named, or each twin's own untrained 16-bit base."""

    def __init__(self, named: str | None, device: torch.device) -> None:
        self.named, self.device = named, device
        self.loaded: dict[str, Encoder] = {}

    def of(self, twin: Path) -> Encoder:
        """The encoder for a pair with this twin."""
        config = read_json(twin / "record.json")["config"]
        key = self.named or config["base"]["model"]
        if key not in self.loaded:
            self.loaded[key] = sentence_encoder(self.named, self.device) if self.named else self._base(config)
        return self.loaded[key]

    def _base(self, config: dict[str, Any]) -> Encoder:
        cell = cell_from_config(config)
        source = find(cell.base.model, cell.base.revision)
        tokenizer = load_tokenizer(source, cell.base.add_tokens)
        model = load_base(source, cell, self.device, vocab=len(tokenizer)).model
        return base_encoder(model.eval(), tokenizer, self.device)


def likeness(run: Path, twin: Path, encoders: Encoders) -> dict[str, Any]:
    """Mean cosine of the embeddings of the two runs' answers to the same prompts."""
    texts = [_generated(path, "prediction") for path in (run, twin)]
    items = sorted(texts[0].keys() & texts[1].keys())
    if not items:
        return {"embedding_cosine": None}
    encoder = encoders.of(twin)
    found = cosines(encoder, [[texts[0][i] for i in items]], [texts[1][i] for i in items])
    return {"embedding_cosine": float(found.mean()), "encoder": encoder.name}


def agree(run: Path, twin: Path) -> dict[str, Any]:
    """Mean token match and share of identical answers over the items that both generated for."""
    answers = [_generated(path) for path in (run, twin)]
    items = sorted(answers[0].keys() & answers[1].keys())
    if not items:
        return {"token_match": None, "exact": None, "items": 0, "reason": "no generations to compare"}
    rates = [token_match(answers[0][i], answers[1][i]) for i in items]
    same = [list(answers[0][i]) == list(answers[1][i]) for i in items]
    return {"token_match": sum(rates) / len(items), "exact": sum(same) / len(items), "items": len(items)}


def _generated(run: Path, column: str = "prediction_ids") -> dict[int, Any]:
    """Item → what the run generated for it."""
    path = run / "predictions.parquet"
    if not path.exists():
        return {}
    frame = pd.read_parquet(path)
    if column not in frame:
        return {}
    frame = frame[frame[column].notna()]
    return dict(zip(map(int, frame["item"]), frame[column], strict=True))
