"""The data audit (docs/files.md): what was read, dropped and cut, repeats and leaks, and two rows token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from loracle.tasks.rows import IGNORE, Example, Row

_SHOWN = 64  # tokens of an example row


def repeats(examples: Sequence[Example]) -> int:
    """How many examples say the same as an earlier one."""
    return len(examples) - len({example.content for example in examples})


def overlap(train: Sequence[Example], evaluation: Sequence[Example]) -> int:
    """How many evaluation examples are training examples too."""
    seen = {example.content for example in train}
    return sum(example.content in seen for example in evaluation)


def token_counts(rows: Sequence[Row]) -> dict[str, Any]:
    """``tokens {mean, p95, max}`` and ``target_token_share`` of training rows as trained on (cut, not padded)."""
    lengths = np.array([len(row.input_ids) for row in rows], dtype=np.int64)
    scored = sum(row.target_tokens for row in rows)
    return {
        "target_token_share": scored / int(lengths.sum()),
        "tokens": {
            "mean": float(lengths.mean()),
            "p95": int(np.percentile(lengths, 95, method="higher")),
            "max": int(lengths.max()),
        },
    }


def examples(tokenizer: Any, rows: Sequence[Row], count: int = 2) -> list[dict[str, Any]]:
    """The first rows token by token, ``[text, 1 where scored]``; a long row's middle is left out as ``["…", 0]``."""
    out = []
    for row in rows[:count]:
        texts = [tokenizer.decode([token]) for token in row.input_ids]
        tokens = [[text, int(label != IGNORE)] for text, label in zip(texts, row.labels, strict=True)]
        if row.label_id is not None:  # no token is scored; the head reads the label at the last one
            tokens[-1][1] = 1
        if len(tokens) > _SHOWN:
            tokens = [*tokens[: _SHOWN // 2], ["…", 0], *tokens[-_SHOWN // 2 :]]
        out.append({"item": row.item, "length": len(row.input_ids), "tokens": tokens})
    return out
