import json
import shutil
from pathlib import Path

import pytest

from loracle.base.errors import DataError
from loracle.spec import parse_study
from loracle.study.cells import planned_cells, references, study_digest
from loracle.study.cohorts import group_key
from loracle.study.inspect import inspect_groups
from loracle.study.plan import make_plan
from loracle.study.preview import preview_plan
from loracle.study.resources import Machine

CPU = Machine("cpu", 2)


@pytest.fixture
def plan_of(fake, make_study):
    def make(*overrides, **options):
        fake(**options)
        return preview_plan(make_study(*overrides), measure=True)

    return make


def test_cells_runs_and_references(plan_of):
    plan = plan_of()
    assert [cell["label"] for cell in plan["cells"]] == [
        f"{p}-r{r}-all-linear" for p in ("bf16", "nf4") for r in (2, 4)
    ]
    bf16, nf4 = plan["cells"][0], plan["cells"][2]
    assert bf16["reference"] is None
    assert nf4["reference"] == bf16["id"]
    assert nf4["differences"] == ["precision"]
    assert {run["role"] for run in plan["runs"]} == {"run", "null"}
    assert sum(run["role"] == "run" for run in plan["runs"]) == 12
    assert nf4["config"]["compute_dtype"] == "float32"
    assert nf4["config"]["base"]["fingerprint"]
    assert nf4["trainable_params"] == 200
    json.dumps(plan)


def test_null_runs(plan_of):
    plan = plan_of("diagnose.null_runs=2")
    null = [run for run in plan["runs"] if run["role"] == "null"]
    assert len(null) == 4  # two for each of two 16-bit references
    runs = {run["id"]: run for run in plan["runs"]}
    for pair in plan["null_pairs"]:
        a, b = runs[pair["a"]], runs[pair["b"]]
        assert a["cell"] == b["cell"]
        assert a["cell"].startswith("bf16")
        assert (a["role"], b["role"]) == ("run", "null")
        assert a["init_seed"] == b["init_seed"] == 42
        assert b["order_seed"] - a["order_seed"] in (1000, 2000)


def test_no_null_without_the_question_or_a_quantized_sibling(plan_of):
    assert not plan_of("questions=[degradation]")["null_pairs"]
    assert not plan_of("vary.precision=[bf16]")["null_pairs"]


def test_seeds_of_data_order_and_init(plan_of):
    plan = plan_of("train.init_seed=7")
    assert {run["init_seed"] for run in plan["runs"]} == {7}
    assert {run["order_seed"] for run in plan["runs"]} == {42, 43, 44, 1042}


def test_every_run_sits_in_one_cohort(plan_of):
    plan = plan_of("run.cohort=auto", size=3)
    members = [run for cohort in plan["cohorts"] for run in cohort["runs"]]
    assert sorted(members) == sorted(run["id"] for run in plan["runs"])
    assert all(len(cohort["runs"]) <= 3 for cohort in plan["cohorts"])
    homes = {run["id"]: run["cohort"] for run in plan["runs"]}
    assert all(homes[run] == cohort["id"] for cohort in plan["cohorts"] for run in cohort["runs"])
    precision = {cell["id"]: cell["precision"] for cell in plan["cells"]}
    cells = {run["id"]: run["cell"] for run in plan["runs"]}
    for cohort in plan["cohorts"]:
        assert len({precision[cells[run]] for run in cohort["runs"]}) == 1
    assert plan["estimated_s"] > 0


def test_int8_trains_alone_but_on_a_cpu(plan_of):
    on_gpu = plan_of("vary.precision=[int8]", "run.cohort=auto", "run.device=cuda", device="cuda")
    assert [len(cohort["runs"]) for cohort in on_gpu["cohorts"]] == [1] * 6
    assert max(len(c["runs"]) for c in plan_of("vary.precision=[int8]", "run.cohort=auto")["cohorts"]) > 1


def test_ids_do_not_depend_on_paths(fake, make_study, rows, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(rows, elsewhere / "rows.jsonl")
    one, two = preview_plan(make_study(), measure=True), preview_plan(make_study(folder=elsewhere), measure=True)
    assert [run["id"] for run in one["runs"]] == [run["id"] for run in two["runs"]]
    assert one["study_sha256"] == two["study_sha256"]
    assert one["plan_id"] == two["plan_id"]


def test_ids_change_with_settings_and_data(plan_of, rows):
    before = {run["id"] for run in plan_of()["runs"]}
    assert not before & {run["id"] for run in plan_of("train.learning_rate=1e-3")["runs"]}
    rows.write_text('{"prompt": "c", "completion": "d"}\n')
    assert not before & {run["id"] for run in plan_of()["runs"]}


def test_adding_a_seed_keeps_the_other_runs(plan_of):
    before = {run["id"] for run in plan_of()["runs"]}
    assert before < {run["id"] for run in plan_of("seeds=[42, 43, 44, 45]")["runs"]}


def test_alpha_as_a_multiple_is_the_same_cell(plan_of):
    one = plan_of("vary.rank=[8]", "adapter.alpha=2r")["cells"][0]
    assert one["id"] == plan_of("vary.rank=[8]", "adapter.alpha=16")["cells"][0]["id"]
    assert one["config"]["adapter"]["alpha"] == 16.0


def test_study_digest_ignores_how_it_is_run(make_study):
    def sha(*overrides):
        study = make_study(*overrides)
        return study_digest(study, planned_cells(study))

    assert sha() == sha("run.workers=1", "run.retries=0", "run.checkpoint_seconds=1")
    assert sha() == sha("questions=[{name: degradation, margin: 0.1}, similarity]")
    assert (
        len({sha(), sha("run.threads=2"), sha("run.cohort=3"), sha("seeds=[1]"), sha("questions=[degradation]")}) == 5
    )


def test_references_prefer_bf16(make_study):
    cells = planned_cells(make_study("vary.precision=[fp32, bf16, nf4]", "vary.rank=[2]"))
    assert [references(cells)[cell.key] for cell in cells] == [None, None, cells[1].key]
    cells = planned_cells(make_study("vary.precision=[fp32, nf4]", "vary.rank=[2]"))
    assert references(cells)[cells[1].key] == cells[0].key


def test_a_twin_with_another_setting_is_no_reference(rows):
    tree = {
        "name": "x",
        "task": {"data": str(rows)},
        "seeds": [1],
        "cells": [{"precision": "bf16"}, {"precision": "nf4", "gradient_checkpointing": True}],
    }
    cells = planned_cells(parse_study(tree))
    assert set(references(cells).values()) == {None}


def test_groups_share_what_they_must(make_study):
    study = make_study("vary.rank=[2, 4]", "vary.learning_rate=[1e-3, 1e-4]")
    cells = planned_cells(study)
    assert len({group_key(cell) for cell in cells}) == 2  # by precision only
    groups = inspect_groups(study, cells)
    assert [group["members"] for group in groups] == [4 * 3 + 4, 4 * 3]
    for override in ("vary.batch_size=[2, 4]", "vary.steps=[5, 6]", "vary.gradient_checkpointing=[true, false]"):
        assert len({group_key(cell) for cell in planned_cells(make_study(override, "vary.precision=[bf16]"))}) == 2


def test_finished_runs_are_not_planned_again(fake, make_study):
    study = make_study()
    plan = preview_plan(study, measure=True)
    record = {
        "cells": {c.key: {"base": "b", "data": None, "steps": 6} for c in planned_cells(study)},
        "bases": {"b": {"fingerprint": "f"}},
        "data": {},
    }
    names = [run["id"] for run in make_plan(study, record, CPU)["runs"]]
    again = make_plan(study, record, CPU, finished=dict.fromkeys(names[:5], "old"))
    assert [run["cohort"] for run in again["runs"][:5]] == ["old"] * 5
    assert sum(len(cohort["runs"]) for cohort in again["cohorts"]) == len(names) - 5
    assert len(plan["runs"]) == len(names)


def test_the_plan_counts_all_gpus_not_the_one_that_inspect_was_shown(make_study):
    study = make_study("vary={}")
    record = {
        "cells": {c.key: {"base": "b", "data": None, "steps": 6} for c in planned_cells(study)},
        "bases": {"b": {"fingerprint": "f"}},
        "data": {},
        "machine": {"device": "cuda", "gpus": 1},
    }
    two = make_plan(study, record, Machine("cuda", 8, ("0", "1")))
    assert two["machine"]["gpus"] == 2


def test_names_are_safe_and_short(fake, make_study):
    study = make_study("vary.targets=[[q_proj, k_proj, v_proj, o_proj, up_proj, gate_proj, down_proj], all-linear]")
    for run in preview_plan(study)["runs"]:
        assert len(run["id"]) < 128
        assert Path(run["id"]).name == run["id"]


def test_preview_without_weights_says_so(fake, make_study):
    plan = preview_plan(make_study())
    assert plan["estimated_s"] is None
    assert plan["cells"][0]["config"]["base"]["fingerprint"] is None


def test_a_default_written_out_overrules_the_library():
    def length(**task):
        study = parse_study({"name": "x", "task": {"name": "banking77-10", **task}, "seeds": [1]})
        return planned_cells(study)[0].cell.task.max_length

    assert length() == 128
    assert length(max_length=512) == 512  # the general default


def test_a_data_file_that_is_not_there_stops_a_plan_too(fake, make_study):
    jobs = fake()
    for key, path in (("task.data", "gone.jsonl"), ("task.eval", "./gone.csv")):
        with pytest.raises(DataError, match="no such file"):
            preview_plan(make_study(f"{key}={path}"))
    assert fake() == jobs  # no worker was started


def test_a_hub_data_set_is_not_looked_for_on_disk(fake, make_study):
    assert preview_plan(make_study("task.data=org/name"))["cells"]


def sized(study, ranks, **facts):
    """An inspect record in which each cell with ``adapter.parameters`` was found to have one of ``ranks`` by targets."""
    cells = {}
    for planned in planned_cells(study):
        adapter = planned.cell.adapter
        cells[planned.key] = {"base": "b", "data": None, "steps": 6, **facts}
        if adapter.parameters is not None:
            found = {"asked": adapter.parameters, "have": adapter.parameters, "off_percent": 0.0}
            cells[planned.key] |= {"rank": ranks["".join(adapter.targets)], "parameters": found}
    return {"cells": cells, "bases": {"b": {"fingerprint": "f"}}, "data": {}}


def test_a_cell_of_equal_parameters_is_that_of_the_rank_it_got(make_study):
    vary = "vary={precision: [bf16, nf4], targets: [[q, v], [q, k, v, o]]}"
    study = make_study(vary, "adapter.alpha=2r", "adapter.parameters=4096")
    plan = make_plan(study, sized(study, {"qv": 8, "qkvo": 4}), CPU)
    rows = [
        f"{{precision: {p}, targets: {t}, rank: {r}}}"
        for p in ("bf16", "nf4")
        for t, r in (("[q, v]", 8), ("[q, k, v, o]", 4))
    ]
    by_hand = make_study("vary={precision: [bf16], targets: [[q]]}", "adapter.alpha=2r", f"cells=[{', '.join(rows)}]")
    other = make_plan(by_hand, sized(by_hand, {}), CPU)
    assert [cell["id"] for cell in plan["cells"]] == [cell["id"] for cell in other["cells"]][1:]
    assert [cell["label"] for cell in plan["cells"]] == ["bf16-r8-qv", "bf16-r4-qkvo", "nf4-r8-qv", "nf4-r4-qkvo"]
    assert [cell["config"]["adapter"]["alpha"] for cell in plan["cells"]] == [16.0, 8.0] * 2
    assert "parameters" not in plan["cells"][0]["config"]["adapter"]
    assert plan["cells"][0]["parameters"]["asked"] == 4096
    assert "parameters" not in other["cells"][0]
    assert [cell["differences"] for cell in plan["cells"][2:]] == [["precision"]] * 2
    assert plan["study_sha256"] == study_digest(study, planned_cells(study))
    changed = make_study(vary, "adapter.alpha=16", "adapter.parameters=4096")
    assert study_digest(changed, planned_cells(changed)) != plan["study_sha256"]


def test_a_rank_that_was_written_and_one_that_was_found_are_one_cell(make_study):
    study = make_study(
        "vary={precision: [nf4], targets: [[q, v]]}",
        "adapter.parameters=4096",
        "cells=[{precision: nf4, targets: [q, v], rank: 8}]",
    )
    assert len(planned_cells(study)) == 2
    plan = make_plan(study, sized(study, {"qv": 8}), CPU)
    assert [cell["rank"] for cell in plan["cells"]] == [8]
    assert len(plan["runs"]) == 3
