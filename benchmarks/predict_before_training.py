"""Can the layers that quantization hurts, and the rank that is enough, be told before training? Predictions scored on measurements.

    python benchmarks/predict_before_training.py --base gpt2-demo --base FOLDER … --codec nf4 --codec int4 … --study STUDY_FOLDER …

Layers: one matrix at a time is quantized and the loss on one half of the package's plain text measured; predictors see the other half
alone. Ranks: the r* that finished studies found, beside what their base and first batches look like. Writes a dated file here.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr

from loracle.diagnose.predictors import error_predictors, error_spectra, gradient_spectra
from loracle.diagnose.sensitivity import sweep
from loracle.diagnose.units import Codec
from loracle.models.load import LoadedBase, load_base
from loracle.models.source import find, load_tokenizer
from loracle.spec.study import UNQUANTIZED, Base, Cell, Task
from loracle.store.files import read_json
from loracle.store.provenance import provenance
from loracle.tasks.collate import pad_token_id
from loracle.tasks.dataset import plain_text

HERE = Path(__file__).parent
TOP = 3
RESAMPLES = 2000
FIRST_ROWS = 64  # of a study's training rows: eight batches of eight
SHARE = 0.9  # of a gradient's squared norm
PREDICTORS = (
    "weight_error", "output_error", "first_order", "fisher_diagonal", "fisher", "first_order_and_fisher", "kurtosis",
)  # fmt: skip
NAIVE = ("params", "early_layers_first", "all_equal")


def guesses(figures: dict[str, Any]) -> dict[str, float]:
    """What each predictor, and each naive guess, says of one matrix: larger is worse."""
    found = {name: figures[name] for name in (*PREDICTORS, *NAIVE) if name in figures}
    found["first_order_and_fisher"] = figures["first_order"] + figures["fisher"]
    return found | {"early_layers_first": -float(figures["layer"] or 0), "all_equal": 0.0}


def hits(guess: Sequence[float], truth: Sequence[float], top: int = TOP) -> float:
    """How many of the ``top`` worst are among the ``top`` guessed; in expectation, where the guess has ties."""
    values, worst = np.asarray(guess), np.argsort(-np.asarray(truth), kind="stable")[:top]
    above = (values[None] > values[worst, None]).sum(1)
    equal = (values[None] == values[worst, None]).sum(1)
    return float(np.clip((top - above) / equal, 0, 1).sum())


def correlation(guess: Sequence[float], truth: Sequence[float]) -> float:
    """Spearman's rank correlation; 0 for a guess that tells nothing apart."""
    return float(spearmanr(guess, truth)[0]) if len(set(guess)) > 1 else 0.0


def interval(guess: Sequence[float], truth: Sequence[float]) -> list[float]:
    """95% by resampling matrices: it says nothing about other bases."""
    rng, a, b = np.random.default_rng(0), np.asarray(guess), np.asarray(truth)
    drawn = (rng.integers(0, len(a), len(a)) for _ in range(RESAMPLES))
    return [float(x) for x in np.quantile([correlation(a[i], b[i]) for i in drawn], (0.025, 0.975))]


# -- layers ---------------------------------------------------------------------------------------------------------------


@dataclass
class Loaded:
    base: LoadedBase
    tokenizer: Any
    name: str


def loaded(model: str) -> Loaded:
    source = find(model)
    cell = Cell(base=Base(model=model), task=Task(data="none"), precision="bf16")
    return Loaded(load_base(source, cell, torch.device("cpu")), load_tokenizer(source), source.name)


def layers(where: Loaded, codec: Codec, half: int | None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One base and codec: the scores, and what was predicted and measured of each matrix."""
    rows, pad = plain_text(where.tokenizer, 512), pad_token_id(where.tokenizer)
    seen, unseen = rows[0::2][:half], rows[1::2][:half]
    started = time.monotonic()
    predicted = error_predictors(where.base, codec, seen, pad)
    between = time.monotonic()
    truth = _measured(where, codec, unseen, pad)
    ended = time.monotonic()
    again = _measured(where, codec, seen, pad)
    modules = [one["module"] for one in predicted]
    y = [truth[name] for name in modules]
    said = [guesses(one) for one in predicted]
    scores = {name: _score([one[name] for one in said], y) for name in (*PREDICTORS, *NAIVE)}
    scores["measured_on_the_other_half"] = _score([again[name] for name in modules], y)
    row = {
        "base": where.name,
        **codec.as_record(),
        "matrices": len(modules),
        "measured_tokens": sum(len(r.input_ids) for r in unseen),
        "predicted_s": between - started,
        "measured_s": ended - between,
        "scores": scores,
        "worst": sorted(modules, key=lambda name: -truth[name])[:TOP],
    }
    about = {"base": where.name, "codec": codec.name}
    matrices = [
        about | one | {"delta_loss": truth[one["module"]], "delta_loss_other_half": again[one["module"]]}
        for one in predicted
    ]
    best = {name: (round(s["spearman"], 2), s["top"]) for name, s in scores.items()}
    print(row["base"], codec.name, f"{row['predicted_s']:.1f} s against {row['measured_s']:.1f} s", best, flush=True)
    return row, matrices


def _measured(where: Loaded, codec: Codec, rows: Sequence[Any], pad: int) -> dict[str, float]:
    found = sweep(where.base, codec, rows, pad, ("matrix",)).units
    return {str(unit["module"]): float(unit["delta_loss"]) for unit in found}


def _score(guess: Sequence[float], truth: Sequence[float]) -> dict[str, Any]:
    return {
        "spearman": correlation(guess, truth),
        "interval": interval(guess, truth),
        "top": round(hits(guess, truth), 2),
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over settings, and the predictor that would have been chosen on the other bases, scored on the base left out."""
    names = (*PREDICTORS, *NAIVE, "measured_on_the_other_half")
    found: dict[str, Any] = {
        name: {
            "spearman": float(np.mean([row["scores"][name]["spearman"] for row in rows])),
            "lowest": min(row["scores"][name]["spearman"] for row in rows),
            "top": float(np.mean([row["scores"][name]["top"] for row in rows])),
            "better_than_params_in": sum(
                row["scores"][name]["spearman"] > row["scores"]["params"]["spearman"] for row in rows
            ),
        }
        for name in names
    }
    left_out = []
    for base in dict.fromkeys(row["base"] for row in rows):
        others, own = ([row for row in rows if (row["base"] == base) is same] for same in (False, True))
        if others:
            chosen = max(PREDICTORS, key=lambda name: np.mean([row["scores"][name]["spearman"] for row in others]))
            scores = [row["scores"][chosen] for row in own]
            means = {key: float(np.mean([score[key] for score in scores])) for key in ("spearman", "top")}
            left_out.append({"base": base, "chosen_on_the_others": chosen, **means})
    return {"settings": len(rows), "by_predictor": found, "left_out": left_out}


# -- ranks ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """One training row of a study."""

    input_ids: list[int]
    labels: list[int]
    label_id: int | None = None


def ranks(folder: Path) -> list[dict[str, Any]]:
    """What one finished study found about ranks for each of its precisions, beside what its base and first batches look like."""
    plan, verdicts = read_json(folder / "plan.json"), json.loads((folder / "report" / "verdicts.json").read_text())
    [key] = plan["data"]
    frame = pd.read_parquet(folder / "data" / key / "train.parquet").head(FIRST_ROWS)
    rows = [Seen(list(map(int, a)), list(map(int, b))) for a, b in zip(frame.input_ids, frame.labels, strict=True)]
    where = loaded(plan["cells"][0]["config"]["base"]["model"])
    gradient = list(gradient_spectra(where.base, rows, pad_token_id(where.tokenizer)).values())
    tested = sorted({cell["rank"] for cell in plan["cells"]})
    needed = float(np.median([spectrum.rank_for(SHARE) for spectrum in gradient]))
    found = []
    for precision in dict.fromkeys(cell["precision"] for cell in plan["cells"]):
        cell = next(cell for cell in plan["cells"] if cell["precision"] == precision)
        error = None
        if precision not in UNQUANTIZED:
            codec = Codec(precision, cell["config"]["double_quant"], cell["config"]["block_size"])
            error = float(
                np.median([s.effective_rank / len(s.values) for s in error_spectra(where.base, codec).values()])
            )
        about = {
            e["question"]: e for e in verdicts if e["scope"].get("precision") == precision and "rank" in e["question"]
        }
        found.append(
            {
                "study": plan["study"],
                "base": where.name,
                "precision": precision,
                "tested_ranks": tested,
                "gradient_rank_for_90_percent": needed,
                "gradient_effective_rank": float(np.median([spectrum.effective_rank for spectrum in gradient])),
                "predicted_by_gradient": next((r for r in tested if r >= needed), tested[-1]),
                "predicted_naively": tested[0],
                "error_effective_rank_share": error,
                "found": {
                    name: {key: e[key] for key in ("verdict", "estimate", "statement")} for name, e in about.items()
                },
                "degradation_by_rank": {
                    e["scope"]["rank"]: [e["estimate"], e["interval"]]
                    for e in verdicts
                    if e["question"] == "degradation" and e["scope"]["precision"] == precision
                },
            }
        )
    return found


def main() -> None:
    """Measure, predict, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", action="append", default=[], help="hub id, folder or gpt2-demo; repeatable")
    parser.add_argument("--codec", action="append", default=[], help="nf4, fp4, int4 …; repeatable")
    parser.add_argument(
        "--study", action="append", default=[], type=Path, help="folder of a finished study; repeatable"
    )
    parser.add_argument(
        "--earlier",
        action="append",
        default=[],
        type=Path,
        help="a result file whose settings are taken in; repeatable",
    )
    parser.add_argument("--rows", type=int, help="at most so many rows of plain text in each half [all]")
    parser.add_argument("--out", type=Path, default=HERE / f"{date.today().isoformat()}-predict-before-training.json")
    asked = parser.parse_args()
    rows, matrices, frames = [], [], []
    for path in asked.earlier:
        rows += json.loads(path.read_text())["layers"]["settings"]
        frames.append(pd.read_csv(path.with_suffix(".csv")))
    for model in asked.base:
        where = loaded(model)
        for name in asked.codec:
            row, found = layers(where, Codec(name), asked.rows)
            rows.append(row)
            matrices += found
    result = {
        "command": "python benchmarks/predict_before_training.py --base … --codec … --study …",
        "text": "the package's plain text: predictors on even rows, measured on odd ones",
        "layers": {"summary": summary(rows), "settings": rows} if rows else None,
        "ranks": [row for folder in asked.study for row in ranks(folder)],
        "provenance": provenance("cpu", torch.get_num_threads()),
    }
    frames += [pd.DataFrame(matrices)] if matrices else []
    if frames:
        pd.concat(frames).to_csv(asked.out.with_suffix(".csv"), index=False, float_format="%.6g")
    asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(asked.out)


if __name__ == "__main__":
    main()
