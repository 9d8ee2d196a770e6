"""What report.md and the cards are made of. All text is made inert first (``inert.markdown``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from loracle.report.facts import Facts, Group, Sentence
from loracle.report.grids import Grid
from loracle.report.inert import markdown as inert


def bullets(texts: Sequence[str], mark: str = "- ") -> Iterator[str]:
    """A list, or a quotation of paragraphs with ``mark`` "> "."""
    for text in texts:
        yield f"{mark}{inert(text)}"
        if mark == "> " and text != texts[-1]:
            yield ">"
    if texts:
        yield ""


def sentences(said: Sequence[Sentence]) -> Iterator[str]:
    """Verdicts, one a line."""
    for s in said:
        standing = {"primary": " *Primary question.*", "exploratory": " *Exploratory.*"}.get(s.standing, "")
        yield f"- **{inert(s.verdict)}**: {inert(s.text)}{standing}"
    if said:
        yield ""


def groups(found: Sequence[Group]) -> Iterator[str]:
    """The verdicts on each question, under its title."""
    for group in found:
        yield from (f"### {inert(group.title)}", "")
        yield from sentences(group.sentences)


def table(grid: Grid) -> Iterator[str]:
    """A table under its title, its note below."""
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


def tables(grids: Iterable[Grid | None]) -> Iterator[str]:
    """Those that are there."""
    for grid in grids:
        if grid is not None:
            yield from table(grid)


def figures(facts: Facts, *names: str) -> Iterator[str]:
    """Figures with their captions; one that is not drawn says why."""
    for name in names:
        figure = facts.figures[name]
        if figure.light is None:
            yield from (f"No figure “{figure.title}”: {inert(figure.reason)}.", "")
        else:
            yield from (f"![{inert(figure.alt)}](figures/{name})", "", inert(figure.caption), "")
