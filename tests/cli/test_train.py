"""``loracle train``: a study of one run, its figures, its adapter, and errors that name the option."""

from __future__ import annotations

import json

import pytest

from loracle.cli import main
from loracle.cli.train import PATHS, one_run
from loracle.store.files import read_json
from tests.cli.inside import Inside

TINY = ("--set", "task.samples=60", "--set", "task.eval_samples=8", "--set", "task.generate_samples=4")
FAST = (
    "--steps",
    "4",
    "--batch-size",
    "4",
    "--learning-rate",
    "8e-3",
    "--set",
    "run.cohort=1",
    "--set",
    "run.threads=1",
)
DEMO = ("--model", "gpt2-demo", "--task", "banking77-10")


@pytest.fixture
def call(capsys):
    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["train", *map(str, arguments)])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def test_one_run_and_again(tmp_path, monkeypatch, call):
    """Trained once; the same command again only reads; another setting is another run beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("loracle.study.execute.LocalLauncher", Inside)
    command = (*DEMO, "--precision", "nf4", "--rank", "2", "--targets", "q,v", *TINY, *FAST)
    code, out, err = call(*command)
    assert code == 0, err
    folder = tmp_path / "runs" / "gpt2-demo-banking77-10-nf4"
    [run] = (folder / "runs").iterdir()
    record = read_json(run / "record.json")
    lines = out.splitlines()
    assert lines[0].startswith(f"{record['id']}: 4 steps in ")
    loss = next(line.split() for line in lines if line.startswith("eval loss"))
    assert loss[2:] == [f"{record['metrics']['base_eval_loss']:.4f}", f"{record['eval_loss']:.4f}"]
    assert f"adapter: runs/{folder.name}/runs/{run.name}/adapter" in lines
    assert f'loracle.load("runs/{folder.name}/runs/{run.name}")' in out
    assert f"report: runs/{folder.name}/report/index.html" in lines
    assert (folder / "report" / "index.html").is_file()
    assert read_json(folder / "plan.json")["runs"][0]["seed"] == 42

    written = (run / "record.json").stat().st_mtime_ns
    code, out, _ = call(*command, "--json")
    found = json.loads(out)
    assert code == 0
    assert (run / "record.json").stat().st_mtime_ns == written
    assert (found["run"], found["eval_loss"], found["exit_code"]) == (run.name, record["eval_loss"], 0)
    assert found["metrics"] == record["metrics"]
    assert found["adapter"] == f"runs/{folder.name}/runs/{run.name}/adapter"

    code, out, _ = call(*command, "--rank", "1", "--json")
    other = json.loads(out)
    assert code == 0
    assert {path.name for path in (folder / "runs").iterdir()} == {run.name, other["run"]}
    assert "-r1-" in other["run"]
    assert (run / "record.json").stat().st_mtime_ns == written


def test_options_are_the_studys_keys():
    study = one_run(
        {
            "base.model": "gpt2-demo",
            "task.name": "banking77-10",
            "precision": "nf4",
            "adapter.rank": 4,
            "adapter.alpha": "2r",
            "adapter.targets": ["q", "v"],
            "train.epochs": 2.0,
            "train.gradient_checkpointing": True,
            "run.track": ["tensorboard"],
            "adapter.dropout": None,
        },
        7,
        ["task.samples=60", "train.schedule=cosine"],
    )
    assert (study.seeds, study.questions, study.vary, study.diagnose.null_runs) == ((7,), (), {}, 0)
    assert (study.precision, study.adapter.alpha_value, study.adapter.targets) == ("nf4", 8.0, ("q", "v"))
    assert (study.train.epochs, study.train.schedule, study.train.gradient_checkpointing) == (2.0, "cosine", True)
    assert (study.task.samples, study.run.track, study.adapter.dropout) == (60, ("tensorboard",), 0.0)
    assert study.name == "gpt2-demo-banking77-10-nf4"


def test_defaults_and_names():
    from loracle.spec.load import parse_study

    plain = one_run({"base.model": "gpt2-demo", "task.name": "banking77-10"}, 42, [])
    default = parse_study({"name": "x", "base": "gpt2-demo", "task": "banking77-10"})
    assert plain.train == default.train
    assert plain.adapter == default.adapter
    named = one_run({"base.model": "org/Some_Model", "task.data": "dir/Rows (1).jsonl"}, 1, ["questions=[memory]"])
    assert named.name == "some_model-rows-1-bf16"
    assert [question.name for question in named.questions] == ["memory"]
    assert one_run({"base.model": "m", "task.data": "r.csv"}, 1, ["name=mine"]).name == "mine"


def test_every_path_is_a_key_of_the_study():
    from loracle.spec.load import SECTION_MODELS
    from loracle.spec.study import Study

    for path in PATHS.values():
        section, _, key = path.partition(".")
        assert section in Study.model_fields
        assert not key or key in SECTION_MODELS[section].model_fields, path


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--task", "banking77-10"], 2, "Missing option '--model'"),
        (["--model", "gpt2-demo"], 2, "name the data: --data FILE or --task NAME"),
        (["--model", "gpt2-demo", "--task", "banking7"], 2, "--task: 'banking7' is not a task of the library"),
        (["--model", "gpt2-demo", "--data", "none.csv"], 1, "none.csv: no such file"),
        ([*DEMO, "--rank", "0"], 2, "--rank: input should be greater than or equal to 1"),
        ([*DEMO, "--alpha", "big"], 2, "--alpha: 'big' is neither a number nor a multiple of the rank"),
        ([*DEMO, "--precision", "nf5"], 2, "--precision: 'nf5' is not a precision, did you mean 'nf4'?"),
        ([*DEMO, "--method", "lra"], 2, "--method: 'lra' is not a method, did you mean 'lora'?"),
        ([*DEMO, "--steps", "3", "--epochs", "1"], 2, "--steps: not with --epochs"),
        ([*DEMO, "--optimizer", "sgd"], 2, "--optimizer: 'sgd' is not allowed"),
        ([*DEMO, "--track", "wand"], 2, "--track: 'wand' is not allowed, did you mean 'wandb'?"),
        ([*DEMO, "--seed", "-1"], 2, "--seed: input should be greater than or equal to 0"),
        ([*DEMO, "--set", "adapter.rnk=3"], 2, "adapter.rnk: unknown key, did you mean 'rank'?"),
        ([*DEMO, "--set", "vary.rank=[2, 4]"], 2, "--set: this is one run"),
        ([*DEMO, "--set", "seeds=[1, 2]"], 2, "--set: this is one run"),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, call, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    found, out, err = call(*arguments)
    assert (found, out) == (code, "")
    assert words in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_the_worker_refuses_names_the_option(tmp_path, monkeypatch, call):
    """The inspect job's complaint about ``adapter.targets`` is one about --targets."""
    import sys
    from pathlib import Path

    fake = Path(__file__).parents[1] / "study" / "fake_worker.py"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORACLE_WORKER_COMMAND", f"{sys.executable} {fake}")
    monkeypatch.setenv(
        "FAKE_WORKER", json.dumps({"state": str(tmp_path), "usage": "adapter.targets: 'qq' matches nothing"})
    )
    code, out, err = call(*DEMO, "--targets", "qq")
    assert (code, out) == (2, "")
    assert err == "error: --targets: 'qq' matches nothing\n"
