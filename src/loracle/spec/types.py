"""What all settings share: the strict base class, the names of precisions, amounts of memory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializationInfo, SerializerFunctionWrapHandler, model_serializer

Precision = Literal["fp32", "bf16", "fp16", "nf4", "fp4", "int8", "int4", "int3", "int2"]
PRECISIONS: tuple[str, ...] = ("fp32", "bf16", "fp16", "nf4", "fp4", "int8", "int4", "int3", "int2")
FOUR_BIT = frozenset({"nf4", "fp4"})  # bitsandbytes' 4-bit data types
INTEGER = frozenset({"int4", "int3", "int2"})  # HQQ's: groups of block_size weights with a scale and a zero point
UNQUANTIZED = frozenset({"fp32", "bf16", "fp16"})
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # what bitsandbytes has kernels for


def is_quantized(precision: Any) -> bool:
    """Whether any linear layer is, by a precision as a plan or a record has it: a name, or ``{default: …, PATTERN: …}``."""
    return bool(set(precision.values() if isinstance(precision, Mapping) else [precision]) - UNQUANTIZED)


Dtype = Literal["auto", "float32", "bfloat16", "float16"]
PositiveInt = Annotated[int, Field(ge=1)]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(text: str) -> int:
    """``24GB`` (10⁹) or ``24GiB`` (2³⁰) as bytes; a ``ValueError`` says what is wrong."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not found or found[2].upper() not in _UNITS:
        raise ValueError(f"'{text}' is no amount of memory: write it like 24GB or 80GiB")
    size = round(float(found[1]) * _UNITS[found[2].upper()])
    if size < 1:
        raise ValueError(f"'{text}' is no memory at all")
    return size


class Spec(BaseModel):
    """Base of all: frozen, strict types, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    later: ClassVar[frozenset[str]] = frozenset()
    """Settings added after the first version: left out at their default, so that what they do not touch keeps its identity."""

    @model_serializer(mode="wrap")
    def _dump(self, serialise: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        dumped: dict[str, Any] = serialise(self)
        if info.exclude_unset:  # only what was written is there, and what was written must stay
            return dumped
        for key in self.later:
            if key in dumped and getattr(self, key) == type(self).model_fields[key].get_default(
                call_default_factory=True
            ):
                del dumped[key]
        return dumped
