"""Writes ``report/``: verdicts, tables, figures, Markdown, and last the page, each file atomically.

Nothing here depends on the clock, the machine or the folder's place: the same records give the same bytes.
"""

from __future__ import annotations

from pathlib import Path

from loracle.report import cards, files, markdown, page, proposals
from loracle.report import facts as facts_of
from loracle.report import figures as figures_of
from loracle.report import tables as tables_of
from loracle.report.budget import Asked, wish_of, write_recommendation
from loracle.report.evidence import read_study
from loracle.store.files import write_bytes, write_json, write_text
from loracle.store.layout import StudyFolder
from loracle.verdict import decide, hypotheses, recommendation


def write_report(folder: Path, asked: Asked | None = None) -> Path:
    """Write the report of a study folder, with what was asked within a memory budget; returns the path of its page."""
    data = read_study(folder)
    study = data.evidence()
    entries = decide(study)
    wish = wish_of(data, StudyFolder(folder), asked) if asked else None
    advice = recommendation(entries, study, wish)
    tables = tables_of.all_tables(data, entries)
    figures = figures_of.all_figures(data, entries, tables)
    answers = hypotheses(study, entries)
    proposal = proposals.proposed(data, entries)
    beside = files.beside(chosen=wish is not None, proposed=proposal is not None)
    facts = facts_of.gather(data, entries, advice, tables, figures, answers, beside, wish)
    out = StudyFolder(folder).report
    write_json(out / "verdicts.json", [*entries, *answers])
    write_recommendation(out / "recommendation.json", data, advice, wish)
    for name, table in tables.items():
        write_text(out / "tables" / f"{name}.csv", table.to_csv())
    for figure in figures:
        path = out / "figures" / figure.file
        if figure.light is not None:
            write_bytes(path, figure.light)
        else:
            path.unlink(missing_ok=True)
    proposals.write(out / "proposals" / "rank_pattern.yaml", proposal)
    write_text(out / "report.md", markdown.render(facts))
    for name, text in cards.render(data, [*entries, *answers], tables, StudyFolder(folder)).items():
        write_text(out / name, text)
    write_text(out / "index.html", page.render(facts))
    return out / "index.html"
