"""From a budget in the study file to plain precision blocks."""

from __future__ import annotations

import pytest

from loracle.base.errors import SpecError
from loracle.cli.show import plan_text
from loracle.spec import load_study, parse_study
from loracle.store.files import read_json
from loracle.study.cells import planned_cells
from loracle.study.execute import run_study
from loracle.study.mixing import _cell, _key, _mixed_rows, is_mixed, margin, resolved
from loracle.study.preview import preview_plan

BLOCK = {"default": "nf4", "transformer.h.1.attn.c_proj": "bf16"}
MIXED = {"default": "nf4", "sensitive": "bf16", "budget": "15%"}


def study(**more):
    tree = {
        "name": "s",
        "task": {"name": "banking77-10"},
        "vary": {"precision": ["bf16", "nf4", MIXED], "rank": [2, 8]},
    }
    return parse_study({**tree, **more})


def keys(found):
    return {_key(_cell(found, values)) for values in _mixed_rows(found)}


def test_each_mixed_cell_becomes_one_with_the_block() -> None:
    found = study()
    assert is_mixed(found)
    (key,) = keys(found)  # one choice for both ranks: it hangs on base, codec and budget alone
    plain = resolved(found, {key: BLOCK})
    assert not is_mixed(plain)
    assert [c.label for c in planned_cells(plain)] == [
        "bf16-r2-all-linear", "bf16-r8-all-linear", "nf4-r2-all-linear", "nf4-r8-all-linear",
        "nf4-1xbf16-r2-all-linear", "nf4-1xbf16-r8-all-linear",
    ]  # fmt: skip
    assert planned_cells(plain)[-1].cell.precision == BLOCK
    assert parse_study(plain.model_dump(mode="json")) == plain  # study.yaml reads back


def test_where_nothing_needs_keeping_there_is_no_such_cell() -> None:
    found = study()
    (key,) = keys(found)
    for choices in ({key: "nf4"}, {key: None}, {}):
        assert len(planned_cells(resolved(found, choices))) == 4


def test_among_cells_and_for_each_base() -> None:
    found = study(
        vary={"precision": ["bf16", "nf4"]},
        cells=[{"precision": MIXED, "rank": 4}, {"precision": MIXED, "base": "other"}],
    )
    own, other = (_key(_cell(found, values)) for values in _mixed_rows(found))
    assert own != other
    plain = resolved(found, {own: BLOCK, other: "nf4"})
    assert [c.label for c in planned_cells(plain)][2:] == ["nf4-1xbf16-r4-all-linear"]


def test_the_margin_is_the_degradation_questions() -> None:
    assert margin(study()) == 0.05
    assert margin(study(questions=[{"name": "degradation", "margin": 0.02}])) == 0.02


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"budget": "lots"}, "'lots' is none: write it like 15%"),
        ({"budget": "150%"}, "no share between 0% and 100%"),
        ({"default": "bf16"}, "not quantized"),
        ({"sensitive": "nf4"}, "no finer than nf4"),
        ({"sensitive": "bf61"}, "bf61"),
    ],
)
def test_what_is_wrong_is_one_line(changed, words) -> None:
    found = study(vary={"precision": ["bf16", {**MIXED, **changed}]})
    with pytest.raises(SpecError, match=words) as error:
        planned_cells(found)
    assert "precision" in str(error.value)
    assert "\n" not in str(error.value)


MIXED_TOO = "vary.precision=[bf16, nf4, {default: nf4, sensitive: bf16, budget: 15%}]"


def test_it_is_chosen_once_before_the_plan_is_made(fake, make_study, tmp_path) -> None:
    folder = tmp_path / "study"
    assert run_study(make_study(MIXED_TOO), folder).exit_code == 0
    plan = read_json(folder / "plan.json")
    labels = [cell["label"] for cell in plan["cells"]]
    assert labels[-2:] == ["nf4-1xbf16-r2-all-linear", "nf4-1xbf16-r4-all-linear"]
    assert all(cell["reference"] for cell in plan["cells"][-2:])
    journal = fake()
    assert journal.index("jobs/sensitivity") < journal.index("jobs/inspect")
    run_study(make_study(MIXED_TOO), folder)
    run_study(load_study(folder / "study.yaml"), folder)  # as it was written: with the block
    assert fake() == journal
    assert read_json(folder / "plan.json") == plan


def test_nothing_to_keep_is_no_cell(fake, make_study, tmp_path) -> None:
    folder = tmp_path / "study"
    fake(nothing_to_keep=True)
    assert run_study(make_study(MIXED_TOO), folder).exit_code == 0
    assert len(read_json(folder / "plan.json")["cells"]) == 4


def test_a_plan_without_weights_leaves_it_out(fake, make_study) -> None:
    """And says so, for a reader and for a program."""
    fake()
    plan, measured = preview_plan(make_study(MIXED_TOO)), preview_plan(make_study(MIXED_TOO), measure=True)
    assert len(plan["cells"]) == 4
    assert plan["unchosen"] == [{"precision": MIXED, "cells": 2}]
    assert "2 more with precision {default: nf4, sensitive: bf16, budget: 15%}: `loracle run` measures" in plan_text(
        plan
    )
    assert len(measured["cells"]) == 6
    assert "unchosen" not in measured
    assert " more with precision" not in plan_text(measured)


def test_it_stands_beside_what_it_is_compared_with() -> None:
    for vary in ({"precision": [MIXED]}, {}):
        with pytest.raises(SpecError, match="beside the uniform precision and 16 bits"):
            study(vary=vary, precision=MIXED)
