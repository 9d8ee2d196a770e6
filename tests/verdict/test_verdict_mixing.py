"""Whether a mixed precision helped: known truth in, the share of the gap out."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
from verdict_study import study

from loracle.verdict import RunScores, decide
from loracle.verdict.confounds import precision_label
from loracle.verdict.gain import gap_closed
from loracle.verdict.mixing import mixed_entries

BLOCK = {"default": "nf4", "transformer.h.1.attn.c_proj": "bf16", "transformer.h.0.mlp.c_proj": "bf16"}


def with_mixed(closed: float, seeds: int = 3, noise: float = 0.0005, rng: int = 0):
    """A study whose nf4 costs 30%, and a mixed cell at rank 8 that closes ``closed`` of that."""
    found = study({8: 0.3}, seeds=seeds, rng=rng)
    draw = np.random.default_rng(rng)
    uniform = copy.deepcopy(found.cells["nf4-r8"])
    uniform |= {"id": "mixed-r8", "label": "nf4-2xbf16 r8", "precision": BLOCK}
    uniform["config"]["precision"] = BLOCK
    plan = {**found.plan, "cells": [*found.plan["cells"], uniform]}
    plan["runs"] = [*plan["runs"]]
    records, scores = list(found.records), dict(found.scores)
    for seed in found.seeds:
        low, high = (found.runs[cell][seed] for cell in ("bf16-r8", "nf4-r8"))
        record = copy.deepcopy(high) | {"id": f"mixed-r8-s{seed}", "cell": "mixed-r8"}
        record["config"]["precision"] = BLOCK
        a, b = (found.scores[r["id"]] for r in (low, high))
        loss = b.loss - closed * (b.loss - a.loss) + draw.normal(0, noise, b.loss.shape) * b.loss.mean()
        records.append(record)
        scores[record["id"]] = RunScores(b.items, loss, b.tokens, b.scores)
        plan["runs"].append({"id": record["id"], "cell": "mixed-r8", "seed": seed, "role": "run"})
    return replace(found, plan=plan, records=records, scores=scores)


def test_the_share_is_found_and_judged() -> None:
    (entry,) = mixed_entries(with_mixed(0.95), None)
    assert entry["estimate"] == pytest.approx(0.95, abs=0.02)
    assert entry["interval"][0] < 0.95 < entry["interval"][1]
    assert (entry["verdict"], entry["difference"], entry["exploratory"]) == ("supported", "better", True)
    assert "of the gap in eval loss between nf4 and bf16 at rank 8" in entry["statement"]
    assert "bf16 in h.1.attn.c_proj and h.0.mlp.c_proj" in entry["statement"]
    assert len(entry["records"]) == 6
    (entry,) = mixed_entries(with_mixed(0.5), None)
    assert entry["verdict"] == "rejected"


def test_it_stands_with_the_degradation_question_and_confounds_are_seen() -> None:
    found = with_mixed(0.95)
    assert "mixed_precision" in [e["question"] for e in decide(found)]
    cells = copy.deepcopy(found.plan["cells"])
    cells[-1]["config"]["train"]["gradient_checkpointing"] = True
    (entry,) = mixed_entries(replace(found, plan={**found.plan, "cells": cells}), None)
    assert entry["verdict"] == "confounded"


def test_without_the_uniform_twin_there_is_no_share() -> None:
    found = with_mixed(0.95)
    cells = [c for c in found.plan["cells"] if c["id"] != "nf4-r8"]
    assert mixed_entries(replace(found, plan={**found.plan, "cells": cells}), None) == []
    records = [r for r in found.records if r["cell"] != "nf4-r8"]
    (entry,) = mixed_entries(replace(found, records=records), None)
    assert entry["verdict"] == "undecided"
    assert "no finished run" in entry["statement"]


def test_coverage_of_the_share() -> None:
    """Seeds and items vary: the interval holds the truth about as often as it says."""
    draw = np.random.default_rng(1)
    tokens = draw.integers(4, 12, 40).astype(float)
    hits = 0
    for _ in range(200):
        item = draw.normal(0, 0.1, (3, 1, 40))
        seed = draw.normal(0, 0.02, (3, 5, 1))
        losses = (np.array([2.05, 2.0, 3.0])[:, None, None] + item + seed + draw.normal(0, 0.1, (3, 5, 40))) * tokens
        interval = gap_closed(*losses, tokens).interval()
        assert interval is not None
        hits += interval[0] < 0.95 < interval[1]
    assert 185 <= hits <= 200


def test_names_are_cut_to_what_tells_them_apart() -> None:
    assert precision_label({"default": "nf4", "model.layers.3.mlp.down_proj": "bf16"}) == (
        "nf4 + bf16 in layers.3.mlp.down_proj"
    )
    assert precision_label({"default": "nf4", "attn.c_proj": "int8"}) == "nf4 + int8 in attn.c_proj"
