"""What fits by prediction: budgets, needs, words, and a study on a GPU that is too small (synthetic records)."""

from __future__ import annotations

import json

import pytest

from loracle.base.gpu import CONTEXT
from loracle.spec.study import Run
from loracle.store.files import read_json
from loracle.study import run_study
from loracle.study.fits import (
    amount,
    budget,
    cohort_needs,
    fits,
    group_needs,
    limit,
    memory_fraction,
    stored_to_fit,
    verdict,
)
from loracle.study.preview import preview_plan

GB = 10**9
CARD = {"device": "cuda", "gpu_memory_bytes": 80 * GB}


def test_limits():
    assert limit(Run(), CARD) == 80 * GB
    assert limit(Run(gpu_memory="24GB"), CARD) == 24 * GB
    assert limit(Run(gpu_memory="100GB"), CARD) == 80 * GB  # no more than there is
    assert limit(Run(gpu_memory="24GB"), {"device": "cpu"}) is None
    assert limit(Run(), {"device": "cuda"}) is None
    assert limit(Run(), {}) is None
    assert budget(100) == 92
    assert budget(None) is None


def test_the_margin_is_for_what_has_a_smaller_way():
    cells = [{"id": "c", "fit": {"needs_bytes": 97}, "config": {"storage": "quantized"}}]
    plan = {"sizing": {"g": {"size": 4, "fixed_bytes": 81, "bytes_per_member": 4}}, "cells": cells}
    plan["runs"] = [{"id": name, "cell": "c"} for name in "rst"]
    assert fits(plan, {"group": "g", "runs": ["r", "s"]}, 100)
    assert not fits(plan, {"group": "g", "runs": ["r", "s", "t"]}, 100)
    plan["sizing"]["g"]["budget_bytes"] = 100  # inspect has looked at just that size and budget
    assert fits(plan, {"group": "g", "runs": ["r", "s", "t"]}, 100)
    assert not fits(plan, {"group": "g", "runs": ["r", "s", "t"]}, 99)
    assert fits(plan, {"group": "g", "runs": ["r"]}, 97)
    assert not fits(plan, {"group": "g", "runs": ["r"]}, 96)
    assert fits(plan, {"group": "g", "runs": ["r"]}, None)


def test_dequantized_storage_gives_way_where_it_does_not_fit():
    fit = {"needs_bytes": 30}
    packed = {"size": 7, "storage": "quantized", "fixed_bytes": 20, "bytes_per_member": 10, "reason": "as many as fit"}
    found = {"size": 1, "storage": "dequantized", "fixed_bytes": 110, "bytes_per_member": 10, "quantized": packed}
    record = {"cells": {"c": {"storage": "dequantized", "fit": fit}}, "sizing": {"g": found}, "data": {}}
    new = stored_to_fit(record, {"g": ["c"]}, 100)
    assert new["cells"]["c"]["storage"] == "quantized"
    assert new["sizing"]["g"]["size"] == 7
    assert group_needs(new["sizing"]["g"], 7) == 90
    assert new["sizing"]["g"]["reason"] == "dequantized weights do not fit: quantized storage, as many as fit"
    del found["quantized"]  # planned for another card: what one run needs is known, and no more
    alone = stored_to_fit(record, {"g": ["c"]}, 100)["sizing"]["g"]
    assert (alone["size"], group_needs(alone, 1), alone["storage"]) == (1, 30, "quantized")
    found["quantized"] = packed
    assert stored_to_fit(record, {"g": ["c"]}, 120) == record
    assert stored_to_fit(record, {"g": ["c"]}, None) == record
    assert stored_to_fit(record, {}, 100) == record  # the study says which storage
    fit["needs_bytes"] = 101
    assert stored_to_fit(record, {"g": ["c"]}, 100) == record


def test_a_smaller_gpu_is_a_share_of_the_card(monkeypatch):
    assert memory_fraction(Run(), CARD) is None
    assert memory_fraction(Run(gpu_memory="20GB"), CARD) == 0.25 - CONTEXT / CARD["gpu_memory_bytes"]
    assert memory_fraction(Run(gpu_memory="80GB"), CARD) is None
    assert memory_fraction(Run(gpu_memory="20GB"), {"device": "cpu"}) is None
    monkeypatch.setenv("LORACLE_MEMORY_FRACTION", "0.5")
    assert memory_fraction(Run(), {"device": "cpu"}) == 0.5


def test_needs_of_a_cohort_and_of_one_run():
    cells = [{"id": "c", "fit": {"needs_bytes": 7}, "config": {"storage": "dequantized"}}, {"id": "d"}]
    runs = [{"id": "r", "cell": "c"}, {"id": "s", "cell": "d"}]
    plan = {"sizing": {"g": {"fixed_bytes": 10, "bytes_per_member": 3}, "h": {"size": 1}}, "cells": cells, "runs": runs}
    assert group_needs({}, 3) is None
    assert cohort_needs(plan, {"group": "g", "runs": ["r", "s"]}) == 16
    assert cohort_needs(plan, {"group": "h", "runs": ["r", "s"]}) is None
    assert cohort_needs(plan, {"group": "h", "runs": ["r"]}) == 7
    assert cohort_needs(plan, {"group": "g", "runs": ["r"]}) == 13
    cells[0]["config"]["storage"] = "quantized"
    assert cohort_needs(plan, {"group": "g", "runs": ["r"]}) == 7
    assert cohort_needs(plan, {"group": "gone", "runs": ["s"]}) is None


def test_words():
    assert [amount(n) for n in (None, 870_000_000, 3_400_000_000)] == ["?", "870.0 MB", "3.4 GB"]
    assert verdict({}) == verdict({"fit": None}) == ""
    assert verdict({"fit": {"fits": True, "needs_bytes": 1}}) == "fits"
    assert verdict({"fit": {"fits": False, "needs_bytes": 3_400_000_000}}) == "needs ≥ 3.4 GB"
    fit = {"fits": False, "needs_bytes": 3_400_000_000, "change": {"train.gradient_checkpointing": True}}
    assert verdict({"fit": fit}) == "needs ≥ 3.4 GB; would fit with gradient checkpointing"
    fit["change"] = {"train.batch_size": 2, "train.gradient_accumulation": 4}
    assert verdict({"fit": fit}).endswith("would fit with batch size 2 and gradient accumulation 4")
    assert verdict({"fit": {"fits": None, "needs_bytes": None}}) == "not predicted"


@pytest.fixture
def gpu(fake, monkeypatch, tmp_path):
    """A machine with GPUs of 100 bytes, as the fake worker tells it; the lines it wrote of its jobs."""
    spans = tmp_path / "spans"

    def configure(visible="0", **options):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        fake(device="cuda", gpu_bytes=100, spans=str(spans), **options)
        return [json.loads(line) for line in spans.read_text().splitlines()] if spans.exists() else []

    return configure


def at_once(spans, kind):
    """Sets of jobs of a kind that ran at one time, as they grew and shrank."""
    open_, seen = set(), []
    for span in spans:
        if span["job"].startswith(kind):
            (open_.add if span["what"] == "start" else open_.discard)((span["job"], span["gpu"]))
            seen.append(frozenset(open_))
    return seen


def test_a_cohort_that_does_not_fit_is_split_before_it_starts(gpu, make_study, tmp_path):
    gpu(sizing={"fixed_bytes": 50, "bytes_per_member": 15})  # two fit in 92 of 100 bytes, three do not
    outcome = run_study(make_study(), tmp_path / "study")
    assert outcome.exit_code == 0
    plan = read_json(tmp_path / "study" / "plan.json")
    assert plan["splits"]
    assert {cohort["needs_bytes"] for cohort in plan["cohorts"]} == {50 + 15 * n for n in (3, 4)}
    jobs = [read_json(path)["members"] for path in (tmp_path / "study").glob("cohorts/*/job.json")]
    assert max(len(members) for members in jobs) == 2  # no larger one was ever started
    before = len(gpu())
    assert run_study(make_study(), tmp_path / "study").exit_code == 0
    assert len(gpu()) == before


def test_a_run_that_does_not_fit_is_never_started_and_stays_in_the_tables(gpu, make_study, tmp_path):
    gpu(cell_bytes={"bf16": 105, "nf4": 20}, size=1)
    study = make_study("vary.rank=[2]", "questions=[degradation, memory]", "run.cohort=1")
    outcome = run_study(study, tmp_path / "study")
    assert outcome.exit_code == 3
    states = {run: state for run, state in outcome.states.items() if run.startswith("bf16")}
    assert {state.status for state in states.values()} == {"oom"}
    assert {state.reason for state in states.values()} == {"needs ≥ 0.0 MB (predicted); would fit with batch size 1"}
    assert {s.status for run, s in outcome.states.items() if run.startswith("nf4")} == {"done"}
    assert not [span for span in gpu() if span["job"].startswith(("cohorts/bf16", "probes/bf16"))]
    probes = {p.parent.name[:3]: read_json(p) for p in (tmp_path / "study").glob("probes/*/record.json")}
    assert probes["bf1"]["status"] == "oom"
    assert "needs ≥" in probes["bf1"]["reason"]
    assert probes["nf4"]["status"] == "done"
    gpu(cell_bytes={"bf16": 105, "nf4": 20}, size=1)
    assert run_study(study, tmp_path / "study").exit_code == 3
    plan = read_json(tmp_path / "study" / "plan.json")
    plan["machine"]["gpu_memory_bytes"] = 200  # a larger card: what was never started is no result for ever
    (tmp_path / "study" / "plan.json").write_text(json.dumps(plan))
    assert run_study(study, tmp_path / "study").exit_code == 0


def test_two_cohorts_share_a_gpu_when_both_fit(gpu, make_study, tmp_path):
    gpu(sizing={"fixed_bytes": 20, "bytes_per_member": 5}, job_s=0.3)
    assert run_study(make_study("run.workers=auto"), tmp_path / "study").exit_code == 0
    assert max(map(len, at_once(gpu(), "cohorts/"))) == 2
    assert {span["gpu"] for span in gpu()} == {"0"}


@pytest.mark.parametrize("sizing", [{"fixed_bytes": 50, "bytes_per_member": 5}, {}])
def test_they_do_not_when_they_do_not_or_nobody_knows(gpu, make_study, tmp_path, sizing):
    gpu(sizing=sizing, job_s=0.2)
    assert run_study(make_study("run.workers=auto"), tmp_path / "study").exit_code == 0
    assert max(map(len, at_once(gpu(), "cohorts/"))) == 1


def test_cohorts_and_probes_spread_over_the_gpus(gpu, make_study, tmp_path):
    gpu("GPU-a,GPU-b", sizing={"fixed_bytes": 20, "bytes_per_member": 5}, job_s=0.3)
    study = make_study("run.workers=auto", "run.cohort=2", "questions=[degradation, memory]")
    assert run_study(study, tmp_path / "study").exit_code == 0
    spans = gpu()
    cohorts, probes = at_once(spans, "cohorts/"), at_once(spans, "probes/")
    assert max(map(len, cohorts)) == 4
    assert {gpu for jobs in cohorts for _, gpu in jobs} == {"GPU-a", "GPU-b"}
    assert all(sum(at == gpu for _, at in jobs) <= 2 for jobs in cohorts for gpu in ("GPU-a", "GPU-b"))
    assert max(map(len, probes)) == 2
    assert all(len({at for _, at in jobs}) == len(jobs) for jobs in probes)  # one a GPU


@pytest.mark.parametrize("status", ["oom", "failed"])  # a full card's libraries fail in words of their own
def test_what_fails_beside_another_gets_the_gpu_to_itself(gpu, make_study, tmp_path, status):
    gpu(sizing={"fixed_bytes": 20, "bytes_per_member": 5}, job_s=0.3, ends_beside=status)
    assert run_study(make_study("run.workers=auto"), tmp_path / "study").exit_code == 0
    assert not read_json(tmp_path / "study" / "plan.json")["splits"]  # composition, and so the bits, are as planned


def test_on_a_gpu_nothing_is_measured_before_training(gpu, make_study, tmp_path):
    gpu()
    run_study(make_study("run.cohort=auto"), tmp_path / "study")
    assert read_json(tmp_path / "study" / "jobs" / "inspect" / "job.json")["measure"] is False


def test_the_memory_asked_for_reaches_the_jobs(gpu, make_study, tmp_path):
    gpu()
    run_study(make_study("run.gpu_memory=50B", "questions=[memory]"), tmp_path / "study")
    jobs = {p.parent.parent.name: read_json(p) for p in (tmp_path / "study").glob("[cp]*/*/job.json")}
    assert read_json(tmp_path / "study" / "jobs" / "inspect" / "job.json")["gpu_memory"] == "50B"
    assert (
        jobs["cohorts"]["memory_fraction"] == jobs["probes"]["memory_fraction"] == 0.25
    )  # half of it is left at least


def test_the_plan_says_what_fits(fake, make_study):
    from loracle.cli.show import plan_text

    fake(cell_bytes={"bf16": 95 * GB, "nf4": 20}, sizing={"fixed_bytes": 2 * GB, "bytes_per_member": GB})
    plan = preview_plan(make_study("run.gpu_memory=24GB"))
    assert [cell["fit"]["fits"] for cell in plan["cells"]] == [False, False, True, True]
    text = plan_text(plan)
    assert "needs ≥ 95.0 GB; would fit with batch size 1" in text
    assert "planned for 24.0 GB of one GPU (fake)" in text
    assert "6,000.0 MB" in text  # a cohort's
    fake()
    text = plan_text(preview_plan(make_study()))
    assert "one GPU" not in text
    assert "memory (predicted)" in text
