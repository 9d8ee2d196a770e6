"""Writes docs/study.md from the study file's types: ``python tools/study_reference.py`` (or ``make docs``).

``--check`` writes nothing and exits with 1 when the page is out of date.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from loracle.spec import study_schema
from loracle.spec.aliases import ALIASES, FACTORS, VALUES
from loracle.spec.study import QUESTIONS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "study.md"

INTRO = """\
# The study file

Written by `make docs` from `src/loracle/spec/study.py`: edit the types, not this page.

One YAML file says what is trained, what is varied and what is asked. `loracle new` writes a commented one to start from,
`loracle new --schema` prints its JSON Schema for editors, and `--set a.b=value` overrides any key of it.

- Only `name` and a task (`task.name` or `task.data`) are needed; everything else has a default.
- Types are strict and unknown keys are errors. `2e-4` is a number, `yes` and `no` are words; only `true` and `false` are truth values.
- Paths are relative to the study file, or else to the current folder.
- `base: NAME` and `task: NAME` may stand in place of `base: {model: NAME}` and `task: {name: NAME}`.
- A task of the library (`loracle new --tasks`) brings its own defaults; what the study says stands above them.
"""

SECTIONS = (
    ("", "At the top of the file"),
    ("base", "`base`"),
    ("task", "`task`"),
    ("adapter", "`adapter`"),
    ("train", "`train`"),
    ("questions", "Each of `questions`"),
    ("decide", "`decide`"),
    ("run", "`run`"),
    ("diagnose", "`diagnose`"),
)

# What the types say with their names alone, in words.
MEANINGS = {
    "name": "the study's name and, below `runs/`, its folder: a-z, 0-9, `.`, `_`, `-`",
    "seeds": "each cell is trained once with each; below three nothing is decided",
    "questions": "what is asked of the study; a name alone (`- memory`) stands for `{name: memory}`",
    "base": "the pretrained model",
    "task": "data, and how it becomes scored tokens",
    "adapter": "what is trained",
    "train": "the optimisation",
    "run": "how the study is executed; nothing here changes a result beyond rounding",
    "diagnose": "what is measured on trained adapters",
    "task.eval_fraction": "share of the rows that is held out for evaluation where there is no `eval`",
    "task.max_new_tokens": "at most so many tokens are generated for one prompt",
    "task.version": "version of a library entry",
    "task.source": "where the data come from (library entries)",
    "task.licence": "licence of the data (library entries)",
    "task.description": "what the task is (library entries)",
    "adapter.rank": "rank r of the update ΔW = alpha/r · B·A",
    "adapter.alpha": "a number, or a multiple of the rank such as `2r`, which keeps the scale alpha/r in a rank sweep",
    "adapter.dropout": "dropout on the adapter's input",
    "train.steps": "optimizer steps; give `steps` or `epochs`, one epoch where neither is given",
    "train.epochs": "passes over the training rows; may be a fraction",
    "train.batch_size": "rows of one forward pass of one run",
    "train.gradient_accumulation": "forward passes of one optimizer step; the loss is the mean over all their target tokens",
    "train.learning_rate": "peak learning rate",
    "train.schedule": "shape of the learning rate after warm-up",
    "train.warmup_steps": "steps of linear warm-up; not together with `warmup_ratio`",
    "train.warmup_ratio": "the same as a share of all steps",
    "train.weight_decay": "decoupled weight decay of AdamW",
    "train.beta1": "AdamW's decay of the first moment",
    "train.beta2": "AdamW's decay of the second moment",
    "train.epsilon": "AdamW's epsilon",
    "train.optimizer": "the paged and 8-bit ones are bitsandbytes' own; on a CPU they run without paging",
    "train.gradient_checkpointing": "recompute activations in the backward pass: less memory, more time",
    "questions.name": "which question (reading-verdicts.md)",
    "questions.margin": "a fraction of 1; each question has its own default (reading-verdicts.md)",
    "questions.primary": "the one that is not exploratory; the first quality question where none is marked",
    "questions.compare": "`recipe`: arms may differ in several things, and the verdict is on the bundle",
    "run.retries": "how often a cohort whose worker died is tried again",
    "run.checkpoint_seconds": "seconds between checkpoints of a cohort",
    "run.device": "where workers compute",
}  # fmt: skip


def page() -> str:
    """The whole page."""
    schema = study_schema()
    parts = [INTRO]
    for section, title in SECTIONS:
        parts += [f"## {title}\n", table(schema, section)]
    return "\n".join([*parts, factors(), aliases()])


def table(schema: dict[str, Any], section: str) -> str:
    """Key, type, default and meaning of every key of one section."""
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    owner = node(schema, section)
    for key, entry in owner["properties"].items():
        dotted = f"{section}.{key}" if section else key
        meaning = entry.get("description") if dotted in MEANINGS or "$ref" not in entry else None
        meaning = MEANINGS.get(dotted) or meaning
        if not meaning:
            raise SystemExit(f"{dotted} has no meaning: give its Field a description")
        needed = key in owner.get("required", ())
        default = "needed" if needed else shown(entry.get("default"), entry)
        cells = (f"`{dotted}`", kind(entry, schema), default, meaning)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def node(schema: dict[str, Any], section: str) -> dict[str, Any]:
    """The schema of a section of the file."""
    if not section:
        return schema
    entry = schema["properties"][section]
    entry = entry.get("items", entry)
    entry = next((option for option in entry.get("anyOf", ()) if "$ref" in option), entry)
    name = (entry.get("$ref") or entry["allOf"][0]["$ref"]).rpartition("/")[2]
    found: dict[str, Any] = schema["$defs"][name]
    return found


def kind(entry: dict[str, Any], schema: dict[str, Any]) -> str:
    """A type in words: ``whole number ≥ 1 or null``."""
    if "$ref" in entry or "allOf" in entry:
        return "section"
    if "anyOf" in entry:
        return " or ".join(dict.fromkeys(kind(option, schema) for option in entry["anyOf"]))
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    if "const" in entry:
        return f"`{entry['const']}`"
    name = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
    if entry.get("type") == "array":
        inner = entry.get("items") or {}
        return "list of sections" if "$ref" in inner else f"list of {kind(inner, schema)}"
    if entry.get("type") == "object":
        inner = entry.get("additionalProperties")
        return f"mapping to {kind(inner, schema)}" if isinstance(inner, dict) and inner.get("type") else "mapping"
    return name.get(str(entry.get("type")), "any") + limits(entry)


def limits(entry: dict[str, Any]) -> str:
    """`` ≥ 1``, `` > 0 and < 1``."""
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [f"{sign} {entry[key]:g}" for key, sign in signs.items() if key in entry]
    return f" {' and '.join(found)}" if found else ""


def shown(value: Any, entry: dict[str, Any]) -> str:
    """A default as it would stand in the file."""
    if entry.get("type") == "array" and value and isinstance(value[0], dict):
        return ", ".join(f"`{question['name']}`" for question in value)
    if entry.get("type") == "object" and not value:
        return "`{}`"
    if isinstance(value, dict):
        return "see below"
    if isinstance(value, float):
        return f"`{value:g}`".replace("e-0", "e-")
    return f"`{json.dumps(value, ensure_ascii=False)}`" if not isinstance(value, str) else f"`{value}`"


def factors() -> str:
    """What may stand under ``vary`` and ``cells``."""
    lines = [
        "## Factors\n",
        "Under `vary` each factor has a list of values, and every combination is a cell; under `cells` stand further cells,",
        "each as `{factor: value}`. A factor may be named by its short name, by an alias or by its dotted path.\n",
        "| factor | sets |",
        "| --- | --- |",
        *(f"| `{name}` | `{path}` |" for name, path in FACTORS.items()),
    ]
    return "\n".join(lines) + "\n"


def aliases() -> str:
    """Other libraries' names."""
    lines = [
        "## Aliases\n",
        "Names of PEFT and Transformers are taken for ours, at the top of the file, in its sections and in `--set`.",
        "Giving a key and its alias is an error.\n",
        "| alias | means |",
        "| --- | --- |",
        *(f"| `{name}` | `{path}` |" for name, path in ALIASES.items()),
        "",
        "Values too:\n",
        "| key | value | means |",
        "| --- | --- | --- |",
        *(f"| `{path}` | `{word}` | `{ours}` |" for path, words in VALUES.items() for word, ours in words.items()),
        "",
        f"Questions: {', '.join(f'`{name}`' for name in QUESTIONS)}. What each asks, its margin and its unit: "
        "[reading-verdicts.md](reading-verdicts.md).",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page, or with ``--check`` say whether it is up to date."""
    text = page()
    if "--check" in sys.argv[1:]:
        fresh = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        print("docs/study.md is up to date" if fresh else "docs/study.md is out of date: make docs")
        return 0 if fresh else 1
    PAGE.write_text(text, encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
