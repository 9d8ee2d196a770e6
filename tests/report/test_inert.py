"""Text that must not act: spreadsheet formulas, Markdown links and images, HTML, marks that reorder text."""

from __future__ import annotations

import pytest

from loracle.report.inert import csv_cell, markdown, plain, shown


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "\r\n=1", "＝1"])
def test_formulas_are_quoted(text: str) -> None:
    assert csv_cell(text).startswith("'")


@pytest.mark.parametrize(
    ("value", "cell"),
    [(-1.5, "-1.5"), (0.1, "0.1"), (3, "3"), (None, ""), (float("nan"), ""), (True, "yes"), ("a\nb", "a b")],
)
def test_other_cells(value: object, cell: str) -> None:
    assert csv_cell(value) == cell


@pytest.mark.parametrize(
    ("text", "inert"),
    [
        ("![x](http://e.example)", "!\\[x\\](http&#58;//e.example)"),
        ("<img src=x>", "&lt;img src=x&gt;"),
        ("a|b", "a\\|b"),
        ("card_arrival", "card\\_arrival"),
        ("www.e.example a@b.example", "www&#46;e.example a&#64;b.example"),
        ("javascript:alert(1)", "javascript&#58;alert(1)"),
        ("- item\n# head", "\\- item \\# head"),
        ("1. item", "1\\. item"),
        ("&lt;b&gt;", "&amp;lt;b&amp;gt;"),
        ("`code` ~~x~~", "\\`code\\` \\~\\~x\\~\\~"),
    ],
)
def test_markdown_is_shown_as_text(text: str, inert: str) -> None:
    assert markdown(text) == inert


def test_marks_that_reorder_text_are_taken_out() -> None:
    assert plain("a\u202eb\x00c\nd") == "a b c d"
    assert shown("a\u202eb\nc") == "a\ufffdb\nc"
    assert plain("\ud800x") == "?x"
