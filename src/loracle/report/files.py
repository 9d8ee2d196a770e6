"""The files beside the page and what each holds, as both renderings list them (docs/files.md has their columns)."""

from __future__ import annotations

from collections.abc import Mapping

from loracle.report.columns import COLUMNS, Table

TABLE_NOTES = {
    "runs": "every planned run: state, losses, metrics, parameters, time",
    "cells": "each cell: how its runs ended, means over seeds with intervals",
    "degradation": "loss, tuning gain and task metric against 16-bit, as the verdicts have them",
    "similarity_by_layer": "likeness of the learned updates by layer, beside the null; first, middle and last layer marked",
    "agreement": "answers against the 16-bit twin's: token match, likeness, and whether either is at least 0.95",
    "memory": "predicted and measured bytes by component, storage named",
    "speed": "time of a step, storage named, and the speed relative to 16-bit",
    "learning": "each run: the untrained base, and after tuning",
    "methods": "each method and precision: quality, cost, and the paired difference from LoRA",
    "confusion": "classification: which label was taken for which, summed over seeds",
    "classes": "classification: precision, recall and F1 of each label",
    "latency": "time to answer one prompt, and to its first token",
    "groups": "loss and task metric of each group of rows against 16-bit, and the gap to the other groups",
    "layer_variants": "adapters on other layers, at equal rank and at equal parameters: drop, loss, memory, which is best",
    "layer_sensitivity": "loss added by quantizing one matrix, slice, kind or layer of the base, worst first",
    "mixed_precision": "which matrices were kept finer, one after the other, and what the rest then costs",
    "rank_allocation": "where rank is needed, by layer: spectrum of the learned updates, gradient before training, proposed ranks",
    "rank_patterns": "each cell with ranks by layer against one rank for all, paired by seed",
    "failure_modes": "known ways in which a study goes wrong: found, not found, not checked",
    "comparisons": "every pair of arms and what the two differ in",
    "memory_by_rank": "each quantized cell's memory beside its 16-bit twin's, and the reduction",
    "quality_memory": "each cell's quality and memory, and how probable it is that no other beats it in both",
    "data_audit": "what was read, dropped, cut and repeated",
}


def tables(found: Mapping[str, Table]) -> list[tuple[str, str, int]]:
    """(name, what it holds, rows) of each table."""
    return [(name, TABLE_NOTES[name], len(found[name].rows)) for name in COLUMNS]


def beside(*, chosen: bool, proposed: bool) -> list[tuple[str, str]]:
    """(path, what it holds) of the rest; ``chosen``: within a memory budget, ``proposed``: ranks by layer."""
    found = [
        ("recommendation.json", "the choice within the memory budget, with its evidence") if chosen else None,
        ("verdicts.json", "every verdict with its estimate, interval and records"),
        ("proposals/rank_pattern.yaml", "a study that tries the proposed ranks by layer") if proposed else None,
        ("MODEL_CARD.md", "a card for the Hub: which adapter, what was measured, limits, licences"),
        ("DATA_CARD.md", "the data's source, licence, formatting, statistics and audit"),
    ]
    return [one for one in found if one]
