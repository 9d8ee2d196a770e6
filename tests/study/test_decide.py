"""``run --decide``: seeds at planned looks, against losses whose truth is known."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from loracle.base.errors import SpecError, StoreError
from loracle.cli.show import plan_text
from loracle.report import primary_verdicts
from loracle.report.evidence import read_study
from loracle.spec import load_study
from loracle.store.files import read_json
from loracle.study import run_study
from loracle.verdict import decide

FAR = {"cost": {"nf4": 0.5}, "seed_sd": 0.002}  # far outside the margin of 5%: three seeds show it
NEAR = {"cost": {"nf4": 0.0488}, "seed_sd": 0.05}  # on the margin: no number of seeds would show it
ONE = ("vary.rank=[4]", "questions=[degradation]")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "study"


def seeds(folder):
    return sorted({run["seed"] for run in read_json(folder / "plan.json")["runs"]})


def bits(folder):
    return {path.parent.name: read_json(path)["adapter_sha256"] for path in folder.glob("runs/*/record.json")}


def degradation(folder):
    return next(e for e in decide(read_study(folder).evidence()) if e["question"] == "degradation")


def test_a_large_difference_stops_at_the_first_look(fake, make_study, folder):
    fake(truth=FAR)
    outcome = run_study(make_study(*ONE, "seeds=[42, 43, 44, 45, 46]"), folder, decide=primary_verdicts)
    assert seeds(folder) == [42, 43, 44]
    assert "look at 3 of 3, 5, 8 seeds: degradation has its answer" in outcome.looked
    entry = degradation(folder)
    assert (entry["verdict"], entry["n"]) == ("rejected", 3)
    assert entry["look"] == {"n": 3, "of": [3, 5, 8], "last": False}
    assert entry["level"] == pytest.approx(1 - 0.1 / 3)
    assert "look 1 of 3 (3, 5, 8 seeds)" in entry["statement"]


def test_what_stays_undecided_goes_to_the_last_look_and_no_further(fake, make_study, folder):
    fake(truth=NEAR)
    study = make_study(*ONE)
    named = [42, 43, 44, 45, 46, 47, 48, 49]
    outcome = run_study(study, folder, decide=primary_verdicts)
    assert seeds(folder) == read_json(folder / "plan.json")["look_seeds"] == named
    assert "the answer stands" in outcome.looked
    assert degradation(folder)["look"]["last"]
    before, journal = read_json(folder / "plan.json"), fake(truth=NEAR)
    again = run_study(study, folder, decide=primary_verdicts)
    assert (again.looked, again.exit_code) == (outcome.looked, 0)
    assert fake(truth=NEAR) == journal
    assert read_json(folder / "plan.json") == before


def test_everything_is_fixed_before_training(fake, make_study, folder):
    fake(truth=NEAR)
    study = make_study(*ONE, "decide.looks=[3, 4, 6]", "run.cohort=2")
    run_study(study, folder)
    first, old = read_json(folder / "plan.json"), bits(folder)
    assert [later["look"] for later in first["later"]] == [4, 6]
    assert seeds(folder) == [42, 43, 44]
    assert "The next planned look is at 4 seeds" in degradation(folder)["statement"]
    run_study(study, folder, decide=primary_verdicts)
    plan = read_json(folder / "plan.json")
    assert plan["runs"] == [*first["runs"], *(run for later in first["later"] for run in later["runs"])]
    assert plan["cohorts"] == [*first["cohorts"], *(c for later in first["later"] for c in later["cohorts"])]
    assert old.items() <= bits(folder).items()
    assert load_study(folder / "study.yaml").decide == study.decide
    assert "further runs: 2 at 4 seeds, 4 at 6 seeds" in plan_text(first)


def test_looks_that_were_fixed_stay(fake, make_study, folder):
    fake(truth=NEAR)
    run_study(make_study(*ONE), folder, decide=primary_verdicts)
    with pytest.raises(StoreError, match=r"decide\.looks: fixed as \[3, 5, 8\]"):
        run_study(make_study(*ONE, "decide.looks=[3, 20]"), folder, decide=primary_verdicts)
    wider = make_study(ONE[0], "questions=[{name: degradation, margin: 0.2}]")
    with pytest.raises(StoreError, match="another question or margin"):
        run_study(wider, folder, decide=primary_verdicts)
    journal = fake(truth=NEAR)
    assert run_study(make_study(*ONE), folder).exit_code == 0  # without --decide, and without naming any looks
    assert fake(truth=NEAR) == journal
    assert read_json(folder / "plan.json")["looks"] == [3, 5, 8]


def test_a_study_planned_without_looks_has_one_more(fake, make_study, folder):
    fake(truth=NEAR)
    study = make_study(*ONE)
    run_study(study, folder)
    old, cohorts = bits(folder), read_json(folder / "plan.json")["cohorts"]
    assert degradation(folder)["look"] is None
    outcome = run_study(study, folder, decide=primary_verdicts)
    plan = read_json(folder / "plan.json")
    assert (plan["looks"], seeds(folder)) == ([3, 5], [42, 43, 44, 45, 46])
    assert plan["cohorts"][: len(cohorts)] == cohorts
    assert old.items() <= bits(folder).items()
    assert "the answer stands" in outcome.looked
    assert degradation(folder)["level"] == pytest.approx(0.95)
    assert run_study(study, folder, decide=primary_verdicts).looked == outcome.looked
    assert seeds(folder) == [42, 43, 44, 45, 46]


def test_a_study_of_two_seeds_gets_the_usual_looks(fake, make_study, folder):
    fake(truth=FAR)
    study = make_study(*ONE, "seeds=[1, 2]")
    run_study(study, folder)
    assert "has its answer" in run_study(study, folder, decide=primary_verdicts).looked
    assert seeds(folder) == [1, 2, 3]


def test_a_changed_study_keeps_the_looks_that_were_taken(fake, make_study, folder):
    fake(truth=FAR)
    run_study(make_study(*ONE), folder, decide=primary_verdicts)
    old = bits(folder)
    run_study(make_study("vary.rank=[2, 4]", ONE[1]), folder)
    assert read_json(folder / "plan.json")["looks"] == [3, 5, 8]
    assert old.items() <= bits(folder).items()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ((ONE[0], "questions=[{name: degradation, margin: 0.5}]"), "another question or margin"),
        ((*ONE, "seeds=[7, 8, 9]"), r"seeds: fixed for this folder's looks as \[42, 43, 44, 45\]"),
        ((*ONE, "seeds=[42, 43, 44, 45, 46]"), "others need a new folder"),
        ((*ONE, "seeds=[7, 8, 9]", "decide.looks=[3, 4]", "vary.rank=[2, 4]"), "seeds: fixed"),
    ],
)
@pytest.mark.parametrize("judge", [None, primary_verdicts])
def test_what_was_seen_is_not_unseen(fake, make_study, folder, changes, why, judge):
    """With --decide and without: no other claim, no other seeds, and nothing is written on the way to the refusal."""
    fake(truth=NEAR)
    run_study(make_study(*ONE, "decide.looks=[3, 4]"), folder, decide=primary_verdicts)
    before = {path: path.read_bytes() for path in (folder / "plan.json", folder / "study.yaml")}
    with pytest.raises(StoreError, match=why):
        run_study(make_study(*changes), folder, decide=judge)
    assert {path: path.read_bytes() for path in before} == before
    assert degradation(folder)["n"] == 4


def test_seeds_beyond_the_looks_that_a_study_names_are_no_change(fake, make_study, folder):
    fake(truth=NEAR)
    study = make_study(*ONE, "decide.looks=[3, 4]", "seeds=[42, 43, 44, 45, 46]")
    run_study(study, folder, decide=primary_verdicts)
    before = read_json(folder / "plan.json")
    assert run_study(study, folder).exit_code == 0
    assert run_study(load_study(folder / "study.yaml"), folder, decide=primary_verdicts).exit_code == 0
    assert read_json(folder / "plan.json") == before
    assert seeds(folder) == [42, 43, 44, 45]


def test_a_changed_study_goes_on_from_the_look_that_was_reached(fake, make_study, folder):
    fake(truth=NEAR)
    run_study(make_study(*ONE, "decide.looks=[3, 4]"), folder, decide=primary_verdicts)
    old = bits(folder)
    run_study(make_study("vary.rank=[2, 4]", ONE[1]), folder)
    plan = read_json(folder / "plan.json")
    assert (plan["looks"], plan["later"], seeds(folder)) == ([3, 4], [], [42, 43, 44, 45])
    assert old.items() <= bits(folder).items()
    found = [e for e in decide(read_study(folder).evidence()) if e["question"] == "degradation"]
    assert {e["n"] for e in found} == {4}
    assert {e["look"]["last"] for e in found} == {True}


def test_all_comparisons_of_the_primary_question_are_waited_for(fake, make_study, folder):
    fake(truth={"cost": {"nf4": 0.5, "int8": 0.0488}, "seed_sd": 0.0, "swings": {"int8": 0.05}})
    study = make_study(*ONE, "vary.precision=[bf16, nf4, int8]", "decide.looks=[3, 4]")
    run_study(study, folder, decide=primary_verdicts)
    found = {e["scope"]["precision"]: e for e in primary_verdicts(folder)}
    assert (found["nf4"]["verdict"], found["nf4"]["look"]["n"], found["nf4"]["n"]) == ("rejected", 3, 3)
    assert (found["int8"]["verdict"], found["int8"]["look"]["n"]) == ("undecided", 4)


def test_a_look_waits_for_runs_that_did_not_finish(fake, make_study, folder):
    fake(truth=NEAR, crash=99)
    outcome = run_study(make_study(*ONE, "run.retries=0"), folder, decide=primary_verdicts)
    assert "waits for 6 runs" in outcome.looked
    assert seeds(folder) == [42, 43, 44]


def test_looks_need_a_question_that_seeds_decide(fake, make_study, folder):
    with pytest.raises(SpecError, match="primary question that seeds decide"):
        run_study(make_study("questions=[memory]"), folder, decide=primary_verdicts)
    with pytest.raises(SpecError, match="must rise and start at 3"):
        make_study("decide.looks=[2, 5]")


def test_killed_between_looks_and_resumed_is_never_killed(fake, make_study, folder, tmp_path):
    fake(truth=NEAR)
    study = make_study(*ONE, "run.workers=1")
    run_study(study, tmp_path / "quiet", decide=primary_verdicts)
    fake(truth=NEAR, step_s=0.1)
    shutil.copy(tmp_path / "quiet" / "study.yaml", tmp_path / "study.yaml")
    command = [sys.executable, "-m", "loracle", "run", str(tmp_path / "study.yaml"), "--out", str(folder), "--decide"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < until:
        if (folder / "plan.json").exists() and len(seeds(folder)) == 5:
            os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.02)
    assert process.wait() == -signal.SIGKILL
    fake(truth=NEAR)
    run_study(load_study(tmp_path / "study.yaml"), folder, decide=primary_verdicts)
    assert bits(folder) == bits(tmp_path / "quiet")
    assert decide(read_study(folder).evidence()) == decide(read_study(tmp_path / "quiet").evidence())
