"""Where a base comes from, the map of its linear layers, and its parameter counts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from loracle.adapters.targets import resolve_targets
from loracle.base.errors import ModelError
from loracle.models.linears import linear_map
from loracle.models.load import count_parameters, meta_model
from loracle.models.source import BUILTIN, find, fingerprint, licence, load_config, load_tokenizer, require_weights

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_map_of_the_llama_family(family: str) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(family, **SMALL, num_key_value_heads=2, head_dim=8)
    found = linear_map(meta_model(config), config.model_type)
    assert len(found) == 2 * 7
    first = {
        linear.kind: (linear.name, linear.d_in, linear.d_out, linear.slices) for linear in found if linear.layer == 0
    }
    assert first["q"] == ("model.layers.0.self_attn.q_proj", 32, 32, {"q": (0, 32)})
    assert first["v"] == ("model.layers.0.self_attn.v_proj", 32, 16, {"v": (0, 16)})
    assert first["down"] == ("model.layers.0.mlp.down_proj", 64, 32, {"down": (0, 32)})
    assert set(first) == {"q", "k", "v", "o", "up", "gate", "down"}
    assert not any("lm_head" in linear.name for linear in found)


def test_the_map_of_gpt2() -> None:
    from transformers import GPT2Config

    config = GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=64)
    found = linear_map(meta_model(config), "gpt2")
    assert [(x.name, x.layer, x.kind, x.d_in, x.d_out) for x in found[:4]] == [
        ("transformer.h.0.attn.c_attn", 0, "qkv", 32, 96),
        ("transformer.h.0.attn.c_proj", 0, "o", 32, 32),
        ("transformer.h.0.mlp.c_fc", 0, "up", 32, 128),
        ("transformer.h.0.mlp.c_proj", 0, "down", 128, 32),
    ]
    assert found[0].slices == {"q": (0, 32), "k": (32, 64), "v": (64, 96)}
    assert len(found) == 8


def test_an_unknown_family_goes_by_raw_names() -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model("gpt_neox", **SMALL)
    found = linear_map(meta_model(config), "unheard_of")
    assert {x.kind for x in found} == {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}
    assert not any(x.slices for x in found)
    assert len(resolve_targets(found, ["query_key_value"])) == 2


def test_gpt2_medium_has_786432_trainable_parameters() -> None:
    from transformers import GPT2Config

    config = GPT2Config(n_layer=24, n_embd=1024, n_head=16)
    model = meta_model(config)
    linears = linear_map(model, "gpt2")
    assert sum(site.params(8) for site in resolve_targets(linears, ["c_attn"])) == 786_432
    assert count_parameters(model) == 354_823_168  # the head is the embedding: counted once


# -- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the built-in base."""
    return Path(shutil.copytree(BUILTIN / "gpt2-demo", tmp_path / "base"))


def test_a_folder_with_pickled_weights_only_is_refused(folder: Path) -> None:
    require_weights(find(str(folder)))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only pickled weights \(pytorch_model\.bin\).*convert them to safetensors"):
        require_weights(find(str(folder)))
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"no weights \(\*\.safetensors\)"):
        require_weights(find(str(folder)))


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json in this folder"):
        find(str(tmp_path))


@pytest.mark.parametrize("name", ["/no/such/folder", "./no-such", "a/b/c"])
def test_a_folder_that_is_not_there(name: str) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        find(name)


def test_a_folder_is_never_taken_for_a_built_in_base(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = find(str(folder))
    assert (source.name, source.resolved) == ("base", str(folder.resolve()))
    monkeypatch.chdir(folder)
    assert find(".").name == "base"
    with pytest.raises(ModelError):
        find("..")
    assert find("gpt2-demo").resolved == str(BUILTIN / "gpt2-demo")


def test_a_broken_config_is_one_line(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "gpt2", ')
    with pytest.raises(ModelError, match=r"config\.json cannot be read") as caught:
        load_config(find(str(folder)))
    assert "\n" not in str(caught.value)


def test_a_hub_id_without_a_network_is_one_line_and_fast() -> None:
    code = (
        "from loracle.models.source import find\n"
        "from loracle.base.errors import ModelError\n"
        "try:\n    find('no-such-org/no-such-model')\n"
        "except ModelError as error:\n    print(error)\n"
    )
    environment = {
        "PATH": "/usr/bin:/bin",
        "HF_ENDPOINT": "http://127.0.0.1:9",  # nothing listens there
        "HF_HOME": "/nonexistent",
        "PYTHONPATH": str(Path(__file__).parents[2] / "src"),
    }
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert time.monotonic() - begin < 15
    assert "Retrying" not in done.stderr
    assert "base.model: 'no-such-org/no-such-model' is neither a folder" in done.stdout
    assert "check the spelling and the network" in done.stdout
    assert len(done.stdout.strip().splitlines()) == 1


def test_auto_map_is_ignored(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('code of the folder was run')\n")
    source = find(str(folder))
    assert load_config(source).model_type == "gpt2"
    assert type(meta_model(load_config(source))).__name__ == "GPT2LMHeadModel"
    assert load_tokenizer(source).eos_token_id is not None
    config["model_type"] = "evil"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        load_config(source)


def test_fingerprints_are_of_contents(folder: Path, tmp_path: Path) -> None:
    one = fingerprint(find(str(folder)))
    other = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    assert fingerprint(find(str(other))) == one == fingerprint(find("gpt2-demo"))
    data = bytearray((other / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "model.safetensors").write_bytes(bytes(data))
    assert fingerprint(find(str(other))) != one
    (other / "model.safetensors").unlink()
    assert fingerprint(find(str(other)))[0] is None


def test_licence_from_the_readme(folder: Path) -> None:
    readme: Any = folder / "README.md"
    readme.write_text("---\nlicense: mit\n---\n")
    assert licence(find(str(folder))) == "mit"
