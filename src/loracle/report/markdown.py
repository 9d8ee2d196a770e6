"""report.md: the page's facts as Markdown, section by section in the page's order."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from loracle.report.answers import Example
from loracle.report.budget import Place
from loracle.report.facts import Facts
from loracle.report.inert import markdown as inert
from loracle.report.markdown_parts import bullets, figures, groups, sentences, table, tables
from loracle.report.sections import shown
from loracle.report.wording import plural


def render(facts: Facts) -> str:
    """The whole report."""
    return "\n".join(_lines(facts)).rstrip() + "\n"


def _lines(facts: Facts) -> Iterator[str]:
    yield from (f"# {inert(facts.name)}", "", inert(facts.subtitle), "", "## Recommendation", "")
    yield from (f"**{inert(facts.recommendation)}**", "")
    yield from bullets(facts.broken)
    yield from bullets(facts.why)
    yield from bullets(facts.notes, "> ")
    for section in shown(facts):
        yield from (f"## {section.title}", "")
        yield from BODIES[section.id](facts)


def _budget(facts: Facts) -> Iterator[str]:
    for place in facts.places:
        yield from _place(place)


def _verdicts(facts: Facts) -> Iterator[str]:
    yield from sentences(facts.headlines)
    yield from tables([facts.glance])
    tally = ", ".join(f"{n} {verdict}" for verdict, n in facts.tally)
    yield from (f"{tally or 'No question that gets a verdict was asked'}.", "")


def _basis(facts: Facts) -> Iterator[str]:
    yield from bullets([f"{value} {text}" for value, text in facts.basis])


def _learning(facts: Facts) -> Iterator[str]:
    yield from (inert(facts.learned), "")
    yield from figures(facts, "metric_by_rank.png", "loss_curves.png")
    yield from tables(facts.learning)


def _classes(facts: Facts) -> Iterator[str]:
    yield from figures(facts, "confusion_matrix.png")
    yield from tables(facts.classes)


def _methods(facts: Facts) -> Iterator[str]:
    yield from tables(facts.methods)


def _cost(facts: Facts) -> Iterator[str]:
    yield from figures(facts, "rank_threshold_plot.png")
    yield from groups(facts.topics["cost"])
    yield from tables([facts.layers])
    if facts.sensitivity:
        yield from figures(facts, "layer_sensitivity_heatmap.png")
        yield from tables(facts.sensitivity)


def _groups(facts: Facts) -> Iterator[str]:
    yield from bullets(facts.groups_said)
    yield from tables(facts.groups)


def _likeness(facts: Facts) -> Iterator[str]:
    yield from figures(facts, "weight_similarity_matrix.png", "weight_similarity_by_layer.png")
    yield from groups(facts.topics["likeness"])
    yield from tables([facts.similarity, facts.layer_places, facts.agreement])


def _allocation(facts: Facts) -> Iterator[str]:
    yield from tables(facts.allocation)
    for title, text in facts.patterns:
        yield from (f"{inert(title)}:", "", *(f"    {line}" for line in text.splitlines()), "")


def _hypotheses(facts: Facts) -> Iterator[str]:
    section = facts.hypotheses
    for one in section.answers:
        yield f"- **{inert(one.verdict)}**: **{inert(f'{one.name}: {one.claim}.')}** {inert(one.answer)}"
    yield ""
    for one in section.answers:
        if one.parts is not None:
            yield from table(one.parts)
            yield from (
                f"- **{inert(verdict)}**: **{inert(part)}.** {inert(text)}" for verdict, part, text in one.words
            )
            yield ""
    yield from tables([section.depth, section.along])
    for text in (section.along_note, section.note):
        yield from (inert(text), "") if text else ()


def _tradeoff(facts: Facts) -> Iterator[str]:
    yield from figures(facts, "quality_against_memory.png")
    yield from tables([facts.tradeoff])


def _resources(facts: Facts) -> Iterator[str]:
    yield from figures(facts, "memory_comparison.png")
    yield from groups(facts.topics["resources"])
    yield from tables([facts.memory_by_rank, facts.memory, facts.speed, facts.latency])


def _failures(facts: Facts) -> Iterator[str]:
    yield from tables([*facts.failures, facts.guard])


def _runs(facts: Facts) -> Iterator[str]:
    yield from (", ".join(f"{n} {state}" for state, n in facts.states) + ".", "")
    yield from tables([facts.unfinished, facts.cells])


def _data(facts: Facts) -> Iterator[str]:
    yield from tables(facts.audits)
    for pieces in facts.data_examples:
        texts = [f"**{inert(text)}**" if scored else inert(text) for text, scored in pieces if text.strip()]
        yield f"- {' '.join(texts)}"
    if facts.data_examples:
        yield ""


def _examples(facts: Facts) -> Iterator[str]:
    yield from (inert(facts.examples_note), "")
    for example in facts.examples:
        yield from _example(example)


def _provenance(facts: Facts) -> Iterator[str]:
    yield from table(facts.provenance)
    yield from ("Files beside this page:", "")
    for name, text, rows in facts.tables:
        yield f"- [tables/{name}.csv](tables/{name}.csv): {text} ({plural(rows, 'row')})"
    yield from (f"- [{path}]({path}): {text}" for path, text in facts.files)
    yield ""


def _reading(facts: Facts) -> Iterator[str]:
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
    yield from table(place.cells)
    yield from bullets(place.reasons)
    if place.study:
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", place.study)), default=0))
        yield from ("The recommended cell as a study file:", "", f"{fence}yaml", place.study.rstrip(), fence, "")


def _example(example: Example) -> Iterator[str]:
    yield from (f"### Item {example.item}", "")
    rows = [("prompt", example.prompt)] if example.prompt else []
    rows.append((example.said, example.reference))
    rows += [(f"{label}{f' ({mark})' if mark else ''}", text) for label, text, mark in example.answers]
    for name, text in rows:
        yield f"- {inert(name)}: {inert(text)}"
    yield ""


BODIES: dict[str, Callable[[Facts], Iterator[str]]] = {
    "budget": _budget,
    "verdicts": _verdicts,
    "basis": _basis,
    "learning": _learning,
    "classes": _classes,
    "methods": _methods,
    "cost": _cost,
    "groups": _groups,
    "likeness": _likeness,
    "allocation": _allocation,
    "hypotheses": _hypotheses,
    "tradeoff": _tradeoff,
    "resources": _resources,
    "failures": _failures,
    "runs": _runs,
    "data": _data,
    "examples": _examples,
    "provenance": _provenance,
    "reading": _reading,
}
"""Section → its lines, below the heading."""
