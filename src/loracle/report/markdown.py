"""report.md: the page's facts as Markdown. All text is made inert first (``inert.markdown``)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from loracle.report.answers import Example
from loracle.report.budget import Place
from loracle.report.facts import Facts, Group, Sentence
from loracle.report.grids import Grid
from loracle.report.inert import markdown as inert
from loracle.report.wording import plural


def render(facts: Facts) -> str:
    """The whole report."""
    return "\n".join(_lines(facts)).rstrip() + "\n"


def _lines(facts: Facts) -> Iterator[str]:
    yield from (f"# {inert(facts.name)}", "", inert(facts.subtitle), "", "## Recommendation", "")
    yield from (f"**{inert(facts.recommendation)}**", "")
    yield from _bullets(facts.broken)
    yield from _bullets(facts.why)
    for place in facts.places:
        yield from _place(place)
    yield from _bullets(facts.notes, "> ")
    yield from ("## What is decided, and what is not", "")
    yield from _sentences(facts.headlines)
    if facts.glance is not None:
        yield from _grid(facts.glance)
    yield ", ".join(f"{n} {verdict}" for verdict, n in facts.tally) + "."
    yield from ("", "## What this rests on", "")
    yield from _bullets([f"{value} {text}" for value, text in facts.basis])
    yield from ("## Did the runs learn?", "", inert(facts.learned), "")
    yield from _figures(facts, "metric_by_rank.png", "loss_curves.png")
    for grid in facts.learning:
        yield from _grid(grid)
    if facts.classes:
        yield from ("## Label by label", "")
        yield from _figures(facts, "confusion_matrix.png")
        for grid in facts.classes:
            yield from _grid(grid)
    if facts.methods:
        yield from ("## Methods side by side", "")
        for grid in facts.methods:
            yield from _grid(grid)
    yield from ("## What quantization costs", "")
    yield from _figures(facts, "rank_threshold_plot.png")
    yield from _groups(facts.topics["cost"])
    if facts.sensitivity:
        yield from _figures(facts, "layer_sensitivity_heatmap.png")
        for grid in facts.sensitivity:
            yield from _grid(grid)
    if facts.groups:
        yield from ("## Group by group", "", *_bullets(facts.groups_said))
        for grid in facts.groups:
            yield from _grid(grid)
    yield from ("## Do both learn the same?", "")
    yield from _figures(facts, "weight_similarity_matrix.png")
    yield from _groups(facts.topics["likeness"])
    for optional in (facts.similarity, facts.layer_places, facts.agreement):
        if optional is not None:
            yield from _grid(optional)
    yield from _hypotheses(facts)
    yield from ("## Quality against memory", "")
    yield from _figures(facts, "quality_against_memory.png")
    if facts.tradeoff is not None:
        yield from _grid(facts.tradeoff)
    yield from ("## Memory and speed", "")
    yield from _figures(facts, "memory_comparison.png")
    yield from _groups(facts.topics["resources"])
    if facts.memory_by_rank is not None:
        yield from _grid(facts.memory_by_rank)
    yield from _grid(facts.memory)
    yield from _grid(facts.speed)
    if facts.latency is not None:
        yield from _grid(facts.latency)
    yield from ("## Failure modes", "")
    for optional in (*facts.failures, facts.guard):
        if optional is not None:
            yield from _grid(optional)
    yield from ("## Every planned run", "", ", ".join(f"{n} {state}" for state, n in facts.states) + ".", "")
    if facts.unfinished is not None:
        yield from _grid(facts.unfinished)
    yield from _grid(facts.cells)
    yield from ("## Data", "")
    for grid in facts.audits:
        yield from _grid(grid)
    for pieces in facts.data_examples:
        texts = [f"**{inert(text)}**" if scored else inert(text) for text, scored in pieces if text.strip()]
        yield f"- {' '.join(texts)}"
    if facts.data_examples:
        yield ""
    yield from ("## Answers side by side", "", inert(facts.examples_note), "")
    for example in facts.examples:
        yield from _example(example)
    yield from ("## Provenance", "")
    yield from _grid(facts.provenance)
    yield from ("Files beside this page:", "")
    for name, text, rows in facts.tables:
        yield f"- [tables/{name}.csv](tables/{name}.csv): {text} ({plural(rows, 'row')})"
    yield "- [verdicts.json](verdicts.json): every verdict with its estimate, interval and records"
    if facts.places:
        yield "- [recommendation.json](recommendation.json): the choice within the memory budget, with its evidence"
    yield from ("", "## How to read a verdict", "")
    yield from _READING


_READING = (
    "- **supported**: the whole interval lies inside the margin. The difference may still be real.",
    "- **rejected**: the whole interval lies outside the margin.",
    "- **undecided**: the interval crosses the margin, or there are under three seeds: no evidence for either side.",
    "- **confounded**: the arms differ in more than the one thing asked about, so no verdict is given.",
    "",
    "n counts seeds: runs are paired by seed. Intervals are 95% unless adjusted (Holm). Exploratory questions suggest,",
    "they do not prove. Predicted figures are called predicted; what was not measured says why.",
)


def _place(place: Place) -> Iterator[str]:
    """A choice within a memory budget: every cell with its state, and the recommended one as a study to paste."""
    yield from _grid(place.cells)
    yield from _bullets(place.reasons)
    if place.study:
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", place.study)), default=0))
        yield from ("The recommended cell as a study file:", "", f"{fence}yaml", place.study.rstrip(), fence, "")


def _bullets(texts: Sequence[str], mark: str = "- ") -> Iterator[str]:
    """A list, or a quotation of paragraphs with ``mark`` "> "."""
    for text in texts:
        yield f"{mark}{inert(text)}"
        if mark == "> " and text != texts[-1]:
            yield ">"
    if texts:
        yield ""


def _sentences(sentences: Sequence[Sentence]) -> Iterator[str]:
    for s in sentences:
        standing = {"primary": " *Primary question.*", "exploratory": " *Exploratory.*"}.get(s.standing, "")
        yield f"- **{inert(s.verdict)}**: {inert(s.text)}{standing}"
    if sentences:
        yield ""


def _groups(groups: Sequence[Group]) -> Iterator[str]:
    for group in groups:
        yield from (f"### {inert(group.title)}", "")
        yield from _sentences(group.sentences)


def _hypotheses(facts: Facts) -> Iterator[str]:
    section = facts.hypotheses
    yield from ("## Hypotheses", "")
    for one in section.answers:
        yield f"- **{inert(one.verdict)}**: **{inert(f'{one.name}: {one.claim}.')}** {inert(one.answer)}"
    yield ""
    for one in section.answers:
        if one.parts is not None:
            yield from _grid(one.parts)
            yield from (
                f"- **{inert(verdict)}**: **{inert(part)}.** {inert(text)}" for verdict, part, text in one.words
            )
            yield ""
    for grid in (section.depth, section.along):
        if grid is not None:
            yield from _grid(grid)
    for text in (section.along_note, section.note):
        yield from (inert(text), "") if text else ()


def _grid(grid: Grid) -> Iterator[str]:
    if grid.title:
        yield from (f"### {inert(grid.title)}", "")
    yield f"| {' | '.join(inert(c) for c in grid.columns)} |"
    numbers = [item.number for item in grid.rows[0]] if grid.rows else [False] * len(grid.columns)
    yield f"| {' | '.join('---:' if n else '---' for n in numbers)} |"
    for row in grid.rows:
        cells = [f"{item.text} {item.verdict}" if item.number and item.verdict else item.text for item in row]
        yield f"| {' | '.join(inert(cell) for cell in cells)} |"
    yield ""
    if grid.note:
        yield from (inert(grid.note), "")


def _figures(facts: Facts, *names: str) -> Iterator[str]:
    for name in names:
        figure = facts.figures[name]
        if figure.light is None:
            yield from (f"No figure “{figure.title}”: {inert(figure.reason)}.", "")
        else:
            yield from (f"![{inert(figure.alt)}](figures/{name})", "", inert(figure.caption), "")


def _example(example: Example) -> Iterator[str]:
    yield from (f"### Item {example.item}", "")
    rows = [("prompt", example.prompt)] if example.prompt else []
    rows.append((example.said, example.reference))
    rows += [(f"{label}{f' ({mark})' if mark else ''}", text) for label, text, mark in example.answers]
    for name, text in rows:
        yield f"- {inert(name)}: {inert(text)}"
    yield ""


def table(grid: Grid) -> list[str]:
    """A table's lines, for the cards."""
    return list(_grid(grid))
