"""int4, int3 and int2 through HQQ: what the bytes are, that training passes through them, and what they cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from loracle.base.errors import ModelError
from loracle.models.census import census, predicted_bits
from loracle.models.integer import BITS, IntegerLinear, quantize_integer
from loracle.models.load import LoadedBase
from loracle.models.precision import DequantizedLinear, deploy, oriented_weight
from loracle.models.source import load_tokenizer
from tests.conftest import text_rows
from tests.engine import RunSpec, base, train, worst

CPU = torch.device("cpu")


def quantized(weight: torch.Tensor, name: str, block_size: int = 64) -> IntegerLinear:
    return quantize_integer(weight, None, name, block_size=block_size, device=CPU)


def random_weight(d_out: int, d_in: int) -> torch.Tensor:
    return torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(0)) * 0.05


@pytest.mark.parametrize("name", BITS)
def test_codes_are_those_of_hqqs_own_packing(name: str) -> None:
    """HQQ's Quantizer, given our codes and constants, dequantizes to our weight."""
    from hqq.core.quantize import Quantizer

    weight = random_weight(40, 64)  # 40 groups: HQQ's own layout pads no group
    ours = quantized(weight, name)
    dense = ours.dequantize()
    codes = (dense.view(-1, 64) / ours.scale.float() + ours.zero.float()).round()
    meta = {
        "packing": Quantizer.bit_to_packing[BITS[name]],
        "compute_dtype": torch.float32,
        "view_as_float": False,
        "nbits": BITS[name],
        "group_size": 64,
        "axis": 1,
        "shape": weight.shape,
        "scale": ours.scale.float(),
        "zero": ours.zero.float(),
    }
    assert torch.equal(Quantizer.dequantize(Quantizer.pack[meta["packing"]](codes), meta), dense)
    reference, meta = Quantizer.quantize(weight, BITS[name], device="cpu", axis=1, compute_dtype=torch.float32)
    theirs = Quantizer.dequantize(reference, meta | {"compute_dtype": torch.float32})
    assert (dense - weight).abs().mean() <= (theirs - weight).abs().mean() * 1.01  # as near the weight as HQQ's own


@pytest.mark.parametrize("name", BITS)
def test_the_error_is_that_of_the_bits(name: str) -> None:
    weight = random_weight(64, 128)
    ours = quantized(weight, name)
    groups = weight.view(-1, 64)
    step = (groups.amax(1) - groups.amin(1)) / (2 ** BITS[name] - 1)
    inside = ((ours.dequantize() - weight).view(-1, 64).abs() <= 0.51 * step[:, None] + 1e-3).float().mean()
    assert inside > 0.9  # but for the extremes, which HQQ's moved zero point cuts
    assert ours.dequantize().view(-1, 64)[0].unique().numel() <= 2 ** BITS[name]


@pytest.mark.parametrize("name", BITS)
def test_the_same_bytes_each_time(name: str) -> None:
    one, two = quantized(random_weight(48, 64), name), quantized(random_weight(48, 64), name)
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_weights_that_do_not_fill_blocks() -> None:
    with pytest.raises(ModelError, match=r"\(10, 10\) weights do not fill blocks of 64: choose a smaller block_size"):
        quantized(random_weight(10, 10), "int4")


def test_constants_beyond_float16() -> None:
    far = 100 + torch.rand(64, 64) * 2e-4
    with pytest.raises(ModelError, match="too far from 0 for its spread to be quantized as int4"):
        quantized(far, "int4")


def test_a_constant_weight() -> None:
    for value in (0.0, 0.25):
        assert torch.equal(quantized(torch.full((64, 64), value), "int2").dequantize(), torch.full((64, 64), value))


@pytest.mark.parametrize("name", BITS)
def test_the_gradient_to_the_input_is_exact(name: str) -> None:
    linear = quantize_integer(random_weight(40, 64), torch.randn(40), name, block_size=64, device=CPU)
    x = torch.randn(3, 5, 64, requires_grad=True)
    dense = x.detach().clone().requires_grad_()
    for y in (linear(x), nn.functional.linear(dense, linear.dequantize(), linear.bias)):
        (y * torch.arange(40.0)).sum().backward()
    assert torch.equal(x.grad, dense.grad)  # type: ignore[arg-type]
    assert torch.equal(linear(x), nn.functional.linear(x, linear.dequantize(), linear.bias))


# -- a base -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BITS)
@pytest.mark.parametrize("block_size", [32, 64, 128])
def test_predicted_bits_are_there(name: str, block_size: int) -> None:
    loaded = base(precision=name, block_size=block_size, storage="quantized")
    assert loaded.census["effective_bits"] == pytest.approx(predicted_bits(name, None, block_size), abs=2e-3)
    assert loaded.census["quantized_share"] == 1.0
    assert loaded.census == base(precision=name, block_size=block_size).census


def test_bits_at_a_block_of_64() -> None:
    assert [predicted_bits(name, None, 64) for name in BITS] == [4.5, 3.7, 2.5]


def test_a_label_that_the_bytes_do_not_bear_out_fails() -> None:
    loaded = base(precision="int3", storage="quantized")
    for label, message in {
        "int2": "labelled int2 but takes 3.70",
        "int4": "labelled int4",
        "bf16": "stored as int32",
    }.items():
        with pytest.raises(ModelError, match=message):
            census(loaded.model, dict.fromkeys(loaded.assignment, label))


def test_storage_is_dequantized_unless_asked() -> None:
    dense, true = base(precision="int4"), base(precision="int4", storage="quantized")
    for name in dense.assignment:
        one, two = dense.model.get_submodule(name), true.model.get_submodule(name)
        assert type(one) is DequantizedLinear
        assert type(two) is IntegerLinear
        assert torch.equal(one.weight, two.dequantize())
        assert torch.equal(one.packed.weight, two.weight)
    deploy(dense.model)
    assert all(type(dense.model.get_submodule(name)) is IntegerLinear for name in dense.assignment)


@pytest.mark.parametrize("name", BITS)
def test_both_storages_train_alike_bit_for_bit(name: str) -> None:
    rows = text_rows(8)
    specs = [RunSpec("a", targets=("q", "v")), RunSpec("b", rank=2, seed=43, dropout=0.1)]
    one = train(base(precision=name, storage="quantized"), specs, rows, 3)
    two = train(base(precision=name), specs, rows, 3)
    assert torch.equal(one[0], two[0])
    assert all(worst(a, b) == 0 for a, b in zip(one[1], two[1], strict=True))
    assert one[0].isfinite().all()


def test_a_mix_with_bitsandbytes() -> None:
    loaded = base(precision={"default": "int4", "attn.*": "nf4", "h.0.mlp.*": "bf16"}, storage="quantized")
    kinds = {name: type(loaded.model.get_submodule(name)).__name__ for name in loaded.assignment}
    assert kinds["transformer.h.1.mlp.c_fc"] == "IntegerLinear"
    assert kinds["transformer.h.1.attn.c_attn"] == "Linear4bit"
    assert kinds["transformer.h.0.mlp.c_fc"] == "Conv1D"


def test_peft_on_top(tmp_path: Path) -> None:
    """PEFT wraps the packed module as it does any linear, and finds its dense weight for methods that need it (DoRA)."""
    from peft import LoraConfig, PeftModel, get_peft_model

    config = LoraConfig(r=2, target_modules=["c_attn"], use_dora=True, init_lora_weights=False)
    model = get_peft_model(deploy(base(precision="int4").model), config)
    tokens = torch.arange(12).unsqueeze(0)
    found = model(input_ids=tokens).logits
    found.sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "lora_A" in n)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(deploy(base(precision="int4").model), tmp_path)
    assert torch.equal(again(input_ids=tokens).logits, model(input_ids=tokens).logits)


# -- what it costs ----------------------------------------------------------------------------------------------------

ORDER = ("fp32", "int8", "int4", "int3", "int2")


@torch.no_grad()
def loss(loaded: LoadedBase, tokens: torch.Tensor) -> float:
    """Mean loss of ``tokens [n, T]`` in nats."""
    total = 0.0
    for rows in tokens.split(8):
        logits = loaded.model(input_ids=rows).logits[:, :-1]
        total += float(nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum"))
    return total / tokens[:, 1:].numel()


def losses(model: Any, tokens: torch.Tensor) -> dict[str, float]:
    """Loss of the untrained base by precision. Weights only: int8 in training mode on a CPU leaves activations alone."""
    return {name: loss(base(model, name), tokens) for name in ORDER}


def test_fewer_bits_lose_more() -> None:
    ids = [token for row in text_rows(120) for token in row.input_ids]
    found = losses("gpt2-demo", torch.tensor(ids[: len(ids) // 64 * 64]).view(-1, 64))
    assert found["int4"] < found["int3"] < found["int2"]
    assert found["fp32"] < found["int3"] - 0.1


@pytest.mark.parametrize("model", ["gpt2-ref", "llama-ref"])
def test_fewer_bits_lose_more_on_healthy_bases(shared: Path, model: str) -> None:
    rows = json.loads((shared / "data" / "alpaca" / "alpaca_data.json").read_text(encoding="utf-8"))[:400]
    text = "\n\n".join(f"{row['instruction']}\n{row['output']}" for row in rows)
    folder = shared / "models" / model
    ids = load_tokenizer(base(folder).source)(text)["input_ids"]
    found = losses(folder, torch.tensor(ids[:4096]).view(-1, 256))
    assert found["fp32"] <= found["int8"] + 1e-3  # equal but for chance: 8 bits cost nothing here
    assert found["int8"] < found["int4"] < found["int3"] < found["int2"]
    assert found["int4"] - found["fp32"] < 0.05 < found["int2"] - found["int3"]


def test_gpt2s_conv1d_is_turned() -> None:
    dense, packed = base(), base(precision="int4", storage="quantized")
    name = "transformer.h.3.mlp.c_fc"
    weight = oriented_weight(dense.model.get_submodule(name))
    found = packed.model.get_submodule(name).dequantize()
    assert found.shape == weight.shape == (768, 192)
    assert float((found - weight).abs().mean()) < 0.1 * float(weight.abs().mean())
