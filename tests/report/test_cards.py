"""Both cards: what the Hub's own reader makes of them, odd records, and that no text of a study acts in them."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from part_two import write_classification, write_methods
from synthetic_study import HOSTILE, write_study

from loracle.report import cards, write_report
from loracle.report.cards import licences
from loracle.report.evidence import read_study
from loracle.report.tables import all_tables
from loracle.store.files import write_text
from loracle.store.layout import StudyFolder
from loracle.verdict import decide

CARDS = ("MODEL_CARD.md", "DATA_CARD.md")


def write_cards(root: Path) -> None:
    """The two cards alone: figures take their time."""
    data = read_study(root)
    entries = decide(data.evidence())
    for name, text in cards.render(data, entries, all_tables(data, entries), StudyFolder(root)).items():
        write_text(root / "report" / name, text)


def card(root: Path, name: str = "MODEL_CARD.md") -> str:
    return (root / "report" / name).read_text(encoding="utf-8")


def metadata(root: Path, name: str = "MODEL_CARD.md") -> dict[str, Any]:
    """What the Hub's client reads; a card that it cannot read fails here."""
    from huggingface_hub import metadata_load

    found = metadata_load(root / "report" / name)
    assert isinstance(found, dict)
    return found


def results(root: Path) -> tuple[str, list[Any]]:
    from huggingface_hub.repocard_data import model_index_to_eval_results

    return model_index_to_eval_results(metadata(root)["model-index"])


def edit(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change every config of a study, in its plan and in its records."""
    whole = json.loads((root / "plan.json").read_text())
    for cell in whole["cells"]:
        change(cell["config"])
    (root / "plan.json").write_text(json.dumps(whole))
    for path in (root / "runs").glob("*/record.json"):
        record = json.loads(path.read_text())
        change(record["config"])
        path.write_text(json.dumps(record))


def set_load(root: Path, **load: Any) -> None:
    for path in (root / "runs").glob("*/record.json"):
        record = json.loads(path.read_text())
        record["reload"] = {"passed": True, "difference": 0.0, "tolerance": 1e-4, "load": load}
        path.write_text(json.dumps(record))


def snippet(root: Path) -> str:
    found = re.findall(r"```python\n(.*?)```", card(root), flags=re.DOTALL)
    assert len(found) == 1
    compile(found[0], "MODEL_CARD.md", "exec")
    return found[0]


NF4 = {
    "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "float32",
}  # fmt: skip


# -- the Hub's reader --------------------------------------------------------------------------------------------------


def test_metadata_comes_back_from_the_hubs_own_classes(full: Path, unfinished: Path, partial: Path) -> None:
    from huggingface_hub import DatasetCard, DatasetCardData, ModelCard, ModelCardData

    for root in (full, unfinished, partial):
        kinds = zip(CARDS, (ModelCard, DatasetCard), (ModelCardData, DatasetCardData), strict=True)
        for name, reader, data in kinds:
            text = card(root, name)
            header = text.split("---\n")[1]
            assert reader(text).data.to_yaml() + "\n" == header
            assert data(**yaml.safe_load(header)).to_yaml() + "\n" == header


def test_results_are_the_means_of_the_recommended_cell_with_interval_and_n(full: Path) -> None:
    name, found = results(full)
    assert name == "demo"
    losses = [
        json.loads((full / "runs" / f"nf4-r16-qkv-s{seed}" / "record.json").read_text())["eval_loss"]
        for seed in (42, 43, 44)
    ]
    loss = found[0]
    assert (loss.task_type, loss.dataset_name, loss.metric_type) == ("text-generation", "banking10", "loss")
    assert loss.metric_value == pytest.approx(sum(losses) / 3, rel=1e-12)
    about = loss.metric_args
    assert (about["cell"], about["seeds"], about["items"]) == ("nf4-r16-qkv", 3, 80)
    assert about["adapter_of_run"] == "nf4-r16-qkv-s42"
    assert about["this_adapter"] == losses[0]
    low, high = about["interval_95_over_seeds"]
    assert low < loss.metric_value < high
    assert {r.metric_type for r in found} >= {"loss", "accuracy", "exact_match"}
    assert not any(r.metric_type == "perplexity" for r in found), "the answers are labels"


def test_tags_and_library(full: Path) -> None:
    found = metadata(full)
    assert found["library_name"] == "peft"
    assert {"lora", "qlora", "nf4"} <= set(found["tags"])
    assert found["license"] == "unknown"
    assert "base_model" not in found, "a base that is not on the Hub has no name there"


def test_two_seeds_have_no_interval(partial: Path) -> None:
    for result in results(partial)[1]:
        assert "interval_95_over_seeds" not in result.metric_args
        assert result.metric_args["interval"] == "none below 3 seeds"
    assert "nothing about it is decided" in card(partial)


def test_verdicts_and_what_is_undecided_are_told(full: Path) -> None:
    text = card(full)
    for entry in json.loads((full / "report" / "verdicts.json").read_text()):
        if entry["verdict"] == "undecided" or entry["arm"] == "nf4-r16-qkv":
            assert entry["statement"][:40].replace("*", "\\*") in text, entry["statement"]


# -- licences ----------------------------------------------------------------------------------------------------------


def write_with_licences(root: Path, data: str | None, base: str | None) -> Path:
    write_study(root, ranks=(8,), diagnose=False, probes=False)
    edit(root, lambda config: config["task"].update(licence=data))
    (root / "jobs" / "inspect").mkdir(parents=True)
    inspected = {"schema": 1, "bases": {"x": {"name": "gpt2-demo", "licence": base}}}
    (root / "jobs" / "inspect" / "record.json").write_text(json.dumps(inspected))
    write_cards(root)
    return root


def test_rows_read_as_a_task_of_the_library_may_be_under_its_terms() -> None:
    """Alpaca's file beside the study: nobody says that it is that file, and nobody should take it for free."""
    own = licences.licence_of_data({"name": "alpaca", "data": "alpaca_data.json", "licence": None})
    [warning] = licences.warnings([("the data alpaca", own)])
    assert (own.hub, own.known) == ("unknown", False)
    assert warning.startswith("NON-COMMERCIAL, it may be: no licence is stated for the rows of the data alpaca")
    assert "CC BY-NC 4.0" in warning
    for task in ({"name": "alpaca", "licence": "MIT"}, {"name": "banking77"}, {"data": "mine.jsonl"}):
        assert not any("NON-COMM" in text for text in licences.warnings([("it", licences.licence_of_data(task))]))


@pytest.mark.parametrize(
    ("data", "base", "expected"),
    [
        ("CC BY-NC 4.0", "mit", "cc-by-nc-4.0"),
        ("CC BY 4.0", "cc-by-4.0", "cc-by-4.0"),
        ("CC BY 4.0", "mit", "other"),
        ("CC BY 4.0", None, "unknown"),
        ("none stated", "mit", "unknown"),
        (None, None, "unknown"),
        ("my own terms: ask", "mit", "other"),
    ],
)
def test_licence_of_what_is_made_of_base_and_data(tmp_path: Path, data: str, base: str, expected: str) -> None:
    root = write_with_licences(tmp_path, data, base)
    assert metadata(root)["license"] == expected
    assert ("NON-COMMERCIAL" in card(root)) == ("NC" in (data or ""))
    assert ("NON-COMMERCIAL" in card(root, "DATA_CARD.md")) == ("NC" in (data or ""))
    assert ("is unknown: ask its owners" in card(root)) == (expected == "unknown")
    assert (metadata(root).get("license_name") is not None) == (expected == "other")


# -- odd records -------------------------------------------------------------------------------------------------------


def test_no_run_finished(tmp_path: Path) -> None:
    states = {f"{p}-r8-qkv-s{s}": ("failed", "no luck") for p in ("bf16", "nf4") for s in (42, 43, 44)}
    root = write_study(tmp_path, ranks=(8,), diagnose=False, probes=False, states=states)
    write_cards(root)
    assert "model-index" not in metadata(root)
    assert "No run of this study finished" in card(root)
    assert "There is no adapter to load." in card(root)


def test_no_metrics(partial: Path) -> None:
    assert {r.metric_type for r in results(partial)[1]} == {"loss"}


def test_hostile_and_foreign_text_cannot_break_either_card(tmp_path: Path) -> None:
    root = write_study(tmp_path, ranks=(8,), diagnose=False, probes=False)

    def change(config: dict[str, Any]) -> None:
        config["base"].update(name="---\nlicense: mit\n---", model="/secret/place/---")
        config["task"].update(
            name="foo: bar\n---\n# x", licence="日本語: ライセンス\n---", description=HOSTILE[2], source=HOSTILE[3],
            template="{text}\n```\n<script>", columns={"text": "foo: bar"}, known_biases=HOSTILE[0],
            language=["en", "not a code"],
        )  # fmt: skip

    edit(root, change)
    set_load(root, dtype="float32", compute_dtype="float32", quantization_config=None, plain=True, reason=None)
    write_cards(root)
    found = metadata(root)
    assert (found["license"], found["language"]) == ("unknown", "en"), "that of the base is not known"
    assert metadata(root, "DATA_CARD.md")["license"] == "other"
    assert results(root)[1][0].dataset_name == "foo: bar --- # x"
    assert metadata(root, "DATA_CARD.md")["pretty_name"] == "foo: bar --- # x"
    for name in CARDS:
        body = card(root, name)
        text = re.sub(r"```.*?```", "", body.split("\n---\n", 1)[1], flags=re.DOTALL)
        assert "<script" not in text
        assert "http://" not in text
        assert "javascript:" not in text
        assert "\u202e" not in body
        assert "/secret/place" not in body, "no path of the machine"
        assert not re.findall(r"(?<!\\)\]\(", text)
    assert "PATH/TO/---" in snippet(root)


def test_several_bases_and_tasks_have_a_block_each(tmp_path: Path) -> None:
    root = write_study(tmp_path, ranks=(4, 8), diagnose=False, probes=False)

    def change(config: dict[str, Any]) -> None:
        if config["adapter"]["rank"] == 8:
            config["task"].update(name=None, data="org/rows", format="alpaca", language=["de"])
            config["base"].update(model="org/other", name="other", revision="abc")

    edit(root, change)
    write_cards(root)
    _, found = results(root)
    assert {(r.dataset_type, r.metric_args["base"]) for r in found} == {
        ("banking10", "gpt2-demo"),
        ("org/rows", "org/other"),
    }
    assert metadata(root)["datasets"] == ["org/rows"]
    assert metadata(root)["base_model"] == "org/other"
    assert len(metadata(root)["model-index"][0]["results"]) == 2
    perplexities = [r for r in found if r.metric_type == "perplexity"]
    assert {r.dataset_type for r in perplexities} == {"org/rows"}
    assert "### banking10 on gpt2-demo" in card(root)
    assert "## org/rows" in card(root, "DATA_CARD.md")


def test_a_classification_and_other_methods(tmp_path: Path) -> None:
    root = write_classification(tmp_path / "classes")
    write_cards(root)
    assert metadata(root)["pipeline_tag"] == "text-classification"
    assert "text-classification" in metadata(root, "DATA_CARD.md")["task_categories"]
    assert {"accuracy", "f1"} <= {r.metric_type for r in results(root)[1]}
    root = write_methods(tmp_path / "methods")
    write_cards(root)
    assert results(root)[1][0].metric_args["cell"] in card(root)


def test_energy_is_a_figure_or_a_reason(tmp_path: Path) -> None:
    root = write_study(tmp_path, ranks=(16,), diagnose=False, probes=False)
    write_cards(root)
    assert "not measured: no counter was read" in card(root)
    for said, expected in (
        ({"energy_joules": 1234.5, "energy_source": "NVML, all of it"}, "1,234 J (NVML, all of it)"),
        ({"energy_joules": None, "energy_reason": "no <b>counter"}, "not measured: no &lt;b&gt;counter"),
    ):
        for path in (root / "runs").glob("*/record.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | said))
        write_cards(root)
        assert expected in card(root)


# -- how to load -------------------------------------------------------------------------------------------------------


def test_the_snippet_is_the_recorded_recipe(tmp_path: Path) -> None:
    root = write_study(tmp_path, ranks=(16,), diagnose=False, probes=False)
    edit(root, lambda config: config["base"].update(model="org/base", revision="c0ffee"))
    set_load(root, dtype="float32", compute_dtype="float32", quantization_config=NF4, plain=True, reason=None)
    write_cards(root)
    code = snippet(root)
    assert "bnb_4bit_quant_type='nf4'" in code
    assert "bnb_4bit_use_double_quant=True" in code
    assert "base = 'org/base'" in code
    assert "revision='c0ffee'" in code
    assert "autocast_adapter_dtype=False" in code
    assert "loracle" not in code


def test_what_does_not_load_plainly_says_so(tmp_path: Path) -> None:
    root = write_study(tmp_path, ranks=(16,), diagnose=False, probes=False)
    set_load(root, dtype="float32", compute_dtype="float32", quantization_config=None, plain=False, reason="int4 (HQQ)")
    write_cards(root)
    assert "loracle.load(" in snippet(root)
    assert "int4 (HQQ)" in card(root)


# -- groups ------------------------------------------------------------------------------------------------------------


def with_groups(root: Path, *, harm: float = 1.0, name: str = "<b>few</b> | x") -> Path:
    """A study whose every fourth evaluation row is of the group ``name``, for which nf4 multiplies the loss by ``harm``."""
    write_study(root, ranks=(16,), diagnose=False, probes=False)
    edit(root, lambda config: config["task"].update(group="dialect"))
    for path in (root / "runs").glob("*/predictions.parquet"):
        table = pq.read_table(path).to_pydict()
        few = [i % 4 == 0 for i in table["item"]]
        if path.parent.name.startswith("nf4"):
            table["loss"] = [x * harm if f else x for x, f in zip(table["loss"], few, strict=True)]
        table["group"] = [name if f else None if i % 10 == 1 else "many" for i, f in enumerate(few)]
        pq.write_table(pa.table(table), path)
    plan = json.loads((root / "plan.json").read_text())
    for audit in plan["data"].values():
        audit |= {"train_groups": {"many": 300, name: 100}, "eval_groups": {"many": 52, name: 20}}
        audit |= {"train_labels": {"lost_card": 250, "=x": 150}, "eval_labels": {"lost_card": 80}}
    (root / "plan.json").write_text(json.dumps(plan))
    return root


def test_a_group_that_pays_more_is_named_in_card_report_and_table(tmp_path: Path) -> None:
    root = with_groups(tmp_path, harm=1.4)
    write_report(root)
    text = card(root)
    fairness = text.split("## Fairness effect of quantization")[1].split("\n## ")[0]
    assert "shown to be hit harder than the other groups: “&lt;b&gt;few&lt;/b&gt; \\| x”" in fairness
    assert "hit less" in fairness
    assert "Unmeasured" not in fairness
    assert "named no group" in fairness
    assert "## Group by group" in (root / "report" / "report.md").read_text()
    page = (root / "report" / "index.html").read_text()
    assert 'id="groups"' in page
    assert "<b>few</b>" not in page
    with open(root / "report" / "tables" / "groups.csv", newline="") as handle:
        rows = {(r["metric"], r["group"]): r for r in csv.DictReader(handle)}
    few = rows["eval_loss", "<b>few</b> | x"]
    assert (few["gap_shown"], few["items"], few["n"]) == ("hit harder", "20", "3")
    assert float(few["gap"]) == pytest.approx(0.336, abs=0.03)
    assert float(few["gap_low"]) > 0
    assert ("label_accuracy", "many") in rows
    data = card(root, "DATA_CARD.md")
    assert "dialect" in data
    assert "| lost\\_card | 250 | 62.5% | 80 | 100.0% |" in data


def test_a_gap_that_is_not_shown_is_not_called_equal(tmp_path: Path) -> None:
    root = with_groups(tmp_path)
    write_cards(root)
    text = card(root)
    assert "no group is shown to be hit harder than the others; a gap of +" in text
    assert "not that there is none" in text


def test_without_groups_fairness_is_unmeasured(full: Path, partial: Path) -> None:
    for root in (full, partial):
        assert "Unmeasured: the study names no column" in card(root)
        assert (root / "report" / "tables" / "groups.csv").read_text().count("\n") == 1
