"""What a study file may say. Field names are the field's own; aliases of PEFT and Transformers are in ``aliases.py``.

Not covered here: reading YAML (``load.py``), expanding factors into cells (``factors.py``), and what needs a model
or data to be checked (the ``inspect`` job).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from loracle.base.names import is_safe
from loracle.spec.adapter import Adapter as Adapter
from loracle.spec.methods import VIRTUAL
from loracle.spec.mixing import Mixed as Mixed
from loracle.spec.types import BLOCK_SIZES as BLOCK_SIZES
from loracle.spec.types import FOUR_BIT as FOUR_BIT
from loracle.spec.types import INTEGER as INTEGER
from loracle.spec.types import PRECISIONS as PRECISIONS
from loracle.spec.types import UNQUANTIZED as UNQUANTIZED
from loracle.spec.types import Dtype, PositiveInt
from loracle.spec.types import Precision as Precision
from loracle.spec.types import Spec as Spec
from loracle.spec.types import parse_bytes as parse_bytes

QUESTIONS = (
    "degradation",
    "task_metric",
    "rank_threshold",
    "similarity",
    "sensitivity",
    "allocation",
    "memory",
    "speed",
)
UNDECIDED = frozenset({"sensitivity", "allocation"})  # measured and shown; no claim, so no verdict
EQUAL_SIZE = 0.1  # within this share of one number of parameters adapters count as equally large


class Base(Spec):
    """The pretrained model: a hub id, a folder, or the name of a base built into the package."""

    model: str = Field("gpt2-demo", description="hub id, folder in Hugging Face format, or 'gpt2-demo' (built in)")
    revision: str | None = Field(None, description="hub branch, tag or commit; pinned in the record")
    add_tokens: tuple[str, ...] = Field(
        (), description="new tokens for the tokenizer; embeddings and head are then trained too (the run trains alone)"
    )
    later = frozenset({"add_tokens"})

    @model_validator(mode="after")
    def _check(self) -> Base:
        if not all(token.strip() for token in self.add_tokens):
            raise ValueError("add_tokens: an empty token is in no text")
        if len(set(self.add_tokens)) != len(self.add_tokens):
            raise ValueError("add_tokens: each may stand once")
        return self


class Task(Spec):
    """Data and how it becomes scored tokens. ``name`` is a task of the library; without it ``data`` is needed."""

    name: str | None = Field(None, description="a task of the library (loracle new --tasks lists them)")
    data: str | None = Field(None, description="a .json, .jsonl, .csv, .tsv or .parquet file, or a hub data set")
    eval: str | None = Field(None, description="a file of its own for evaluation; else eval_fraction of data")
    subset: str | None = Field(None, description="the hub data set's configuration")
    split: str = Field("train", description="the hub data set's split to train on")
    eval_split: str | None = Field(None, description="the hub data set's split to evaluate on")
    type: Literal["generation", "classification"] = Field(
        "generation",
        description="generation: the answer is text; classification: a head of each run's own over the labels (format text_label)",
    )
    format: Literal["alpaca", "messages", "sharegpt", "prompt_completion", "text", "text_label", "squad"] | None = (
        Field(None, description="how a row reads; guessed from the columns when absent")
    )
    columns: dict[str, str] = Field(default_factory=dict, description="{what loracle calls it: what the file calls it}")
    labels: tuple[str, ...] | None = Field(None, description="text_label: the labels, else those seen in training rows")
    template: str | None = Field(None, description="prompt template with {column} fields, else the format's own")
    chat_template: Literal["auto", "tokenizer", "plain"] = Field(
        "auto", description="auto: the tokenizer's own where it has one, else plain 'User: … Assistant:'"
    )
    system: str | None = Field(None, description="a system message put before every conversation")
    samples: PositiveInt | None = Field(None, description="rows drawn (seeded) before the split; all when absent")
    eval_samples: PositiveInt | None = Field(None, description="at most this many evaluation rows")
    eval_fraction: float = Field(0.1, gt=0.0, lt=1.0)
    max_length: int = Field(512, ge=8, description="tokens; longer rows are cut and counted")
    split_seed: int = Field(0, ge=0, description="the task's own seed for drawing and splitting rows")
    generate: bool = Field(True, description="greedy generation on evaluation prompts (not for format text)")
    generate_samples: PositiveInt | None = Field(32, description="evaluation prompts to generate for; null = all")
    max_new_tokens: int = Field(32, ge=1, le=4096)
    train_on_inputs: bool = Field(False, description="score the prompt's tokens too, in training and evaluation")
    latency_samples: PositiveInt | None = Field(
        None, description="evaluation prompts answered one at a time and timed: latency, time to first token, length"
    )
    group: str | None = Field(
        None, description="a column that says which group of people or texts a row is of: figures by group"
    )
    version: PositiveInt = 1
    source: str | None = None
    licence: str | None = None
    description: str | None = None
    language: tuple[str, ...] = Field((), description="the rows' languages as ISO 639 codes (en), for the cards")
    known_biases: str | None = Field(None, description="who is in the data and who is not, for the cards")
    later = frozenset({"type", "train_on_inputs", "latency_samples", "group", "language", "known_biases"})

    @model_validator(mode="after")
    def _check(self) -> Task:
        if self.name is None and self.data is None:
            raise ValueError("name a task of the library (task: {name: …}) or give data: PATH")
        if self.type == "classification" and self.format not in (None, "text_label"):
            raise ValueError(f"type: classification needs format text_label, not {self.format}")
        return self

    @property
    def classifies(self) -> bool:
        """Whether runs have a classification head."""
        return self.type == "classification"


class Train(Spec):
    """The optimisation. ``steps`` are optimizer steps; give ``steps`` or ``epochs``, not both."""

    steps: PositiveInt | None = None
    epochs: Annotated[float, Field(gt=0)] | None = None
    batch_size: PositiveInt = 8
    gradient_accumulation: PositiveInt = 1
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    warmup_ratio: float = Field(0.0, ge=0.0, le=1.0)
    weight_decay: float = Field(0.0, ge=0.0)
    beta1: float = Field(0.9, ge=0.0, lt=1.0)
    beta2: float = Field(0.999, ge=0.0, lt=1.0)
    epsilon: float = Field(1e-8, gt=0.0)
    max_grad_norm: float | None = Field(1.0, gt=0.0, description="clip each run's own gradient norm; null: no clipping")
    optimizer: Literal["adamw", "paged_adamw_32bit", "paged_adamw_8bit", "adamw_8bit"] = "adamw"
    gradient_checkpointing: bool = False
    base_dropout: bool = Field(False, description="keep the base model's own dropout during training")
    eval_every: PositiveInt | None = Field(None, description="evaluate every so many steps; null: at the end only")
    best_checkpoint: bool = Field(False, description="keep the adapter with the lowest evaluation loss seen")
    group_by_length: bool = Field(False, description="batches of rows of like length: less padding, another data order")
    early_stopping: PositiveInt | None = Field(
        None, description="stop a run after so many evaluations in a row without a lower loss; needs eval_every"
    )
    init_seed: int | None = Field(None, ge=0, description="seed of the adapter's initial weights; null: the run's seed")
    order_seed: int | None = Field(None, ge=0, description="seed of data order and dropout; null: the run's seed")
    later = frozenset({"early_stopping", "group_by_length"})

    @model_validator(mode="after")
    def _check(self) -> Train:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")
        if self.warmup_steps is not None and self.warmup_ratio:
            raise ValueError("give warmup_steps or warmup_ratio, not both")
        if self.best_checkpoint and self.eval_every is None:
            raise ValueError("best_checkpoint needs eval_every, the steps at which the evaluation loss is taken")
        if self.early_stopping is not None and self.eval_every is None:
            raise ValueError("early_stopping: needs eval_every, the steps at which the evaluation loss is taken")
        return self


class Question(Spec):
    """A question put to the study; its margin and standing."""

    name: Literal[
        "degradation", "task_metric", "rank_threshold", "similarity", "sensitivity", "allocation", "memory", "speed"
    ]
    margin: Annotated[float, Field(gt=0)] | None = None
    primary: bool = False
    compare: Literal["factor", "recipe"] = "factor"

    @model_validator(mode="after")
    def _check(self) -> Question:
        if self.name in UNDECIDED and (self.margin is not None or self.primary):
            raise ValueError(f"{self.name} is measured, not decided: it has no margin and is never primary")
        return self


class Run(Spec):
    """How the study is executed on this machine. Nothing here changes a result beyond rounding."""

    workers: PositiveInt | Literal["auto"] = Field("auto", description="worker processes at a time")
    threads: PositiveInt | Literal["auto"] = Field("auto", description="CPU threads of each worker")
    cohort: PositiveInt | Literal["auto"] = Field("auto", description="runs trained together; auto: measured")
    retries: Annotated[int, Field(ge=0)] = 2
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 30.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    reload_items: PositiveInt | None = Field(None, description="items of the reload check; null: all of eval.parquet")
    track: tuple[Literal["wandb", "tensorboard", "mlflow", "trackio"], ...] = Field(
        (), description="trackers, through accelerate: one tracker run a run, grouped by study"
    )
    gpu_memory: str | None = Field(
        None, description="memory of one GPU to plan for, such as 24GB; null: that of the card present"
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="CUDA graphs of the training step; auto: where the training is long enough to pay for them"
    )
    packing: Literal["auto", "off"] = Field(
        "auto",
        description="auto: on a GPU rows lie one behind another without padding, where the architecture allows it",
    )
    later = frozenset({"track", "gpu_memory", "compile", "packing"})

    @field_validator("gpu_memory", mode="before")
    @classmethod
    def _with_unit(cls, value: object) -> object:
        if isinstance(value, int | float):
            raise ValueError(f"{value} has no unit: write it like 24GB or 80GiB")
        return value

    @model_validator(mode="after")
    def _check(self) -> Run:
        if self.gpu_memory is not None:
            parse_bytes(self.gpu_memory)
        return self


class Cell(Spec):
    """One combination of factors, fully resolved: everything that defines a run but its seed."""

    base: Base = Base()
    task: Task
    precision: Precision | Mixed | dict[str, Precision] = Field(
        "bf16",
        description="fp32, bf16, fp16, nf4, fp4, int8, int4, int3, int2; a block {default: nf4, 'h.1.attn.c_proj': bf16}; "
        "or one that loracle run chooses by layer sensitivity: {default: nf4, sensitive: bf16, budget: 15%}",
    )
    double_quant: bool | None = Field(True, description="quantize the 4-bit constants too")
    block_size: int | None = Field(64, description="weights that share a constant (nf4, fp4, int4, int3, int2)")
    compute_dtype: Dtype = Field("auto", description="auto: what the machine does well")
    storage: Literal["auto", "quantized", "dequantized", "unquantized"] = Field(
        "auto", description="how quantized weights lie while training: same numbers, other bytes"
    )
    adapter: Adapter = Adapter()
    train: Train = Train()

    @model_validator(mode="after")
    def _check(self) -> Cell:
        if isinstance(self.precision, dict) and "default" not in self.precision:
            raise ValueError(
                "precision: a block of patterns needs a default, e.g. {default: nf4, 'h.1.attn.c_proj': bf16}"
            )
        if self.block_size is not None and self.block_size not in BLOCK_SIZES:
            raise ValueError(f"block_size: {self.block_size} is not one of {', '.join(map(str, BLOCK_SIZES))}")
        if self.adapter.loraplus_ratio != 1 and self.train.optimizer != "adamw":
            raise ValueError(f"adapter.loraplus_ratio: LoRA+ needs train.optimizer: adamw, not {self.train.optimizer}")
        if self.adapter.method == "full" and self.precision_names - UNQUANTIZED:
            raise ValueError(
                f"precision: full fine-tuning trains every weight, so none can be {self.default_precision}"
            )
        if self.task.classifies and self.adapter.method in VIRTUAL:
            raise ValueError(
                f"adapter.method: {self.adapter.method} goes with generation, not with a classification head"
            )
        if self.alone and self.adapter.loraplus_ratio != 1:
            raise ValueError("adapter.loraplus_ratio: LoRA+ is for cohorts; modules_to_save and add_tokens train alone")
        if self.storage == "dequantized" and self.alone:
            raise ValueError(f"storage: {self.adapter.method} trains through PEFT, in quantized storage only")
        if self.storage == "dequantized" and "int8" in self.precision_names:
            raise ValueError("storage: int8 also quantizes activations, so it has quantized storage only")
        if self.storage == "unquantized" and self.precision_names - UNQUANTIZED:
            raise ValueError(
                f"storage: {self.default_precision} layers are quantized or dequantized, never unquantized"
            )
        return self

    @property
    def alone(self) -> bool:
        """Whether a run of this cell shares its base with nobody: it changes the base, or PEFT trains it."""
        return self.adapter.method != "lora" or bool(self.adapter.modules_to_save) or bool(self.base.add_tokens)

    @property
    def precision_names(self) -> frozenset[str]:
        """All precisions that some module of this cell may have."""
        if isinstance(self.precision, Mixed):
            return frozenset({self.precision.default, self.precision.sensitive})
        return frozenset(self.precision.values()) if isinstance(self.precision, dict) else frozenset({self.precision})

    @property
    def default_precision(self) -> str:
        """The precision of linear layers that no pattern names."""
        if isinstance(self.precision, Mixed):
            return self.precision.default
        return self.precision["default"] if isinstance(self.precision, dict) else self.precision


class Diagnose(Spec):
    """What is measured on trained adapters."""

    null_runs: Annotated[int, Field(ge=0)] = Field(
        1, description="extra 16-bit runs for each reference cell: same init_seed, another order_seed"
    )
    sentence_encoder: str | None = Field(
        None, description="folder or hub id of an encoder for the likeness of two runs' answers; null: the 16-bit base"
    )
    along_training: bool = Field(
        False,
        description="keep every LoRA adapter at the evaluation points (train.eval_every) and compare updates along training",
    )
    later = frozenset({"sentence_encoder", "along_training"})


class Decide(Spec):
    """More seeds until the primary question is decided: looks that are fixed before training and share the error."""

    looks: tuple[PositiveInt, ...] = Field(
        (3, 5, 8),
        description="numbers of seeds at which the primary question is judged; seeds beyond `seeds` follow on",
    )

    @model_validator(mode="after")
    def _check(self) -> Decide:
        if not self.looks or self.looks[0] < 3 or any(b <= a for a, b in pairwise(self.looks)):
            raise ValueError(f"looks: must rise and start at 3 seeds or more, not {list(self.looks)}")
        return self


class Study(Cell):
    """One study file: a default cell, the factors to vary, seeds, questions."""

    name: str
    vary: dict[str, tuple[Any, ...]] = Field(default_factory=dict, description="{factor: [values]}; all combinations")
    cells: tuple[dict[str, Any], ...] = Field((), description="further cells, each {factor: value}")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (42, 43, 44, 45, 46)
    questions: tuple[Question, ...] = (
        Question(name="degradation", primary=True),
        Question(name="task_metric"),
        Question(name="rank_threshold"),
        Question(name="similarity"),
    )
    decide: Decide | None = Field(
        None, description="looks at which seeds are added until the primary question is decided; null: `seeds` alone"
    )
    run: Run = Run()
    diagnose: Diagnose = Diagnose()
    later = frozenset({"decide"})

    @model_validator(mode="after")
    def _names(self) -> Study:
        if not is_safe(self.name):
            raise ValueError(
                f"name: '{self.name}' may hold a-z, 0-9, '.', '_' and '-', and starts with a letter or digit"
            )
        beside = "write it under vary.precision, beside the uniform precision and 16 bits that it is compared with"
        if isinstance(self.precision, Mixed):
            raise ValueError(f"precision: one that is chosen by sensitivity stands alone here: {beside}")
        varied = self.vary.get("precision", ())
        if varied and all(isinstance(value, dict) and "budget" in value for value in varied):
            raise ValueError(f"vary.precision: one that is chosen by sensitivity stands alone here: {beside}")
        if not self.seeds:
            raise ValueError("seeds: give at least one")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds: each may stand once")
        return self
