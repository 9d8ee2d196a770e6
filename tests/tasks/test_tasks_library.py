from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from loracle.base.errors import SpecError
from loracle.spec.study import Task
from loracle.tasks import known_tasks, load_task
from loracle.tasks.library import LIBRARY


def test_every_task_loads_and_names_its_source_and_licence() -> None:
    names = [name for name, _, _ in known_tasks()]
    assert names == ["alpaca", "banking77", "banking77-10", "squad", "sst2"]
    for name, description, licence in known_tasks():
        task = load_task(Task(name=name))
        assert task.data
        assert task.source
        assert (task.description, task.licence) == (description, licence)


def test_packaged_files_are_absolute_paths() -> None:
    task = load_task(Task(name="banking77-10"))
    assert task.data == str(LIBRARY / "banking77-10.train.csv")
    assert Path(str(task.eval)).is_file()
    assert (LIBRARY / "banking77-10.LICENSE.md").is_file()


def test_banking77_10_has_ten_intents_and_forty_evaluation_rows_of_each() -> None:
    task = load_task(Task(name="banking77-10"))
    counts = []
    for path in (task.data, task.eval):
        with open(str(path), newline="", encoding="utf-8") as handle:
            counts.append(Counter(row["category"] for row in csv.DictReader(handle)))
    assert set(counts[0]) == set(counts[1]) == set(task.labels or ())
    assert sum(counts[0].values()) == 1260
    assert set(counts[1].values()) == {40}


def test_explicit_settings_win_even_where_they_equal_a_default() -> None:
    task = load_task(Task(name="banking77-10", max_length=512, samples=100))
    assert (task.max_length, task.samples, task.max_new_tokens) == (512, 100, 12)


def test_merging_again_changes_nothing_and_survives_a_dump() -> None:
    once = load_task(Task(name="banking77-10", max_length=512))
    assert load_task(once) == once
    assert load_task(Task.model_validate(once.model_dump())) == once


def test_a_dumped_task_that_was_never_merged_still_gets_its_entry() -> None:
    dumped = Task.model_validate(Task(name="sst2", samples=9).model_dump())
    assert load_task(dumped) == load_task(Task(name="sst2", samples=9))


def test_own_data_under_a_library_name_keeps_the_format_only() -> None:
    task = load_task(Task(name="sst2", data="mine.tsv"))
    assert (task.data, task.eval, task.eval_split, task.columns, task.licence) == ("mine.tsv", None, None, {}, None)
    assert task.format == "text_label"
    assert task.labels == ("negative", "positive")


def test_unknown_name_is_suggested_with_its_path() -> None:
    with pytest.raises(SpecError, match=r"^task\.name: 'alpacca' .*did you mean 'alpaca'\?"):
        load_task(Task(name="alpacca"))
    with pytest.raises(SpecError, match=r"goes under task\.data"):
        load_task(Task(name="tatsu-lab/alpaca"))


def test_own_data_is_left_alone() -> None:
    task = Task(data="mine.jsonl")
    assert load_task(task) is task


def test_plain_text_names_a_public_domain_source_in_every_row() -> None:
    rows = [json.loads(line) for line in (LIBRARY / "plain-text.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all("public domain" in row["source"] for row in rows)
    assert 1500 <= sum(len(row["text"].split()) for row in rows) <= 2500


def test_library_loads_no_torch() -> None:
    code = (
        "import sys; import loracle.tasks as t; t.known_tasks(); t.load_task(t.library.Task(name='alpaca'));"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
