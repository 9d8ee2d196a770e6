"""Predicted bytes by component, from shapes and settings alone: what the tensors that outlive a step take on an accelerator.

Covers weights, quantization constants, adapters, gradients and optimizer state. Activations, logits and workspace depend on
the step and are not predicted here: their entries are null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loracle.models.linears import Linear
from loracle.spec.study import INTEGER, UNQUANTIZED, Cell

COMPONENTS = (
    "quantized_weights",
    "quantization_constants",
    "other_weights",
    "adapters",
    "gradients",
    "optimizer",
    "saved_activations",
    "logits_and_loss",
    "dequantization_workspace",
    "rest",
)
_WIDTH = {"fp32": 4, "bf16": 2, "fp16": 2, "float32": 4, "bfloat16": 2, "float16": 2}
_STATE = {
    "adamw": 8,
    "paged_adamw_32bit": 8,
    "adamw_8bit": 2,
    "paged_adamw_8bit": 2,
}  # bytes of Adam state per parameter


def code_bytes(linear: Linear, precision: str) -> int:
    """Bytes of one layer's packed weight; ten int3 lie in 32 bits."""
    if precision == "int3":
        return 4 * -(-linear.params // 10)
    return -(-linear.params // {"int8": 1, "int2": 4}.get(precision, 2))


def constants_bytes(linear: Linear, precision: str, double_quant: bool | None, block_size: int | None) -> int:
    """Bytes of one layer's quantization constants: absmax per block, itself in 8 bits with a float per 256 under double
    quantization (QLoRA, section 3); for int4, int3 and int2 HQQ's scale and zero point per block, 16 bits each; for int8 a float
    per output row."""
    if precision == "int8":
        return 4 * linear.d_out
    blocks = -(-linear.params // (block_size or 64))
    if precision in INTEGER:
        return 4 * blocks
    return blocks + 4 * -(-blocks // 256) + 4 if double_quant else 4 * blocks


def predict(
    cell: Cell, linears: Sequence[Linear], assignment: Mapping[str, str], total_params: int, trainable: int
) -> dict[str, int | None]:
    """Component → predicted bytes (null: not predicted), for one run alone in quantized storage.

    What is not quantized is counted in the cell's own 16- or 32-bit width, or in 16 bits beside quantized layers.
    """
    ledger: dict[str, int | None] = dict.fromkeys(COMPONENTS, None)
    quantized = constants = covered = 0
    for linear in linears:
        precision = assignment[linear.name]
        if precision not in UNQUANTIZED:
            covered += linear.params
            quantized += code_bytes(linear, precision)
            constants += constants_bytes(linear, precision, cell.double_quant, cell.block_size)
    adapter_width = _WIDTH.get(cell.adapter.dtype, 4)
    ledger["quantized_weights"] = quantized
    ledger["quantization_constants"] = constants
    other = 0 if cell.adapter.method == "full" else total_params - covered  # full fine-tuning trains them: "adapters"
    ledger["other_weights"] = other * _WIDTH.get(cell.default_precision, 2)
    ledger["adapters"] = ledger["gradients"] = trainable * adapter_width
    ledger["optimizer"] = trainable * _STATE[cell.train.optimizer]
    return ledger


def known_bytes(ledger: Mapping[str, int | None]) -> int:
    """Sum of the components that are predicted."""
    return sum(value for value in ledger.values() if value is not None)
