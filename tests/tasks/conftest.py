"""Tokenizers made here: a byte-level BPE trained on a few lines, in the variants that have traps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LINES = [
    "### Instruction:\nName the capital of France.\n\n### Response:\nThe capital is Paris.",
    "User: hello there\nAssistant: hello, how are you?",
    "Query: where is my card?\nIntent: card arrival",
    "Text: a fine film\nLabel: positive",
] * 4

SPECIAL = ["<eos>", "<bos>", "<pad>", "<|im_start|>", "<|im_end|>"]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make(bos: bool = False, space: bool = False, **named: Any) -> PreTrainedTokenizerFast:
    """The made tokenizer; ``bos``: it puts one in front by itself; ``space``: it glues a space to a text's start."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        LINES,
        trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    if bos:
        raw.post_processor = processors.TemplateProcessing(
            single="<bos> $A <eos>", pair="<bos> $A $B <eos>", special_tokens=[("<bos>", 1), ("<eos>", 0)]
        )
    options: dict[str, Any] = {"eos_token": "<eos>", "bos_token": "<bos>", "pad_token": "<pad>"} | named
    return PreTrainedTokenizerFast(tokenizer_object=raw, **options)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], str]:
    """Write text, bytes or (for .jsonl and .json) rows to a file; gives its path."""

    def writer(name: str, content: Any) -> str:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        else:
            path.write_text(json.dumps(content), encoding="utf-8")
        return str(path)

    return writer


def tokens(tokenizer: Any, row: Any) -> list[tuple[str, bool]]:
    """(text, scored) of runs of equally scored tokens: what a golden example is compared with."""
    out: list[tuple[str, bool]] = []
    for token, label in zip(row.input_ids, row.labels, strict=True):
        assert label in (-100, token)
        text, scored = tokenizer.decode([token]), label != -100
        if out and out[-1][1] == scored:
            out[-1] = (out[-1][0] + text, scored)
        else:
            out.append((text, scored))
    return out
