"""rank_pattern in a study file: PEFT's name, its place, what it does to labels, identity and alpha."""

from __future__ import annotations

from typing import Any

import pytest

from loracle.base.errors import SpecError
from loracle.spec import parse_study
from loracle.spec.factors import cell_label, expand
from loracle.spec.study import Cell, Study
from loracle.study.cells import plain, planned_cells, references

TREE = {"name": "x", "task": {"data": "rows.jsonl", "format": "text"}}
PATTERN = {"h.1.mlp.c_fc": 16, "c_attn": 2}


def study(**tree: Any) -> Study:
    return parse_study({**TREE, **tree})


def only(**tree: Any) -> Cell:
    [(_, cell)] = expand(study(**tree))
    return cell


def test_it_stands_in_adapter_at_the_top_and_among_the_factors() -> None:
    cells = [
        only(adapter={"rank_pattern": PATTERN}),
        only(rank_pattern=PATTERN),
        only(vary={"rank_pattern": [PATTERN]}),
        expand(study(vary={"rank": [8]}, cells=[{"rank_pattern": PATTERN}]))[1][1],
        only(adapter={"rank_pattern": dict(reversed(PATTERN.items()))}),
    ]
    assert {cell.model_dump_json() for cell in cells} == {cells[0].model_dump_json()}
    assert cells[0].adapter.rank_pattern == PATTERN


def test_no_pattern_is_null_empty_or_left_out_and_keeps_the_identity_of_old_studies() -> None:
    cells = [only(), only(rank_pattern=None), only(rank_pattern={}, alpha_pattern={})]
    assert {cell.model_dump_json() for cell in cells} == {cells[0].model_dump_json()}
    assert "rank_pattern" not in plain(cells[0])["adapter"]
    assert "alpha_pattern" not in plain(cells[0])["adapter"]


def test_labels_tell_patterns_apart() -> None:
    other = {**PATTERN, "c_attn": 3}
    found = expand(study(vary={"rank_pattern": [None, PATTERN, other]}))
    labels = [cell_label(cell, values) for values, cell in found]
    assert labels[0] == "bf16-r8-all-linear"
    assert labels[1].startswith("bf16-r8-all-linear-ranks2to16.")
    assert labels[2].startswith("bf16-r8-all-linear-ranks3to16.")
    assert len(set(labels)) == 3


def test_alpha_2r_is_written_out_by_layer() -> None:
    kept, fixed = (plain(only(adapter={"alpha": alpha, "rank_pattern": PATTERN})) for alpha in ("2r", 16.0))
    assert kept["adapter"]["alpha"] == fixed["adapter"]["alpha"] == 16.0
    assert kept["adapter"]["alpha_pattern"] == {"h.1.mlp.c_fc": 32.0, "c_attn": 4.0}
    assert "alpha_pattern" not in fixed["adapter"]
    said = only(
        adapter={"alpha": 16.0, "rank_pattern": PATTERN, "alpha_pattern": {"h.1.mlp.c_fc": 32.0, "c_attn": 4.0}}
    )
    assert plain(said) == kept  # the same adapter, said otherwise, is one cell


def test_each_pattern_has_its_own_16_bit_twin() -> None:
    cells = planned_cells(study(vary={"precision": ["bf16", "nf4"], "rank_pattern": [None, PATTERN]}))
    twins = references(cells)
    by_key = {cell.key: cell for cell in cells}
    for cell in cells:
        if cell.quantized:
            assert by_key[str(twins[cell.key])].cell.adapter == cell.cell.adapter


@pytest.mark.parametrize(
    ("adapter", "says"),
    [
        ({"rank_pattern": {"c_attn": 0}}, r"adapter\.rank_pattern\.c_attn: .*greater than or equal to 1"),
        ({"rank_pattern": {"c_attn": 2.5}}, r"adapter\.rank_pattern\.c_attn"),
        ({"rank_pattern": {"c_attn": 2}, "method": "dora"}, r"adapter\.rank_pattern: goes with lora"),
        ({"alpha_pattern": {"c_attn": 2.0}, "alpha": "2r"}, r"adapter\.alpha_pattern: alpha '2r' gives every layer"),
        ({"rank_patern": {"c_attn": 2}}, r"did you mean 'rank_pattern'"),
    ],
)
def test_what_cannot_be_is_one_line(adapter: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        study(adapter=adapter)


def test_allocation_is_measured_and_takes_no_margin() -> None:
    with pytest.raises(SpecError, match="measured, not decided"):
        study(questions=[{"name": "allocation", "margin": 0.1}])
