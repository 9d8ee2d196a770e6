"""Layer sensitivity: the right matrices come out, nothing else changes, and the base is left as it was."""

from __future__ import annotations

import pytest
import torch

from loracle.adapters.forward import Untrained
from loracle.diagnose.sensitivity import Sweep, sweep, worst_first
from loracle.diagnose.sweeps import sensitivity
from loracle.diagnose.units import UNITS, Codec, Swapper, units_of
from loracle.evaluate.loss import item_losses
from loracle.models.load import LoadedBase, load_base
from loracle.models.precision import oriented_weight
from loracle.models.source import find, load_tokenizer
from loracle.spec.study import Base, Cell, Task
from loracle.store.files import read_json
from loracle.store.layout import StudyFolder
from loracle.tasks.collate import pad_token_id
from loracle.tasks.dataset import plain_text

CULPRITS = ["h.1.attn.c_proj", "h.0.mlp.c_proj", "h.1.attn.c_attn"]


def load(model: str = "gpt2-demo") -> LoadedBase:
    return load_base(find(model), Cell(base=Base(model=model), task=Task(data="x")), torch.device("cpu"))


def swept(loaded: LoadedBase, codec: Codec, rows: int = 8) -> Sweep:
    tokenizer = load_tokenizer(loaded.source)
    return sweep(loaded, codec, plain_text(tokenizer, 512)[:rows], pad_token_id(tokenizer))


def of(found: Sweep, unit: str) -> list[dict]:
    return worst_first([one for one in found.units if one["unit"] == unit])


@pytest.fixture(scope="module")
def base() -> LoadedBase:
    return load()


@pytest.fixture(scope="module")
def nf4(base) -> Sweep:
    return swept(base, Codec("nf4"))


def test_the_demos_three_culprits_come_first_in_order(nf4) -> None:
    worst = [one["module"].removeprefix("transformer.") for one in of(nf4, "matrix")]
    assert worst[:3] == CULPRITS
    figures = of(nf4, "matrix")
    assert figures[0]["delta_loss"] > 2 * figures[1]["delta_loss"] > 0.2
    assert all(one["delta_loss"] < figures[2]["delta_loss"] / 1.5 for one in figures[3:])


def test_an_unquantized_codec_changes_nothing_at_all(base) -> None:
    for one in swept(base, Codec("fp32"), rows=2).units:
        assert (one["delta_loss"], one["kl"], one["agreement"]) == (0.0, 0.0, 1.0), one


def test_the_base_is_left_as_it_was(base, nf4) -> None:
    fresh = load().model.state_dict()
    assert all(torch.equal(fresh[name], value) for name, value in base.model.state_dict().items())
    assert not any("forward" in module.__dict__ for module in base.model.modules())
    with pytest.raises(RuntimeError), Swapper(base.model, Codec("nf4")).quantized(units_of(base.linears)[-1]):
        raise RuntimeError  # however a pass ends
    assert all(torch.equal(fresh[name], value) for name, value in base.model.state_dict().items())


def test_a_slice_is_its_rows_alone(base) -> None:
    """q, k and v of a fused projection together are its quantized weight."""
    swapper = Swapper(base.model, Codec("nf4"))
    slices = [unit for unit in units_of(base.linears) if unit.unit == "slice" and unit.layer == 1]
    assert [unit.kind for unit in slices] == ["q", "k", "v"]
    dense = oriented_weight(base.model.get_submodule(slices[0].module))
    together = sum(swapper.part(unit.parts[0]) - dense for unit in slices)
    assert torch.allclose(together, swapper.dense(slices[0].module) - dense, atol=1e-7)
    assert sum(unit.params for unit in slices) == dense.numel()


def test_units_cover_the_model_once(base) -> None:
    units, total = units_of(base.linears), sum(x.params for x in base.linears)
    count = {kind: [u for u in units if u.unit == kind] for kind in UNITS}
    assert {kind: len(found) for kind, found in count.items()} == {
        "matrix": 16, "slice": 12, "kind": 7, "layer": 4, "all": 1,
    }  # fmt: skip
    assert all(sum(u.params for u in count[kind]) == total for kind in ("matrix", "layer", "all"))


def test_what_lies_before_a_unit_may_be_skipped(base, nf4, monkeypatch) -> None:
    """The same figures as whole passes give, and as loading the codec in place gives."""
    units = [u for u in units_of(base.linears) if u.unit == "matrix" and u.layer in (1, 3)] + units_of(base.linears)[
        -1:
    ]
    monkeypatch.setattr("loracle.diagnose.sensitivity.units_of", lambda linears: units)
    short = swept(base, Codec("nf4"), rows=3)
    monkeypatch.setattr("loracle.diagnose.sensitivity.decoder_layers", lambda model, linears: [])
    assert swept(base, Codec("nf4"), rows=3) == short
    cell = Cell(task=Task(data="x"), precision="nf4", storage="dequantized")
    tokenizer = load_tokenizer(base.source)
    whole = load_base(base.source, cell, torch.device("cpu"))
    rows = plain_text(tokenizer, 512)[:3]
    losses = item_losses(Untrained(whole.model), rows, pad_token_id(tokenizer), torch.device("cpu"))
    assert losses.mean[0] == pytest.approx(short.loss + short.units[-1]["delta_loss"], abs=2e-4)


def test_int8_is_weight_only_and_mild(base, nf4) -> None:
    worst = of(swept(base, Codec("int8")), "matrix")[0]
    assert 0 < worst["delta_loss"] < 0.05 * of(nf4, "matrix")[0]["delta_loss"]
    assert (worst["double_quant"], worst["block_size"]) == (None, None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2-ref", "llama-ref"])
def test_nothing_stands_out_on_a_healthy_base(shared, name, monkeypatch) -> None:
    whole = units_of
    monkeypatch.setattr(
        "loracle.diagnose.sensitivity.units_of", lambda linears: [u for u in whole(linears) if u.unit == "matrix"]
    )
    found = of(swept(load(str(shared / "models" / name)), Codec("nf4"), rows=4), "matrix")
    assert found[0]["delta_loss"] < 0.03
    assert found[-1]["agreement"] > 0.9


@pytest.mark.slow
def test_the_job_makes_a_sweep_once(tmp_path, monkeypatch) -> None:
    asked = {"base": "gpt2-demo", "model": "gpt2-demo", "revision": None, "double_quant": None, "block_size": None}
    job = {"device": "cpu", "sweeps": [{**asked, "codec": "fp32", "inputs_sha256": "a"}]}
    folder = StudyFolder(tmp_path)
    said: list[dict] = []
    assert sensitivity(folder, job, lambda phase, **facts: said.append(facts)) == {"status": "done", "sweeps": 1}
    matrices = read_json(folder.sensitivity)
    assert len(matrices) == 16
    assert {"module", "layer", "kind", "delta_loss", "kl", "agreement", "params", "codec", "text"} <= set(matrices[0])
    monkeypatch.setattr("loracle.diagnose.sweeps.sweep", lambda *given: pytest.fail("made twice"))
    sensitivity(folder, job, lambda phase, **facts: None)
    assert read_json(folder.sensitivity) == matrices


def test_what_cannot_be_swept_says_why(tmp_path) -> None:
    asked = {"base": "x", "model": str(tmp_path / "none"), "revision": None, "codec": "nf4"}
    job = {"device": "cpu", "sweeps": [{**asked, "double_quant": True, "block_size": 64, "inputs_sha256": "a"}]}
    sensitivity(StudyFolder(tmp_path), job, lambda phase, **facts: None)
    (found,) = read_json(StudyFolder(tmp_path).sensitivity_sweeps)["sweeps"]
    assert found["units"] == []
    assert "no such folder" in found["reason"]
