"""A precision that is chosen, not written: the sensitive matrices stay finer, within a budget.

``{default: nf4, sensitive: bf16, budget: 15%}`` becomes a plain block of module names once the base's layer sensitivity
has been measured (``study/mixing.py``); until then its cell is not a cell that could be trained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator

from loracle.spec.types import UNQUANTIZED, Precision, Spec, parse_bytes

ROUGHLY = {"fp32": 32, "bf16": 16, "fp16": 16, "int8": 8, "nf4": 4, "fp4": 4, "int4": 4, "int3": 3, "int2": 2}


class Mixed(Spec):
    """Uniform ``default``, but the matrices that suffer most from it in ``sensitive``, as many as ``budget`` pays for."""

    default: Precision = Field(description="the quantized precision of all other linear layers")
    sensitive: Precision = Field(description="the finer precision of those that are kept: bf16, fp16, fp32 or int8")
    budget: str = Field(
        description="what may be spent: '15%' of the quantized weights, '4.8 bits' a weight on average, or '20MB' more bytes"
    )

    @model_validator(mode="after")
    def _check(self) -> Mixed:
        if self.default in UNQUANTIZED:
            raise ValueError(f"default: {self.default} is not quantized, so nothing needs keeping")
        if ROUGHLY[self.sensitive] <= ROUGHLY[self.default]:
            raise ValueError(f"sensitive: {self.sensitive} is no finer than {self.default}")
        parse_budget(self.budget)
        return self


def as_mixed(value: Any) -> Mixed | None:
    """A precision as it stands in ``vary`` or ``cells``, if it is one that is to be chosen."""
    if isinstance(value, Mixed):
        return value
    return Mixed.model_validate(dict(value)) if isinstance(value, Mapping) and "budget" in value else None


@dataclass(frozen=True)
class Budget:
    """``amount`` in ``unit``: a share of the weights (0 to 1), mean bits a weight, or bytes beyond the uniform precision's."""

    unit: str
    amount: float

    def weights(self, total: int, bits: Mapping[str, float], default: str, sensitive: str) -> float:
        """How many of ``total`` weights it can keep in ``sensitive``; ``bits`` are those of a weight in either precision."""
        more = bits[sensitive] - bits[default]
        if self.unit == "share":
            return self.amount * total
        if self.unit == "bits":
            return (self.amount - bits[default]) * total / more
        return self.amount * 8 / more


def parse_budget(text: str) -> Budget:
    """``15%``, ``4.8 bits`` or an amount of memory; a ``ValueError`` says what is wrong."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%|bits?)\s*", text)
    if found and found[2] == "%":
        if not 0 < float(found[1]) <= 100:
            raise ValueError(f"budget: '{text}' is no share between 0% and 100%")
        return Budget("share", float(found[1]) / 100)
    if found:
        return Budget("bits", float(found[1]))
    try:
        return Budget("bytes", float(parse_bytes(text)))
    except ValueError:
        raise ValueError(
            f"budget: '{text}' is none: write it like 15%, 4.8 bits (a weight, on average) or 20MB"
        ) from None
