"""Study files: YAML's traps, aliases, overrides, and errors that name the dotted path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loracle.base.errors import SpecError
from loracle.spec import load_study, parse_study, study_schema
from loracle.spec.factors import cell_label, expand
from loracle.spec.yaml import MAX_BYTES, read_yaml, write_yaml

TREE: dict[str, Any] = {"name": "x", "task": {"data": "rows.jsonl"}}


def study(extra: dict[str, Any] | None = None, *overrides: str) -> Any:
    return parse_study({**TREE, **(extra or {})}, overrides)


# -- YAML -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-5", 5e-5),
        ("2e-4", 2e-4),
        ("1E3", 1e3),
        (".5", 0.5),
        ("-1.5e+3", -1500.0),
        ("no", "no"),
        ("yes", "yes"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("012", 12),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2024-01-02", "2024-01-02"),
        ("0x10", "0x10"),
        ("2r", "2r"),
        ("null", None),
        ("~", None),
        ("1e5x", "1e5x"),
        (".", "."),
    ],
)
def test_yaml_means_what_people_mean(text: str, value: Any) -> None:
    found = read_yaml(f"k: {text}", "f")["k"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "f: line 3: key 'a' stands twice"),
        ("a: {b: 1, b: 2}", "f: line 1: key 'b' stands twice"),
        ("1: x", "f: line 1: key 1 is not a word"),
        ("a: [1, 2", "f:1: not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "f:1: not valid YAML"),
        ("a: 1\n---\nb: 2\n", "f:2: not valid YAML"),
        ("a: &x [1]\nb: [" + "*x, " * 65 + "]", "f: more than 64 YAML aliases"),
        ("a: " + "[" * 30 + "]" * 30, "f: nested deeper than 24 levels"),
        ("a: " + "x" * MAX_BYTES, f"f: larger than {MAX_BYTES} bytes"),
    ],
)
def test_yaml_errors_say_where(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_yaml(text, "f")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_an_alias_bomb_is_refused_quickly() -> None:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{n}: &{n} [{', '.join(['*' + p] * 9)}]\n" for p, n in zip("abcdefghi", "bcdefghij", strict=True)
    )
    with pytest.raises(SpecError, match="aliases"):
        read_yaml(bomb, "f")


@pytest.mark.parametrize("content", [b"- a\n- b\n", b"", b"just words", b"\xff\xfe\x00"])
def test_a_file_that_is_no_study(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=r"study\.yaml"):
        load_study(path)
    with pytest.raises(SpecError, match="no such file"):
        load_study(tmp_path / "none.yaml")


def test_written_yaml_reads_back_as_the_same(tmp_path: Path) -> None:
    value = {"lr": 5e-5, "small": 1e-8, "word": "no", "number": "1e3", "seeds": [1, 2], "none": None, "on": True}
    assert read_yaml(write_yaml(value), "f") == value


# -- aliases and overrides --------------------------------------------------------------------------------------------


def test_pefts_and_transformers_names() -> None:
    found = study(
        {
            "model_name_or_path": "gpt2",
            "lora_r": 4,
            "lora_alpha": 32,
            "target_modules": ["c_attn"],
            "adapter": {"lora_dropout": 0.1},
            "train": {"per_device_train_batch_size": 3, "max_steps": 9, "lr": 5e-5, "optim": "adamw_torch"},
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": False,
            "bnb_4bit_compute_dtype": "bfloat16",
        }
    )
    assert (found.base.model, found.adapter.rank, found.adapter.alpha, found.adapter.dropout) == ("gpt2", 4, 32, 0.1)
    assert (found.train.batch_size, found.train.steps, found.train.optimizer) == (3, 9, "adamw")
    assert (found.precision, found.double_quant, found.compute_dtype) == ("nf4", False, "bfloat16")


def test_an_alias_beside_the_name_is_an_error() -> None:
    with pytest.raises(SpecError, match=r"^lora_r: means the same as adapter\.rank, which is set too: keep one"):
        study({"lora_r": 4, "adapter": {"rank": 4}})


@pytest.mark.parametrize("override", ["lora_r=4", "rank=4", "r=4", "adapter.rank=4", "adapter.lora_r=4"])
def test_set_overrides_what_the_file_says(override: str) -> None:
    for extra in ({"adapter": {"rank": 16}}, {"lora_r": 16}, {"vary": {"rank": [1, 2]}}, {"vary": {"lora_r": [1, 2]}}):
        found = study(extra, override)
        assert found.adapter.rank == 4
        assert not found.vary


def test_set_of_varied_factors() -> None:
    found = study({"vary": {"rank": [2, 4], "precision": ["bf16"]}}, "vary.lora_r=[1, 3]")
    assert [cell.adapter.rank for _, cell in expand(found)] == [1, 3]
    found = study({"vary": {"rank": [2, 4]}}, "vary.rank=[8]", "seeds=[7]", "train.learning_rate=5e-5", "base=gpt2")
    assert found.vary == {"rank": (8,)}
    assert (found.seeds, found.train.learning_rate, found.base.model) == ((7,), 5e-5, "gpt2")


def test_a_setting_that_no_cell_would_get_is_refused() -> None:
    whole = {"base": ["gpt2", {"model": "gpt2-medium"}], "task": ["alpaca", {"data": "b.jsonl"}]}
    for override, section in (("base.model=x", "base"), ("samples=5", "task"), ("task.max_length=64", "task")):
        with pytest.raises(
            SpecError, match=rf"would change nothing: {section} is varied; set {section} or vary.{section}"
        ):
            study({"vary": whole}, override)
    assert study({"vary": whole}, "base=x", "base.revision=main").base.model == "x"  # varied no more
    part = {"task": [{"samples": 5}, {"data": "b.jsonl"}]}
    cells = expand(study({"vary": part}, "task.max_length=64"))
    assert [cell.task.max_length for _, cell in cells] == [64, 512]


@pytest.mark.parametrize("override", ["rank", "=4", "nonsense=1", "adapter.rnk=2", "rank=[", "adapter.rank.x=1"])
def test_a_wrong_override_is_one_line(override: str) -> None:
    with pytest.raises(SpecError) as caught:
        study({"adapter": {"rank": 2}}, override)
    assert "\n" not in str(caught.value)


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"rnk": 4}, "rnk: unknown key, did you mean"),
        ({"adapter": {"rnk": 4}}, "adapter.rnk: unknown key, did you mean 'rank'?"),
        ({"batch_size": 4}, "batch_size: unknown key here; it belongs at train.batch_size"),
        ({"adapter": {"rank": 0}}, "adapter.rank: input should be greater than or equal to 1 (got 0)"),
        ({"adapter": {"rank": "8"}}, "adapter.rank: input should be a valid integer (got '8')"),
        ({"adapter": {"rank": True}}, "adapter.rank: input should be a valid integer (got True)"),
        ({"adapter": {"alpha": "2x"}}, "adapter.alpha: '2x' is neither a number nor a multiple"),
        ({"train": {"learning_rate": -1.0}}, "train.learning_rate: input should be greater than 0"),
        ({"train": {"learning_rate": float("nan")}}, "train.learning_rate: input should be a finite number"),
        ({"train": {"steps": 5, "epochs": 1.0}}, "train: give steps or epochs, not both"),
        ({"train": {"schedule": "cosin"}}, "train.schedule: 'cosin' is not allowed, did you mean 'cosine'?"),
        ({"train": {"best_checkpoint": True}}, "train: best_checkpoint needs eval_every"),
        ({"precision": "nf5"}, "precision: 'nf5' is not a precision, did you mean 'nf4'?"),
        (
            {"precision": {"default": "nf4", "h.1": "bf17"}},
            "precision.h.1: 'bf17' is not a precision, did you mean 'bf16'?",
        ),
        ({"precision": {"h.1": "bf16"}}, "precision: a block of patterns needs a default"),
        ({"block_size": 48}, "block_size: 48 is not one of 32, 64"),
        ({"precision": "int8", "storage": "dequantized"}, "storage: int8 also quantizes activations"),
        ({"task": {}}, "task: name a task of the library"),
        ({"seeds": []}, "seeds: give at least one"),
        ({"seeds": [1, 1]}, "seeds: each may stand once"),
        ({"name": "../x"}, "name: '../x' may hold"),
        ({"questions": ["memry"]}, "questions.0.name: 'memry' is not a question, did you mean 'memory'?"),
        ({"vary": {"rnk": [1]}}, "vary.rnk: unknown factor, did you mean 'rank'?"),
        ({"vary": {"rank": 4}}, "vary.rank: needs a list"),
        ({"vary": {"rank": []}}, "vary.rank: needs at least one value"),
        ({"vary": {"rank": [2, 0]}}, "vary.rank: input should be greater than or equal to 1 (got 0)"),
        ({"vary": {"precision": ["nf4", "bf17"]}}, "vary.precision: 'bf17' is not a precision, did you mean 'bf16'?"),
        ({"vary": {"precision": [{"default": "nf4", "h": "bf17"}]}}, "vary.precision.h: 'bf17' is not a precision"),
        ({"vary": {"learning_rate": [-1.0]}}, "vary.learning_rate: input should be greater than 0 (got -1.0)"),
        ({"cells": [{"rank": 2}, {"dropout": 1.5}]}, "cells.1.dropout: input should be less than 1 (got 1.5)"),
    ],
)
def test_errors_name_the_dotted_path(extra: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        expand(study(extra))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


# -- cells and schema -------------------------------------------------------------------------------------------------


def test_cells_are_all_combinations_each_once() -> None:
    found = expand(
        study(
            {
                "vary": {"precision": ["bf16", "nf4"], "rank": [2, 4]},
                "cells": [{"precision": "bf16", "rank": 2}, {"targets": ["q", "v"], "precision": "nf4"}],
            }
        )
    )
    labels = [cell_label(cell, values) for values, cell in found]
    assert labels == [
        "bf16-r2-all-linear",
        "bf16-r4-all-linear",
        "nf4-r2-all-linear",
        "nf4-r4-all-linear",
        "nf4-r8-qv",
    ]
    assert {cell.block_size for _, cell in found if cell.precision == "bf16"} == {None}


def test_alpha_may_follow_the_rank() -> None:
    ranks = expand(study({"adapter": {"alpha": "2r"}, "vary": {"rank": [2, 16]}}))
    assert [cell.adapter.scale for _, cell in ranks] == [2.0, 2.0]
    fixed = expand(study({"adapter": {"alpha": 16}, "vary": {"rank": [2, 16]}}))
    assert [cell.adapter.scale for _, cell in fixed] == [8.0, 1.0]


def test_a_study_is_frozen() -> None:
    with pytest.raises(ValueError):
        study().name = "y"


def test_the_schema_is_valid_and_knows_the_example() -> None:
    schema = study_schema()
    assert schema["title"] == "loracle study"
    assert {"base", "task", "adapter", "train", "vary", "seeds", "questions"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False
    references = [text.split('"')[0] for text in repr(schema).replace("'", '"').split("#/$defs/")[1:]]
    assert references
    assert set(references) <= set(schema["$defs"])
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate({**TREE, "vary": {"rank": [2]}})
    assert not validator.is_valid({**TREE, "rnk": 2})


def test_methods_without_a_rank_are_one_cell_at_every_rank() -> None:
    found = study({"vary": {"method": ["lora", "ia3", "full"], "rank": [2, 4]}, "precision": "bf16"})
    labels = [cell_label(cell, values) for values, cell in expand(found)]
    assert labels == ["bf16-r2-all-linear", "bf16-r4-all-linear", "bf16-ia3-all-linear", "bf16-full"]


def test_sensitivity_takes_no_margin() -> None:
    text = "{name: x, task: {name: banking77-10}, questions: [degradation, {name: sensitivity, margin: 0.1}]}"
    with pytest.raises(SpecError, match="measured, not decided"):
        parse_study(read_yaml(text, "study.yaml"))


# -- parameters in place of a rank ------------------------------------------------------------------------------------


def test_parameters_stand_in_place_of_a_rank() -> None:
    found = study({"adapter": {"parameters": {"targets": ["q", "v"], "rank": 8}, "alpha": "2r"}})
    assert "rank" not in found.model_dump()["adapter"]
    [(_, cell)] = expand(found)
    assert cell.adapter.parameters == found.adapter.parameters
    again = parse_study(read_yaml(write_yaml(found.model_dump(mode="json")), "f"))
    assert again == found
    assert "parameters" not in study({"adapter": {"rank": 4}}).model_dump()["adapter"]
    assert study({"adapter": {"rank": 4}}, "parameters=4096").adapter.parameters == 4096  # the one replaces the other
    assert study({"adapter": {"parameters": 4096}}, "rank=4").adapter.parameters is None
    mixed = study(
        {"adapter": {"parameters": 4096}, "vary": {"targets": [["q"]]}, "cells": [{"targets": ["q"], "rank": 2}]}
    )
    assert [(c.adapter.parameters, c.adapter.rank) for _, c in expand(mixed)] == [(4096, 8), (None, 2)]
    varied = study({"adapter": {"rank": 4}, "vary": {"parameters": [None, 4096]}})
    assert [(c.adapter.parameters, c.adapter.rank) for _, c in expand(varied)] == [(None, 4), (4096, 8)]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"adapter": {"rank": 4, "parameters": 4096}}, "adapter.parameters: the rank follows from them: give rank or"),
        ({"adapter": {"parameters": 4096}, "vary": {"rank": [2, 4]}}, "vary.rank: would set aside adapter.parameters"),
        ({"cells": [{"rank": 4, "parameters": 4096}]}, "cells.0.rank: the rank follows from the parameters"),
        ({"adapter": {"parameters": 0}}, "adapter.parameters: input should be greater than or equal to 1 (got 0)"),
        ({"adapter": {"parameters": {"targets": ["q"]}}}, "adapter.parameters.rank: field required"),
        ({"adapter": {"parameters": {"target": ["q"], "rank": 1}}}, "adapter.parameters.target: unknown key"),
    ],
)
def test_what_does_not_go_with_parameters(extra: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        expand(study(extra))
    assert str(caught.value).startswith(message)
