"""Models of published shapes with random weights, made on the spot: time and memory depend on shapes, not on what was learned.

``tiny`` shapes of the same families let every script be tried on a CPU.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig, Qwen2Config
from transformers.utils import logging

from loracle.tasks.rows import Row

_QUIET = {"bos_token_id": 0, "eos_token_id": 0}
_TINY_GPT2: dict[str, Any] = {"n_layer": 2, "n_embd": 64, "n_head": 2, "vocab_size": 512, "n_positions": 256, **_QUIET}
_TINY_LLAMA: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}


def _llama(hidden: int, inner: int, layers: int, heads: int, kv_heads: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=32000,
        max_position_embeddings=4096,
    )


def config_of(name: str, tiny: bool = False) -> PretrainedConfig:
    """The config called ``name`` (see ``NAMES``), or a tiny one of its family."""
    if tiny:
        return GPT2Config(**_TINY_GPT2) if name.startswith("gpt2") else LlamaConfig(**_TINY_LLAMA)
    match name:
        case "gpt2":
            return GPT2Config()
        case "gpt2-medium":
            return GPT2Config(n_layer=24, n_embd=1024, n_head=16)
        case "qwen2.5-0.5b":
            return Qwen2Config(
                hidden_size=896,
                intermediate_size=4864,
                num_hidden_layers=24,
                num_attention_heads=14,
                num_key_value_heads=2,
                vocab_size=151936,
                tie_word_embeddings=True,
            )
        case "tinyllama-1.1b":
            return _llama(2048, 5632, 22, 32, 4)
        case "llama-7b":
            return _llama(4096, 11008, 32, 32, 32)
    raise SystemExit(f"no shape called {name}: {', '.join(NAMES)}")


NAMES = ("gpt2", "qwen2.5-0.5b", "gpt2-medium", "tinyllama-1.1b", "llama-7b")


def build(config: PretrainedConfig, device: torch.device, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Any:
    """A causal language model of ``config`` with random weights, made on ``device``."""
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.tie_weights()
    return model


def saved(config: PretrainedConfig, folder: Path, device: torch.device) -> Path:
    """Such a model as a folder, which is what ``from_pretrained`` takes. Made once."""
    if not (folder / "config.json").is_file():
        logging.disable_progress_bar()
        model = build(config, device)
        model.save_pretrained(folder)
        del model
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return folder


def full_rows(config: PretrainedConfig, length: int, count: int, seed: int = 0, top: int = 32000) -> list[Row]:
    """``count`` rows of random tokens below ``top``, each ``length`` long, every position scored."""
    top = min(int(config.vocab_size), top)
    ids = torch.randint(2, top, (count, length), generator=torch.Generator().manual_seed(seed)).tolist()
    return [Row(item, row, [-100, *row[1:]]) for item, row in enumerate(ids)]


def ragged_rows(config: PretrainedConfig, longest: int, count: int, seed: int = 0) -> list[Row]:
    """Rows of random tokens whose lengths are spread as those of instructions are (log-normal, median about 80, cut at ``longest``)."""
    draw = torch.Generator().manual_seed(seed)
    lengths = (80 * torch.exp(0.6 * torch.randn(count, generator=draw))).long().clamp(8, longest).tolist()
    top = min(int(config.vocab_size), 32000)
    rows = []
    for item, length in enumerate(lengths):
        ids = torch.randint(2, top, (length,), generator=draw).tolist()
        rows.append(Row(item, ids, [-100, *ids[1:]]))
    return rows
