"""MODEL_CARD.md: which adapter, how it came about, what was measured, what was not, what it may be used for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from loracle.report import grids, groups, markdown_parts, wording
from loracle.report.cards import known, loading
from loracle.report.cards.licences import Licence, licence, licence_of_data, warnings
from loracle.report.cards.metadata import header, model_card_data, unique
from loracle.report.cards.results import Result, results
from loracle.report.cards.subject import Subject, base_id, of_task, subjects
from loracle.report.columns import Table
from loracle.report.evidence import Record, StudyData, number
from loracle.report.grids import Grid, Item
from loracle.report.inert import markdown as inert
from loracle.report.inert import plain
from loracle.verdict.entries import Entry


def render(data: StudyData, entries: Sequence[Entry], by_group: Table, base_licences: Mapping[str, str | None]) -> str:
    """The whole card. ``by_group`` is groups.csv, ``base_licences`` base's name → licence as the inspect job read it."""
    found = subjects(data, entries)
    licences = _licences(found, base_licences)
    head = header(model_card_data(data, found, [one for _, one in licences]))
    return head + "\n" + "\n".join(_lines(data, entries, by_group, found, licences)).rstrip() + "\n"


def _licences(found: Sequence[Subject], bases: Mapping[str, str | None]) -> list[tuple[str, Licence]]:
    """(what, licence) of each base and each data set, each once."""
    out = {f"the base {s.base}": licence(bases.get(str(s.section("base").get("name")))) for s in found}
    out |= {f"the data {s.task}": licence_of_data(s.section("task")) for s in found}
    return list(out.items())


def _lines(
    data: StudyData,
    entries: Sequence[Entry],
    by_group: Table,
    found: Sequence[Subject],
    licences: Sequence[tuple[str, Licence]],
) -> Iterator[str]:
    trained = [s for s in found if s.run is not None]
    yield from (f"# {inert(data.name)}", "")
    yield from (inert(_summary(trained)), "")
    for text in warnings(licences):
        yield from (f"> **{inert(text)}**", "")
    yield from ("## What it is", "")
    for subject in found:
        yield from _what(data, subject, len(found) > 1)
    yield from ("## Results", "")
    yield from _results(data, entries, found)
    yield from ("## Fairness effect of quantization", "")
    yield from _fairness(data, by_group, found)
    yield from ("## Intended use", "", *_bullets(known.intended(trained)))
    yield from ("## Out of scope", "", *_bullets(known.OUT_OF_SCOPE))
    yield from ("## Limits", "", *_bullets(_limits(data, entries, trained)))
    yield from ("## Training data", "", *_bullets(_training_data(found)))
    yield from ("## Licences", "", *_bullets(f"{name}: {one.text}" for name, one in licences))
    yield from (inert(known.LICENCES), "")
    yield from ("## Hardware and software", "")
    yield from markdown_parts.table(_provenance(data, trained))
    yield from ("## How to load", "")
    for subject in trained:
        said, code = loading.how_to_load(subject)
        if len(trained) > 1:
            yield from (f"### {inert(subject.name)}", "")
        yield from (*map(inert, said), "", "```python", code, "```", "")
    if not trained:
        yield from ("There is no adapter to load.", "")
    yield from ("## Citation", "", *known.citation(trained))


def _bullets(texts: Sequence[str] | Iterator[str]) -> Iterator[str]:
    yield from (f"- {inert(text)}" for text in texts)
    yield ""


def _summary(trained: Sequence[Subject]) -> str:
    if not trained:
        return "No run of this study finished: there is no adapter, and nothing was measured."
    said = [f"{known.method_words(s)} of {s.base} in {_precision(s)}, trained on {s.task}" for s in trained]
    several = len(trained) > 1
    first = f"{len(trained)} adapters: {'; '.join(said)}." if several else f"{said[0]}."
    return f"{first} This card was written by loracle from the records of the study that trained it."


def _precision(subject: Subject) -> str:
    return subject.cell.precision if subject.cell is not None else "unknown precision"


def _what(data: StudyData, subject: Subject, titled: bool) -> Iterator[str]:
    """Base, precision, adapter and training of one subject."""
    if titled:
        yield from (f"### {inert(subject.name)}", "")
    yield from (inert(subject.advice), "")
    if subject.run is None or subject.cell is None:
        return
    base, adapter, train = (subject.section(name) for name in ("base", "adapter", "train"))
    record, config = subject.run.record, subject.config
    hub = base_id(base)
    rows: list[tuple[str, object]] = [
        ("base", subject.base + ("" if hub else " (not on the Hub)")),
        ("base revision", base.get("revision")),
        ("base fingerprint (SHA-256)", base.get("fingerprint")),
        ("precision", subject.cell.precision),
        ("double quantization", config.get("double_quant")),
        ("block size", config.get("block_size")),
        ("effective bits of the quantized weights", number(record.get("effective_bits"))),
        ("compute dtype", config.get("compute_dtype")),
        ("method", subject.method),
        ("rank", subject.cell.rank),
        ("alpha", adapter.get("alpha") if subject.cell.rank is not None else None),
        ("dropout", adapter.get("dropout")),
        ("target modules", subject.cell.targets or None),
        ("trained parameters", record.get("trainable_params")),
        ("parameters in all", record.get("total_params")),
        ("optimizer steps", record.get("steps")),
        ("rows in a step", _rows_in_a_step(train)),
        ("learning rate", train.get("learning_rate")),
        ("schedule", train.get("schedule")),
        ("optimizer", train.get("optimizer")),
        ("gradient checkpointing", train.get("gradient_checkpointing")),
        ("seeds of the cell", ", ".join(str(r.seed) for r in data.of_cell(subject.cell.id, done=True))),
        ("this adapter: run", subject.run.id),
        ("this adapter: seed", subject.run.seed),
        ("this adapter: SHA-256", record.get("adapter_sha256")),
    ]
    yield from markdown_parts.table(
        grid("", ["", ""], [[name, shown(value)] for name, value in rows if value is not None])
    )
    yield from (known.FIRST_SEED, "")


def _rows_in_a_step(train: Mapping[str, object]) -> int | None:
    batch, times = train.get("batch_size"), train.get("gradient_accumulation", 1)
    return batch * times if isinstance(batch, int) and isinstance(times, int) else None


def shown(value: object) -> str:
    """A setting as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return wording.count(value) if isinstance(value, int) and value >= 10_000 else plain(value)


def grid(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> Grid:
    """A table of text whose first column names the row."""
    return Grid(title, heads, [[Item(text) for text in row] for row in rows], note)


def _results(data: StudyData, entries: Sequence[Entry], found: Sequence[Subject]) -> Iterator[str]:
    """A block for each base and task, then what stays undecided."""
    told: set[int] = set()
    for subject in found:
        if subject.cell is None or subject.run is None:
            yield from (f"{inert(subject.name)}: no run finished, so nothing was measured.", "")
            continue
        rows = [_row(result) for result in results(data, subject)]
        heads = [
            "",
            "untrained base",
            "mean over seeds (95% interval)",
            "lowest to highest",
            "this adapter",
            "seeds",
            "items",
        ]
        title = f"{subject.name}: {subject.cell.label}"
        yield from markdown_parts.table(grid(title, heads, rows, _note(subject)))
        mine = [(i, e) for i, e in enumerate(entries) if _about(subject, e)]
        told |= {i for i, _ in mine}
        yield from (f"- **{inert(e['verdict'])}**: {inert(e['statement'])}" for _, e in mine)
        yield ""
        if not mine:
            yield from ("No question of the study was put to this cell.", "")
    rest = [e for i, e in enumerate(entries) if i not in told and e["verdict"] in ("undecided", "confounded")]
    if rest:
        yield from ("### Not decided elsewhere in the study", "")
        yield from (f"- **{inert(e['verdict'])}**: {inert(e['statement'])}" for e in rest)
        yield ""


def _about(subject: Subject, entry: Entry) -> bool:
    """Whether a verdict is about the subject's cell, or (the rank's) about a group that it is in."""
    assert subject.cell is not None
    if entry["question"] in ("rank_threshold", "rank_enough"):
        return entry["scope"].get("precision") == subject.cell.precision and (
            str(entry["arm"]) in {cell.id for cell in subject.cells} or entry["arm"] is None
        )
    return subject.cell.id in (entry["arm"], entry["reference"])


def _row(result: Result) -> list[str]:
    show = wording.by_metric
    between = f"{show(result.name, min(result.values))} to {show(result.name, max(result.values))}"
    return [
        result.label,
        show(result.name, result.before),
        wording.with_interval(result.name, result.values),
        between if len(result.values) > 1 else wording.NONE,
        show(result.name, result.own),
        str(len(result.values)),
        wording.count(result.items),
    ]


def _note(subject: Subject) -> str:
    said = "Intervals are Student's over seeds; below three seeds there is none."
    if subject.classifies:
        return f"{said} The untrained base has no head: its loss is that of guessing evenly."
    return said


def _fairness(data: StudyData, by_group: Table, found: Sequence[Subject]) -> Iterator[str]:
    """By group, of the cards' own cells: as the quantized arm, or as the reference of the arms beside them."""
    own = {s.cell.id for s in found if s.cell is not None}
    cells = [c.id for c in data.cells if c.id in own or c.reference in own]
    tables = groups.grids(by_group, cells)
    if not tables:
        named = any(s.section("task").get("group") for s in found)
        yield from (known.FAIRNESS_NO_PAIR if named else known.FAIRNESS_UNMEASURED, "")
        return
    yield from (known.FAIRNESS_MEASURED, "")
    yield from _bullets(groups.sentences(by_group, cells))
    for one in tables:
        yield from markdown_parts.table(one)


def _limits(data: StudyData, entries: Sequence[Entry], trained: Sequence[Subject]) -> Iterator[str]:
    """What the records themselves say against relying on it, then what holds for all."""
    if trained and len(data.seeds) < wording.MIN_SEEDS:
        seeds = wording.plural(len(data.seeds), "seed")
        yield f"The study has {seeds}: nothing about it is decided, and no interval over seeds exists."
    open_ = sum(e["verdict"] == "undecided" for e in entries)
    if open_:
        yield f"{open_} of {wording.plural(len(entries), 'claim')} of the study are undecided: no evidence for either side."
    for subject in trained:
        by_name = {r.name: r for r in results(data, subject)}
        after = by_name.get("plain_text_loss")
        if after is not None and after.before is not None and after.own is not None:
            change = "rose" if after.own > after.before else "fell"
            yield (
                f"{subject.name}: loss on plain prose {change} from {after.before:.3f} to {after.own:.3f} nats per token "
                "with tuning, a sign of what was forgotten or kept."
            )
    if trained and not unique(code for s in trained for code in of_task(s.section("task"), "language") or ()):
        yield "The language of the data is not recorded."
    yield from known.LIMITS


def _training_data(found: Sequence[Subject]) -> Iterator[str]:
    for name, task in {s.task: s.section("task") for s in found}.items():
        about = [text for key in ("description", "source") if (text := of_task(task, key))]
        yield f"{name}: {'; '.join(map(str, about)) or 'where the rows come from is not recorded'}"
    yield "Formatting, statistics and the audit are in DATA_CARD.md."


def _provenance(data: StudyData, trained: Sequence[Subject]) -> Grid:
    """Of the cards' own cells: devices, versions, time."""
    runs = [run for s in trained if s.cell is not None for run in data.of_cell(s.cell.id, done=True)]
    origins = [run.record.get("provenance") or {} for run in runs]
    rows = [(name, [o.get(name) for o in origins]) for name in ("device", "system", "machine", "threads", "engine")]
    packages = list(dict.fromkeys(name for o in origins for name in o.get("versions") or {}))
    rows += [(name, [(o.get("versions") or {}).get(name) for o in origins]) for name in packages]
    texts = [[name, plain(", ".join(grids.distinct(values)))] for name, values in rows if grids.distinct(values)]
    times = [s.run.metric("wall_s") for s in trained if s.run is not None]
    texts.append(["training time of this adapter", ", ".join(wording.seconds(t) for t in times) or "not measured"])
    texts += [["energy of this adapter's training", _energy(s.run.record)] for s in trained if s.run is not None]
    return grid("", ["", ""], texts)


def _energy(record: Record) -> str:
    joules = number(record.get("energy_joules"))
    if joules is None:
        return f"not measured: {plain(record.get('energy_reason') or known.NO_ENERGY)}"
    return f"{joules:,.0f} J ({plain(record.get('energy_source'))})"
