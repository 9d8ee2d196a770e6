"""Codecs against Transformers' own quantized loading, the census, patterns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from loracle.base.errors import ModelError, SpecError
from loracle.models.census import census, predicted_bits, weight_bytes
from loracle.models.dropout import set_base_dropout
from loracle.models.load import pick_storage
from loracle.models.precision import assign, matches
from loracle.spec.study import Cell, Task
from tests.engine import base

SETTINGS = {"nf4": True, "fp4": False}


def transformers_model(folder: str, **config: Any) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization = BitsAndBytesConfig(bnb_4bit_compute_dtype=torch.float32, **config)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=quantization)


@pytest.mark.parametrize("precision", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [True, False])
def test_four_bit_is_bit_equal_with_transformers(precision: str, double_quant: bool) -> None:
    import bitsandbytes.functional as bnb

    ours = base(precision=precision, double_quant=double_quant, storage="quantized")
    dense = base(precision=precision, double_quant=double_quant, storage="dequantized")
    theirs = transformers_model(
        ours.source.resolved, load_in_4bit=True, bnb_4bit_quant_type=precision, bnb_4bit_use_double_quant=double_quant
    )
    for name in ours.assignment:
        one, two = ours.model.get_submodule(name), theirs.get_submodule(name)
        assert torch.equal(one.weight.data, two.weight.data)
        mine, other = one.weight.quant_state, two.weight.quant_state
        assert torch.equal(mine.absmax, other.absmax)
        assert mine.nested is other.nested is double_quant
        if double_quant:
            assert torch.equal(mine.state2.absmax, other.state2.absmax)
            assert torch.equal(mine.offset, other.offset)
        assert torch.equal(one.bias, two.bias)
        weight = bnb.dequantize_4bit(two.weight.data, other)
        assert torch.equal(dense.model.get_submodule(name).weight, weight)


def test_int8_is_bit_equal_with_transformers() -> None:
    ours = base(precision="int8")
    assert ours.storage == "quantized"
    theirs = transformers_model(ours.source.resolved, load_in_8bit=True)
    for name in ours.assignment:
        one, two = ours.model.get_submodule(name), theirs.get_submodule(name)
        assert one.weight.dtype == torch.int8
        assert torch.equal(one.weight.data, two.weight.data)
        assert torch.equal(one.weight.SCB, two.weight.SCB)
    assert 8.0 < ours.census["effective_bits"] < 8.3


def test_bf16_on_a_cpu_is_rounded_weights_computed_in_fp32() -> None:
    rounded, full = base(precision="bf16").model, base(precision="fp32").model
    for one, two in zip(rounded.parameters(), full.parameters(), strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, two.to(torch.bfloat16).float())


@pytest.mark.parametrize("block_size", [32, 64, 128, 256])
@pytest.mark.parametrize("double_quant", [True, False])
def test_effective_bits_are_counted_on_the_bytes(block_size: int, double_quant: bool) -> None:
    found = base(precision="nf4", block_size=block_size, double_quant=double_quant).census
    promised = predicted_bits("nf4", double_quant, block_size)
    assert found["effective_bits"] == pytest.approx(promised, abs=3e-3)
    assert found["quantized_share"] == 1.0
    assert set(found["dtypes"]) == {"uint8"}


def test_predicted_bits_of_qlora() -> None:
    assert round(predicted_bits("nf4", True, 64), 3) == 4.127
    assert predicted_bits("nf4", False, 64) == 4.5


def test_a_label_that_the_bytes_do_not_bear_out_fails() -> None:
    loaded = base(precision="nf4", storage="quantized")
    name = next(iter(loaded.assignment))
    with pytest.raises(ModelError, match=r"labelled int8 but takes 4\.\d+ bits"):
        census(loaded.model, {**loaded.assignment, name: "int8"})
    with pytest.raises(ModelError, match="labelled bf16 but is stored as uint8"):
        census(loaded.model, {**loaded.assignment, name: "bf16"})
    plain = base(precision="fp32")  # what a silent skip of bitsandbytes would leave
    with pytest.raises(ModelError, match=r"labelled nf4 but takes 32\.00 bits"):
        census(plain.model, {name: "nf4"})


def test_the_census_is_the_same_in_both_storages() -> None:
    assert base(precision="nf4").census == base(precision="nf4", storage="quantized").census
    packed, constants = weight_bytes(base(precision="nf4").model.get_submodule("transformer.h.0.attn.c_attn"))
    assert packed == 192 * 576 // 2
    assert constants > 192 * 576 // 64


def test_patterns_fit_the_end_of_a_name() -> None:
    assert matches("h.1.attn.c_proj", "transformer.h.1.attn.c_proj")
    assert matches("c_proj", "transformer.h.1.mlp.c_proj")
    assert matches("h.[01].*", "transformer.h.1.mlp.c_proj")
    assert not matches("h.1.attn.c_proj", "transformer.h.11.attn.c_proj")
    assert not matches("1.attn.c_proj", "transformer.h.11.attn.c_proj")
    assert not matches("_proj", "transformer.h.1.attn.c_proj")


def test_later_patterns_win_and_one_that_fits_nothing_is_an_error() -> None:
    linears = base().linears
    found = assign({"default": "nf4", "attn.*": "int8", "h.1.attn.c_proj": "bf16"}, linears)
    assert found["transformer.h.0.attn.c_attn"] == "int8"
    assert found["transformer.h.1.attn.c_proj"] == "bf16"
    assert found["transformer.h.1.mlp.c_fc"] == "nf4"
    with pytest.raises(
        SpecError, match=r"precision: pattern 'h\.99' fits no linear layer; names look like transformer"
    ):
        assign({"default": "nf4", "h.99": "bf16"}, linears)


def test_a_mix_of_codecs() -> None:
    loaded = base(precision={"default": "nf4", "attn.c_proj": "int8", "h.0.mlp.*": "bf16"})
    assert loaded.storage == "quantized"  # int8 has no other
    kinds = {name: type(loaded.model.get_submodule(name)).__name__ for name in loaded.assignment}
    assert kinds["transformer.h.0.attn.c_proj"] == "Linear8bitLt"
    assert kinds["transformer.h.0.attn.c_attn"] == "Linear4bit"
    assert kinds["transformer.h.0.mlp.c_fc"] == "Conv1D"


@pytest.mark.parametrize(
    ("wanted", "names", "found"),
    [
        ("auto", {"bf16"}, "unquantized"),
        ("quantized", {"bf16"}, "unquantized"),
        ("auto", {"nf4"}, "dequantized"),
        ("auto", {"nf4", "bf16"}, "dequantized"),
        ("auto", {"nf4", "int8"}, "quantized"),
        ("quantized", {"nf4"}, "quantized"),
        ("auto", {"int4", "int3", "nf4", "bf16"}, "dequantized"),
        ("auto", {"int4", "int8"}, "quantized"),
        ("quantized", {"int2"}, "quantized"),
    ],
)
def test_storage(wanted: str, names: set[str], found: str) -> None:
    first, *others = sorted(names)
    precision = {"default": first} | {f"h.{i}.*": name for i, name in enumerate(others)}
    assert pick_storage(Cell(task=Task(data="x"), precision=precision, storage=wanted)) == found


def test_the_bases_own_dropout_off_and_on() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=1, n_embd=16, n_head=2, vocab_size=32, n_positions=32, attn_pdrop=0.3, resid_pdrop=0.2, embd_pdrop=0.1
    )
    config._attn_implementation = "sdpa"
    model = GPT2LMHeadModel(config).train()
    ids = torch.arange(24).unsqueeze(0) % 32
    with torch.no_grad():
        set_base_dropout(model, on=False)
        quiet = [model(input_ids=ids).logits for _ in range(2)]
        set_base_dropout(model, on=True)
        loud = [model(input_ids=ids).logits for _ in range(2)]
        assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.1, 0.2, 0.3}
        set_base_dropout(model, on=False)
        again = model(input_ids=ids).logits
        evaluated = model.eval()(input_ids=ids).logits
    assert torch.equal(quiet[0], quiet[1])
    assert torch.equal(quiet[0], again)
    assert torch.equal(quiet[0], evaluated)
    assert not torch.equal(loud[0], loud[1])
    assert base().model.training  # never eval() before training ends


def test_base_dropout_is_kept_on_request() -> None:
    from loracle.spec.study import Train

    kept = {m.p for m in base(train=Train(base_dropout=True)).model.modules() if isinstance(m, nn.Dropout)}
    off = {m.p for m in base().model.modules() if isinstance(m, nn.Dropout)}
    assert off == {0.0}
    assert kept != off or kept == {0.0}
