"""The studies in ``studies/``: each loads, plans from configs alone with the right numbers of parameters, and (slow) runs.

The bases' folders have the published shapes and no weights; the built-in base's tokenizer stands in for theirs.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loracle.base.errors import LoracleError
from loracle.models.source import BUILTIN
from loracle.spec import load_study
from loracle.store.files import read_json, write_json
from loracle.store.layout import StudyFolder
from loracle.study.cells import planned_cells
from loracle.study.preview import preview_plan
from loracle.tasks.library import LIBRARY

ROOT = Path(__file__).resolve().parents[2]
STUDIES = sorted((ROOT / "studies").glob("*.yaml"))
COMMAND = re.compile(r"^(?:# +)?loracle (plan|run|eval) (\S+)(.*)$", flags=re.MULTILINE)

GPT2 = {"vocab_size": 50257, "n_positions": 1024}
MEDIUM = ("GPT2Config", {**GPT2, "n_embd": 1024, "n_layer": 24, "n_head": 16})
QWEN = {"num_attention_heads": 16, "num_key_value_heads": 2, "max_position_embeddings": 32768}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", {**GPT2, "n_embd": 768, "n_layer": 12, "n_head": 12}),
    "gpt2-medium": MEDIUM,
    "DialoGPT-medium": MEDIUM,
    "Qwen2.5-3B-Instruct": (
        "Qwen2Config",
        {
            **QWEN,
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
    ),
    "Qwen2.5-7B-Instruct": (
        "Qwen2Config",
        {
            **QWEN,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "tie_word_embeddings": False,
        },
    ),
    "TinyLlama-1.1B-Chat-v1.0": (
        "LlamaConfig",
        {
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 22,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "max_position_embeddings": 2048,
            "vocab_size": 32000,
            "tie_word_embeddings": False,
        },
    ),
}
"""Published shapes, by the last part of the hub id."""

# Parameters at rank r of one adapter on each of the layers, as r · (d_in + d_out) gives them.
C_ATTN, ATTN_C_PROJ, MLP_C_PROJ = 1024 + 3072, 1024 + 1024, 4096 + 1024
SLICE, MLP = 1024 + 1024, 2 * (1024 + 4096)  # one of q, k, v in c_attn, or o; up and down
QWEN_3B = 36 * ((2048 + 2048) * 2 + (2048 + 256) * 2 + (2048 + 11008) * 3)
MEDIUM_ALL = 24 * (C_ATTN + ATTN_C_PROJ + MLP)
TINY_QKVO = 22 * ((2048 + 2048) * 2 + (2048 + 256) * 2)
QWEN_3B_TOTAL, MEDIUM_TOTAL = 3_085_938_688, 354_823_168


def by_rank(per_rank: int, label: str, ranks: tuple[int, ...], head: int = 0, last: str = "") -> dict[str, int]:
    return {f"{p}-r{r}-{label}{last}": r * per_rank + head for p in ("bf16", "nf4") for r in ranks}


def rank_by_task() -> dict[str, int]:
    heads = {"instructions": 0, "intents": 2 * 1024, "code": 0, "summaries": 0}
    found: dict[str, int] = {}
    for name, head in heads.items():
        found |= by_rank(MEDIUM_ALL, "all-linear", (2, 4, 8, 16), head, f"-{name}.jsonl")
    return found


TRAINABLE: dict[str, dict[str, int]] = {
    "qlora-diagnostic-gpt2": {
        **by_rank(24 * C_ATTN, "c_attn", (2, 4, 8, 16)),
        **{f"{p}-r8-c_attn-gradient-checkpointing": 786_432 for p in ("bf16", "nf4")},
    },
    "layer-variants-gpt2": {
        f"{p}-r8-{label}": 8 * 24 * width
        for p in ("bf16", "nf4")
        for label, width in {
            "qv": 2 * SLICE,
            "kv": 2 * SLICE,
            "qkvo": 4 * SLICE,
            "q-k-v-o-up-down": 4 * SLICE + MLP,
        }.items()
    },
    "qwen-sst2": {
        **by_rank(QWEN_3B, "all-linear", (4, 8, 16), head=2 * 2048),
        "bf16-full-lr1e-05": QWEN_3B_TOTAL + 2 * 2048,
    },
    "qwen-squad": {**by_rank(QWEN_3B, "all-linear", (4, 8, 16)), "bf16-full-lr1e-05": QWEN_3B_TOTAL},
    "qwen-alpacaeval": {**by_rank(QWEN_3B, "all-linear", (4, 8, 16)), "bf16-full-lr1e-05": QWEN_3B_TOTAL},
    "dialogpt-banking77": {
        **{f"{p}-r16-c_attn-c_proj": 4_404_224 for p in ("fp16", "nf4", "int4")},
        "fp16-full-lr2e-05": MEDIUM_TOTAL + 77 * 1024,
    },
    "chat-gpt2-tinyllama": {
        **{f"{p}-r8-qkvo-gpt2": 8 * 12 * 4 * (768 + 768) for p in ("bf16", "int8")},
        **{f"{p}-r8-qkvo-tinyllama-1.1b-chat-v1.0": 8 * TINY_QKVO for p in ("bf16", "int8")},
    },
    "rank-by-task": rank_by_task(),
    "methods-gpt2": {
        **{f"bf16-r8-c_attn{more}": 786_432 for more in ("", "-rslora", "-lp8")},
        "nf4-r8-c_attn": 786_432,
        **{f"{p}-dora-r8-c_attn": 786_432 + 24 * 3072 for p in ("bf16", "nf4")},  # a magnitude for each output
        "bf16-pissa-r8-c_attn": 786_432,
        "nf4-loftq-r8-c_attn": 786_432,
        "bf16-adalora-r8-c_attn-lr0.002": 24 * 12 * (C_ATTN + 1),  # half again the rank, and a value for each
        **{f"{p}-ia3-c_attn-lr0.01": 24 * 3072 for p in ("bf16", "nf4")},
        "bf16-ln-tuning-lr0.002": (2 * 24 + 1) * 2 * 1024,
        "bf16-vera-r8-c_attn-lr0.01": 24 * (3072 + 8),
        **{f"{p}-prefix-tuning-lr0.01": 20 * 24 * 2 * 1024 for p in ("bf16", "nf4")},
        "bf16-prompt-tuning-lr0.03": 20 * 1024,
        "bf16-full-lr5e-05": MEDIUM_TOTAL,
    },
}
TOTAL = {
    "qlora-diagnostic-gpt2": {"nf4-r8-c_attn": MEDIUM_TOTAL + 786_432},
    "layer-variants-gpt2": {"nf4-r8-qv": MEDIUM_TOTAL + 786_432},
    "qwen-sst2": {"bf16-full-lr1e-05": QWEN_3B_TOTAL + 4096},
    "qwen-squad": {"nf4-r8-all-linear": QWEN_3B_TOTAL + 8 * QWEN_3B, "bf16-full-lr1e-05": QWEN_3B_TOTAL},
    "qwen-alpacaeval": {"bf16-full-lr1e-05": QWEN_3B_TOTAL},
    "dialogpt-banking77": {"nf4-r16-c_attn-c_proj": 359_227_392, "fp16-full-lr2e-05": MEDIUM_TOTAL + 78_848},
    "chat-gpt2-tinyllama": {
        "bf16-r8-qkvo-gpt2": 124_439_808 + 589_824,
        "int8-r8-qkvo-tinyllama-1.1b-chat-v1.0": 1_100_048_384 + 8 * TINY_QKVO,
    },
    "rank-by-task": {"bf16-r2-all-linear-intents.jsonl": MEDIUM_TOTAL + 2 * MEDIUM_ALL + 2048},
    "methods-gpt2": {"bf16-full-lr5e-05": MEDIUM_TOTAL, "bf16-ia3-c_attn-lr0.01": MEDIUM_TOTAL + 24 * 3072},
}


# -- what the studies need and the repository does not have -----------------------------------------------------------


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def write_data(folder: Path) -> Path:
    """Made-up rows in every shape that the studies read, under the names that the studies give."""
    place = ["the market", "a small town", "the old bridge", "the river", "our school"]
    pairs = [(f"Say where number {i} is.", f"It is near {place[i % 5]}.") for i in range(40)]
    alpaca = [{"instruction": a, "input": "", "output": b} for a, b in pairs]
    write_rows(folder / "instructions.jsonl", alpaca)
    write_rows(folder / "alpaca_eval.json", [{**row, "generator": "made up"} for row in alpaca[:6]])
    write_rows(
        folder / "chat.jsonl",
        [{"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]} for a, b in pairs],
    )
    write_rows(folder / "code.jsonl", [{"prompt": f"add {i}", "completion": f"x = x + {i}"} for i in range(40)])
    write_rows(folder / "summaries.jsonl", [{"document": f"{a} {b}" * 3, "summary": b} for a, b in pairs])
    write_rows(
        folder / "intents.jsonl", [{"text": a, "label": ["near", "far"][i % 2]} for i, (a, _) in enumerate(pairs)]
    )
    reviews = [{"sentence": f"{a} {b}", "label": ["negative", "positive"][i % 2]} for i, (a, b) in enumerate(pairs)]
    write_rows(folder / "reviews.jsonl", reviews)
    squad = [
        {"context": b, "question": a, "answers": {"text": [place[i % 5]], "answer_start": [b.find(place[i % 5])]}}
        for i, (a, b) in enumerate(pairs)
    ]
    write_rows(folder / "questions.jsonl", squad)
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one folder a base: its config, and a tokenizer, but no weights."""
    import transformers

    root = tmp_path_factory.mktemp("bases")
    for name, (kind, shape) in SHAPES.items():
        getattr(transformers, kind)(**shape).save_pretrained(root / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(BUILTIN / "gpt2-demo" / file, root / name / file)
    return root


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of ``studies/`` with the data that users bring."""
    root = tmp_path_factory.mktemp("shelf") / "studies"
    shutil.copytree(ROOT / "studies", root)
    write_data(root / "data")
    return root


class InProcess:
    """A launcher that does an inspect job here and now: starting a worker would take seconds for each plan."""

    def prepare(self, kinds: Any) -> None: ...

    def close(self) -> None: ...

    def start(self, folder: Path, threads: int, gpu: str | None = None) -> InProcess:
        from loracle.diagnose.inspect import inspect

        self.folder = folder
        record = inspect(StudyFolder(folder.parents[1]), read_json(folder / "job.json"), lambda *_, **__: None)
        write_json(folder / "record.json", {"schema": 1, "kind": "inspect", "id": folder.name, **record})
        return self

    def events(self) -> list[dict[str, Any]]:
        return []

    def exit_code(self) -> int | None:
        return 0

    def terminate(self) -> None: ...

    kill = terminate


@pytest.fixture(scope="module")
def plan_of(bases: Path, shelf: Path) -> Callable[..., dict[str, Any]]:
    @functools.cache
    def make(name: str, *overrides: str) -> dict[str, Any]:
        written = load_study(shelf / f"{name}.yaml", overrides)
        where = {model: str(bases / model.split("/")[-1]) for model in hub_bases(written)}
        varied = [f"vary.base={json.dumps([where[m] for m in written.vary['base']])}"] if "base" in written.vary else []
        one = [] if varied else [f"base.model={where[written.base.model]}"]
        study = load_study(shelf / f"{name}.yaml", [*overrides, *one, *varied, "run.device=cpu"])
        return preview_plan(study, launcher=InProcess())

    return make


def hub_bases(study: Any) -> list[str]:
    return list(study.vary.get("base", ())) or [study.base.model]


def commands(path: Path) -> list[tuple[str, str, list[str]]]:
    """(command, what it is about, the rest) of every command line in a file."""
    return [
        (name, about, shlex.split(rest, comments=True))
        for name, about, rest in COMMAND.findall(path.read_text(encoding="utf-8"))
    ]


def overrides_of(words: list[str]) -> list[str]:
    return [words[i + 1] for i, word in enumerate(words) if word == "--set"]


# -- plans ------------------------------------------------------------------------------------------------------------


def test_there_is_a_study_for_every_row_of_the_tables() -> None:
    assert [path.stem for path in STUDIES] == sorted(TRAINABLE) == sorted(SHRUNK) == sorted(TOTAL)
    page = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    for path in STUDIES:
        assert f"{path.name})" in page, path.name
        assert load_study(path).name == path.stem


@pytest.mark.parametrize("name", sorted(TRAINABLE))
def test_it_plans_from_configs_alone(plan_of: Callable[..., dict[str, Any]], name: str) -> None:
    plan = plan_of(name)
    assert {cell["label"]: cell["trainable_params"] for cell in plan["cells"]} == TRAINABLE[name]
    totals = {cell["label"]: cell["total_params"] for cell in plan["cells"]}
    assert {label: totals[label] for label in TOTAL[name]} == TOTAL[name]
    assert all(cell["predicted_bytes"] or cell["predicted_reason"] for cell in plan["cells"])
    assert all(run["cohort"] for run in plan["runs"])


@pytest.mark.parametrize("name", sorted(TRAINABLE))
def test_arms_differ_in_precision_alone(plan_of: Callable[..., dict[str, Any]], name: str) -> None:
    cells = plan_of(name)["cells"]
    quantized = [c for c in cells if c["precision"] in ("nf4", "int4", "int8") and c["method"] != "loftq"]  # no twin
    assert quantized
    for cell in quantized:
        assert cell["reference"] is not None, cell["label"]
        assert cell["differences"] == ["precision"], cell["label"]
    for cell in cells:
        if cell["method"] == "full":  # beside the method, a learning rate of its own and nothing else
            twin = next(c for c in cells if (c["precision"], c["method"]) == (cell["precision"], "lora"))
            for key in ("optimizer", "gradient_checkpointing", "steps", "epochs", "batch_size", "schedule"):
                assert cell["config"]["train"][key] == twin["config"]["train"][key], key


def test_checkpointing_and_precision_make_a_square(plan_of: Callable[..., dict[str, Any]]) -> None:
    plan = plan_of("qlora-diagnostic-gpt2")
    eight = [cell for cell in plan["cells"] if cell["rank"] == 8]
    square = {(cell["precision"], cell["config"]["train"]["gradient_checkpointing"]) for cell in eight}
    assert square == {(p, c) for p in ("bf16", "nf4") for c in (False, True)}
    assert Counter(run["role"] for run in plan["runs"]) == {"run": 50, "null": 5}


def test_every_arm_of_dialogpt_recomputes_its_activations(plan_of: Callable[..., dict[str, Any]]) -> None:
    plan = plan_of("dialogpt-banking77")
    assert all(cell["config"]["train"]["gradient_checkpointing"] for cell in plan["cells"])
    assert {cell["config"]["compute_dtype"] for cell in plan["cells"]} == {"float16"}
    assert [entry["status"] for entry in plan["data"].values()] == [
        "failed"
    ]  # the hub is out of reach, the plan is not


@pytest.mark.slow
def test_the_larger_qwen(plan_of: Callable[..., dict[str, Any]]) -> None:
    overrides = next(
        overrides_of(rest) for _, _, rest in commands(ROOT / "studies" / "qwen-sst2.yaml") if "name=qwen7b-sst2" in rest
    )
    plan = plan_of("qwen-sst2", *overrides)
    per_rank = 28 * ((3584 + 3584) * 2 + (3584 + 512) * 2 + (3584 + 18944) * 3)
    assert {cell["label"]: cell["trainable_params"] for cell in plan["cells"]} == by_rank(
        per_rank, "all-linear", (4, 8, 16), head=2 * 3584
    )
    # A sequence classifier has no output embeddings, and this base's are not tied.
    assert plan["cells"][0]["total_params"] - plan["cells"][0]["trainable_params"] == 7_615_616_512


def test_the_model_cards_setting() -> None:
    path = ROOT / "studies" / "qlora-diagnostic-gpt2.yaml"
    overrides = next(overrides_of(rest) for _, _, rest in commands(path) if "task.samples=5000" in rest)
    small, large = load_study(path), load_study(path, overrides)
    assert (small.task.samples, small.train.steps, small.train.batch_size, small.train.eval_every) == (1000, 200, 4, 50)
    assert (large.task.samples, large.train.steps, large.train.batch_size) == (5000, 1000, 8)
    assert (large.vary, large.cells, large.adapter) == (small.vary, small.cells, small.adapter)


def test_equal_budgets_are_equal(plan_of: Callable[..., dict[str, Any]]) -> None:
    path = ROOT / "studies" / "layer-variants-gpt2.yaml"
    overrides = next(overrides_of(rest) for _, _, rest in commands(path) if "name=layer-budgets-gpt2" in rest)
    plan = plan_of("layer-variants-gpt2", *overrides)
    assert [cell["rank"] for cell in plan["cells"]] == [36, 36, 18, 8] * 2
    assert {cell["trainable_params"] for cell in plan["cells"]} == {3_538_944}
    assert [cell["differences"] for cell in plan["cells"][4:]] == [["precision"]] * 4


def test_a_share_of_the_training_rows_in_place_of_the_test_split() -> None:
    path = ROOT / "studies" / "dialogpt-banking77.yaml"
    overrides = next(overrides_of(rest) for _, _, rest in commands(path) if "task.eval_split=null" in rest)
    tasks = [planned.cell.task for planned in planned_cells(load_study(path, overrides))]
    assert {(task.data, task.eval_split, task.eval_fraction) for task in tasks} == {("PolyAI/banking77", None, 0.1)}
    assert {task.eval_split for task in (p.cell.task for p in planned_cells(load_study(path)))} == {"test"}


@pytest.mark.parametrize("path", [*STUDIES, ROOT / "docs" / "studies.md"], ids=lambda path: path.name)
def test_command_lines_say_what_the_program_takes(path: Path) -> None:
    found = commands(path)
    assert found
    for name, about, rest in found:
        if name == "eval":
            continue  # its options are checked with those of the pages, below
        assert (ROOT / about).is_file(), about
        cells = planned_cells(load_study(ROOT / about, overrides_of(rest)))
        assert cells
        assert len(rest) == 2 * len(overrides_of(rest)), rest


def test_eval_command_lines_have_known_options() -> None:
    import typer

    from loracle.cli.app import app

    known = {option for p in typer.main.get_command(app).commands["eval"].params for option in p.opts}  # type: ignore[attr-defined]
    lines = [rest for path in STUDIES for name, _, rest in commands(path) if name == "eval"]
    assert len(lines) == 3
    for rest in lines:
        assert {word for word in rest if word.startswith("--")} <= known


@pytest.mark.parametrize("name", ["qwen-alpacaeval", "chat-gpt2-tinyllama", "rank-by-task"])
def test_data_that_users_bring_is_asked_for_at_once(name: str) -> None:
    with pytest.raises(LoracleError, match=r"data/[a-z_]+\.jsonl?\b.*"):
        preview_plan(load_study(ROOT / "studies" / f"{name}.yaml"), launcher=InProcess())


# -- runs -------------------------------------------------------------------------------------------------------------

TINY = (
    "base=gpt2-demo", "seeds=[42]", "train.epochs=null", "train.steps=4", "train.batch_size=2", "train.eval_every=2",
    "task.samples=40", "task.eval_samples=6", "task.max_length=64", "run.cohort=4", "run.device=cpu",
)  # fmt: skip
SHORT = ("task.generate_samples=2", "task.max_new_tokens=8")
SHRUNK: dict[str, tuple[str, ...]] = {
    "qlora-diagnostic-gpt2": (*TINY, *SHORT, "task.data=data/instructions.jsonl", "vary.rank=[2,8]"),
    "layer-variants-gpt2": (*TINY, *SHORT, "task.data=data/instructions.jsonl"),
    "qwen-sst2": (*TINY, "base=LLAMA", "task.data=data/reviews.jsonl", "vary.rank=[4,8]"),
    "qwen-squad": (*TINY, *SHORT, "base=LLAMA", "task.data=data/questions.jsonl", "vary.rank=[4,8]"),
    "qwen-alpacaeval": (*TINY, *SHORT, "base=LLAMA", "task.data=data/instructions.jsonl", "vary.rank=[4,8]",
                        "task.generate_samples=null"),
    "dialogpt-banking77": (*TINY, f"task.data={LIBRARY / 'banking77-10.train.csv'}", "compute_dtype=auto"),
    "chat-gpt2-tinyllama": (*TINY, *SHORT, "vary.base=[gpt2-demo, LLAMA]", "task.latency_samples=2"),
    "methods-gpt2": (*TINY, *SHORT, "task.data=data/instructions.jsonl"),
    "rank-by-task": (*(item for item in TINY if not item.startswith("task.")), "vary.rank=[2,8]", "VARY_TASK"),
}  # fmt: skip
"""The ``--set`` of each study that make it small. LLAMA is a tiny model made on the spot."""


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with random weights, and the built-in base's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama") / "llama-tiny"
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=8192, max_position_embeddings=256, bos_token_id=0, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUILTIN / "gpt2-demo" / file, folder / file)
    return folder


def small_tasks(study: Any) -> str:
    """``vary.task`` of a study with each task cut down: what a task says for itself, ``task.samples`` cannot change."""
    small = {"samples": 24, "eval_samples": 4, "max_length": 64, "generate_samples": 2, "max_new_tokens": 8}
    return "vary.task=" + json.dumps([{**task, **small} for task in study.vary["task"]])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SHRUNK))
def test_it_runs_to_the_end_when_shrunk(shelf: Path, tiny_llama: Path, tmp_path: Path, name: str) -> None:
    if name == "dialogpt-banking77":
        pytest.importorskip("hqq", reason="int4 needs the extra hqq")
    whole = load_study(shelf / f"{name}.yaml")
    small = [item.replace("LLAMA", str(tiny_llama)) for item in SHRUNK[name]]
    small = [small_tasks(whole) if item == "VARY_TASK" else item for item in small]
    words = [word for item in small for word in ("--set", item)]
    out = tmp_path / "out"
    ended = subprocess.run(
        [sys.executable, "-m", "loracle", "run", str(shelf / f"{name}.yaml"), "--out", str(out), "--json", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert ended.stdout, ended.stderr[-3000:]
    told = json.loads(ended.stdout)
    assert {run["status"] for run in told["runs"].values()} == {"done"}, told["runs"]
    assert (told["problems"], ended.returncode) == ([], 0), ended.stderr[-3000:]
    records = [read_json(out / "runs" / run / "record.json") for run in told["runs"]]
    assert len(records) == len(read_json(out / "plan.json")["runs"])
    assert all(record["reload"]["passed"] for record in records)
    assert Path(told["report"]).is_file()
    thresholds = [v for v in read_json(out / "report" / "verdicts.json") if v["question"] == "rank_threshold"]
    if name == "rank-by-task":
        assert len(thresholds) == len(whole.vary["task"])  # one for each task, none taken for another
