"""Names of PEFT and Transformers for what this project calls otherwise, and where each factor lives.

One canonical place for every setting; an alias is moved there when the file is read.
"""

from __future__ import annotations

from typing import Any

from loracle.base.errors import SpecError
from loracle.base.names import suggest

# Factor -> dotted path in the study. These may stand under ``vary`` and ``cells``.
FACTORS: dict[str, str] = {
    "base": "base",
    "task": "task",
    "samples": "task.samples",
    "max_length": "task.max_length",
    "precision": "precision",
    "double_quant": "double_quant",
    "block_size": "block_size",
    "compute_dtype": "compute_dtype",
    "method": "adapter.method",
    "rank": "adapter.rank",
    "parameters": "adapter.parameters",
    "alpha": "adapter.alpha",
    "dropout": "adapter.dropout",
    "targets": "adapter.targets",
    "rank_pattern": "adapter.rank_pattern",
    "alpha_pattern": "adapter.alpha_pattern",
    "adapter_dtype": "adapter.dtype",
    "rslora": "adapter.rslora",
    "loraplus_ratio": "adapter.loraplus_ratio",
    "options": "adapter.options",
    "steps": "train.steps",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "gradient_accumulation": "train.gradient_accumulation",
    "learning_rate": "train.learning_rate",
    "schedule": "train.schedule",
    "weight_decay": "train.weight_decay",
    "gradient_checkpointing": "train.gradient_checkpointing",
    "optimizer": "train.optimizer",
    "group_by_length": "train.group_by_length",
    "init_seed": "train.init_seed",
    "order_seed": "train.order_seed",
}

# Alias -> dotted path.
ALIASES: dict[str, str] = {
    "r": "adapter.rank",
    "lora_r": "adapter.rank",
    "lora_rank": "adapter.rank",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "target_modules": "adapter.targets",
    "rank_pattern": "adapter.rank_pattern",
    "alpha_pattern": "adapter.alpha_pattern",
    "adapter_dtype": "adapter.dtype",
    "use_rslora": "adapter.rslora",
    "loraplus_lr_ratio": "adapter.loraplus_ratio",
    "model_name_or_path": "base.model",
    "model_name": "base.model",
    "bnb_4bit_use_double_quant": "double_quant",
    "bnb_4bit_quant_type": "precision",
    "bnb_4bit_compute_dtype": "compute_dtype",
    "bnb_4bit_blocksize": "block_size",
    "per_device_train_batch_size": "train.batch_size",
    "gradient_accumulation_steps": "train.gradient_accumulation",
    "max_steps": "train.steps",
    "num_train_epochs": "train.epochs",
    "lr": "train.learning_rate",
    "lr_scheduler_type": "train.schedule",
    "adam_beta1": "train.beta1",
    "adam_beta2": "train.beta2",
    "adam_epsilon": "train.epsilon",
    "optim": "train.optimizer",
    "eval_steps": "train.eval_every",
    "load_best_model_at_end": "train.best_checkpoint",
    "max_seq_length": "task.max_length",
    "dataset": "task.data",
    "data_path": "task.data",
}

# Words of other libraries for values, by dotted path.
VALUES: dict[str, dict[str, str]] = {
    "precision": {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "8bit": "int8", "4bit": "nf4"},
    "compute_dtype": {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"},
    "adapter.dtype": {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"},
    "train.optimizer": {"adamw_torch": "adamw", "adamw_torch_fused": "adamw", "paged_adamw": "paged_adamw_32bit"},
}

# One setting said in either of two ways: where one is set over the other, the other goes.
INSTEAD = {"adapter.rank": "adapter.parameters", "adapter.parameters": "adapter.rank"}

SECTIONS = ("base", "task", "adapter", "train", "run", "diagnose")


def put(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set ``tree['a']['b'] = value`` for ``path = 'a.b'``, making sections on the way.

    A section given as a plain word (``base: gpt2``) is opened first.
    """
    parts = path.split(".")
    for i, part in enumerate(parts[:-1]):
        inner = open_section(part, tree.get(part)) if i == 0 else tree.get(part, {})
        if not isinstance(inner, dict):
            raise SpecError(f"'{part}' is not a section, so '{parts[-1]}' cannot stand in it", path)
        tree[part] = tree = dict(inner)
    tree[parts[-1]] = value


def drop(tree: dict[str, Any], path: str) -> None:
    """Take ``path = 'a.b'`` out of the tree, where it is there; the section is a new one."""
    section, _, key = path.partition(".")
    if isinstance(tree.get(section), dict):
        tree[section] = {k: v for k, v in tree[section].items() if k != key}


def open_section(name: str, value: Any) -> Any:
    """``base: gpt2`` → ``{model: gpt2}``; ``task: alpaca`` → ``{name: alpaca}``; None → ``{}``."""
    if value is None:
        return {}
    if isinstance(value, str) and name in ("base", "task"):
        return {"model" if name == "base" else "name": value}
    return value


def factor_path(name: str, where: str) -> str:
    """The dotted path of a factor, given as its name, an alias or the dotted path itself."""
    if name in FACTORS:
        return FACTORS[name]
    if name in ALIASES:
        return ALIASES[name]
    if name in FACTORS.values() or name.split(".")[0] in ("train", "adapter", "task", "base"):
        return name
    raise SpecError(f"unknown factor, {suggest(name, [*FACTORS, *ALIASES])}", f"{where}.{name}")


def translate(path: str, value: Any) -> Any:
    """A value in our word for it: ``bfloat16`` under ``precision`` is ``bf16``."""
    table = VALUES.get(path, {})
    if isinstance(value, str):
        return table.get(value, value)
    if path == "precision" and isinstance(value, dict):
        return {k: table.get(v, v) if isinstance(v, str) else v for k, v in value.items()}
    return value


def canonical(raw: dict[str, Any]) -> dict[str, Any]:
    """The study as read, with aliases moved to their place, plain-word sections opened, values translated."""
    out: dict[str, Any] = {}
    moved: list[tuple[str, str, Any]] = []
    for key, value in raw.items():
        if key in SECTIONS:
            section = open_section(key, value)
            out[key] = dict(section) if isinstance(section, dict) else section
            for inner in list(section) if isinstance(section, dict) else []:
                if inner in ALIASES:
                    moved.append((f"{key}.{inner}", ALIASES[inner], out[key].pop(inner)))
        elif key in ALIASES:
            moved.append((key, ALIASES[key], value))
        else:
            out[key] = value
    for written, path, value in moved:
        if get(out, path) is not None:
            raise SpecError(f"means the same as {path}, which is set too: keep one", written)
        put(out, path, value)
    for path in VALUES:
        current = get(out, path)
        if current is not None:
            put(out, path, translate(path, current))
    return out


def get(tree: dict[str, Any], path: str) -> Any:
    """The value at a dotted path, or None."""
    node: Any = tree
    for part in path.split("."):
        if not isinstance(node, dict) or part not in node:
            return None
        node = node[part]
    return node
