"""What is trained: the ``adapter`` section of a study file."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import (
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from loracle.base.names import suggest
from loracle.spec.methods import METHODS
from loracle.spec.types import Dtype, PositiveInt, Spec


class Variant(Spec):
    """A LoRA that says how many parameters others shall have: its rank on its targets."""

    targets: tuple[str, ...] | str
    rank: PositiveInt


class Adapter(Spec):
    """What is trained. ``alpha`` is a number, or a multiple of the rank such as '2r', which keeps the scale alpha/r."""

    method: str = Field("lora", description=f"{', '.join(METHODS)}; all but lora train alone, through PEFT")
    rank: PositiveInt = 8
    alpha: Annotated[float, Field(gt=0)] | str = 16.0
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    targets: tuple[str, ...] | str = Field(
        "all-linear",
        description="logical names (q, k, v, o, up, gate, down), raw module names as PEFT takes them, or all-linear",
    )
    dtype: Dtype = Field("auto", description="dtype of the adapter's parameters; auto: float32")
    rslora: bool = Field(False, description="rsLoRA: scale ΔW by alpha/√rank in place of alpha/rank")
    loraplus_ratio: float = Field(
        1.0, gt=0.0, description="LoRA+: the learning rate of B is this many times that of A (adamw only)"
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="further settings of a PEFT method, in PEFT's words (num_virtual_tokens: 20)"
    )
    modules_to_save: tuple[str, ...] = Field(
        (), description="modules that are trained in full beside the adapter (the run trains alone)"
    )
    rank_pattern: dict[str, PositiveInt] = Field(
        default_factory=dict,
        description="{pattern: rank} of layers whose rank is not `rank`; patterns as in `precision`, `attn.c_attn.q` for a slice",
    )
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="{pattern: alpha} of layers whose alpha is not `alpha`; not with `alpha: 2r`"
    )
    parameters: PositiveInt | Variant | None = Field(
        None,
        description="in place of `rank`: as many trainable parameters as ranks allow, a number or those of a LoRA such as "
        "`{targets: [q, v], rank: 8}`; a head and `modules_to_save` are not counted",
    )
    later = frozenset(
        {"rslora", "loraplus_ratio", "options", "modules_to_save", "rank_pattern", "alpha_pattern", "parameters"}
    )

    @model_serializer(mode="wrap")
    def _dump(self, serialise: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        dumped = super()._dump(serialise, info)
        if self.parameters is not None:  # there is no rank until the inspect job has found it
            dumped.pop("rank", None)
        return dumped

    @field_validator("rank_pattern", "alpha_pattern", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """Null is no pattern; the order of patterns means nothing, so that equal cells compare equal."""
        return dict(sorted(value.items())) if isinstance(value, dict) else {} if value is None else value

    @model_validator(mode="after")
    def _check(self) -> Adapter:
        if isinstance(self.alpha, str) and not re.fullmatch(r"\d*\.?\d*r", self.alpha):
            raise ValueError(f"alpha: '{self.alpha}' is neither a number nor a multiple of the rank such as '2r'")
        if self.alpha_value <= 0:
            raise ValueError(f"alpha: '{self.alpha}' is not above 0")
        if not self.targets:
            raise ValueError("targets: name at least one module")
        if self.method not in METHODS:
            raise ValueError(f"method: '{self.method}' is not a method, {suggest(self.method, METHODS)}")
        if self.options and self.method in ("lora", "full"):
            raise ValueError(f"options: {self.method} takes none; they are for PEFT's other methods")
        if self.method != "lora" and (self.rslora or self.loraplus_ratio != 1):
            raise ValueError(f"method: rslora and loraplus_ratio go with lora, not with {self.method}")
        if self.method != "lora" and (self.rank_pattern or self.alpha_pattern):
            name = "rank_pattern" if self.rank_pattern else "alpha_pattern"
            raise ValueError(f"{name}: goes with lora; what {self.method} takes of the kind goes under options")
        if self.alpha_pattern and isinstance(self.alpha, str):
            raise ValueError(f"alpha_pattern: alpha '{self.alpha}' gives every layer its alpha already: keep one")
        if self.method == "full" and self.modules_to_save:
            raise ValueError("modules_to_save: full fine-tuning saves all of them")
        if self.parameters is not None and (self.rank_pattern or self.alpha_pattern):
            raise ValueError(
                "parameters: one rank is found for all layers, so it goes with no rank_pattern or alpha_pattern"
            )
        if self.parameters is not None and "rank" in self.model_fields_set:
            raise ValueError("parameters: the rank follows from them: give rank or parameters, not both")
        return self

    @property
    def alpha_value(self) -> float:
        """alpha as a number."""
        return self.alpha_at(self.rank)

    def alpha_at(self, rank: int) -> float:
        """alpha of a layer of ``rank`` that no alpha_pattern names: '2r' follows the layer's rank, a number does not."""
        if isinstance(self.alpha, str):
            return float(self.alpha[:-1] or 1) * rank
        return float(self.alpha)

    @property
    def scale(self) -> float:
        """The factor of B·A: alpha / rank (LoRA, Hu et al. 2021, section 4.1), or alpha / √rank (rsLoRA)."""
        return self.alpha_value / (math.sqrt(self.rank) if self.rslora else self.rank)
