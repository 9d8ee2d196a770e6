"""The page in a real browser, where one is installed: nothing sticks out, nothing is blocked, nothing is asked for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from part_two import write_classification, write_methods
from tests.browser import Browser, installed

from loracle.report import write_report

CHROMIUM = installed()
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium or Chrome is installed (apt-get install chromium)"
)

WIDTHS = (390, 1440)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM is not None
    with Browser(CHROMIUM) as found:
        yield found


@pytest.fixture(scope="module")
def pages(full: Path, unfinished: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pages of a finished study, one with gaps and hostile text, a classification and methods."""
    classified = write_classification(tmp_path_factory.mktemp("classified"))
    methods = write_methods(tmp_path_factory.mktemp("methods"))
    written = [write_report(root) for root in (classified, methods)]
    return [full / "report" / "index.html", unfinished / "report" / "index.html", *written]


def contrast(first: str, second: str) -> float:
    """WCAG 2.2 contrast ratio of two ``rgb(r, g, b)`` colours."""
    levels = []
    for colour in (first, second):
        parts = [int(x) / 255 for x in colour.removeprefix("rgb(").removesuffix(")").split(",")]
        linear = [x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        levels.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(levels) + 0.05) / (min(levels) + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_sticks_out_and_nothing_is_blocked(browser: Browser, pages: list[Path], width: int, dark: bool) -> None:
    for page in pages:
        browser.open(page, width, dark)
        browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert browser.evaluate("innerWidth") == width
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.log == []
        assert [url for url in browser.requests if not url.startswith("data:image/png")] == [page.resolve().as_uri()]
        drawn = browser.evaluate("[...document.images].map(i => i.naturalWidth)")
        assert drawn
        assert all(pixels > 400 for pixels in drawn)


def test_dark_figures_are_dark(browser: Browser, pages: list[Path]) -> None:
    shown = {}
    for dark in (False, True):
        browser.open(pages[0], 1440, dark)
        shown[dark] = browser.evaluate("[...document.images].map(i => i.currentSrc.slice(0, 4000))")
        paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(17, 19, 23)") is dark
    assert all(a != b for a, b in zip(shown[False], shown[True], strict=True))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_words_stand_out_from_their_ground(browser: Browser, pages: list[Path], dark: bool) -> None:
    browser.open(pages[0], 1440, dark)
    pairs = browser.evaluate(
        """[...document.querySelectorAll('p, td, th, a, li, span, h1, h2, h3, h4, figcaption, small')].map(e => {
            let ground = e; const clear = 'rgba(0, 0, 0, 0)';
            while (getComputedStyle(ground).backgroundColor === clear) ground = ground.parentElement;
            return [getComputedStyle(e).color, getComputedStyle(ground).backgroundColor] })"""
    )
    worst = min(contrast(*pair) for pair in {tuple(pair) for pair in pairs})
    assert worst >= 4.5, worst


def test_the_answer_is_on_the_first_screen(browser: Browser, pages: list[Path]) -> None:
    for width in WIDTHS:
        browser.open(pages[0], width, height=900)
        for found in (".advice p", ".verdicts .badge"):
            assert browser.evaluate(f"document.querySelector('{found}').getBoundingClientRect().bottom") < 900


def test_headings_descend_one_step_at_a_time(browser: Browser, pages: list[Path]) -> None:
    for page in pages:
        browser.open(page, 1440)
        levels = browser.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(h => +h.tagName[1])")
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_the_keyboard_reaches_the_verdicts_first(browser: Browser, pages: list[Path]) -> None:
    browser.open(pages[0], 1440)
    browser.press("Tab")
    assert browser.evaluate("document.activeElement.getAttribute('href')") == "#verdicts"
    assert browser.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    assert browser.evaluate("document.getElementById('verdicts') !== null")


def test_every_link_of_the_contents_leads_somewhere(browser: Browser, pages: list[Path]) -> None:
    for page in pages:
        browser.open(page, 390)
        lost = "[...document.querySelectorAll('nav a')].filter(a => !document.querySelector(a.getAttribute('href'))).length"
        assert browser.evaluate(lost) == 0


def test_print_shows_what_is_folded_on_light_paper(browser: Browser, pages: list[Path]) -> None:
    browser.open(pages[0], 700, dark=True, media="print")
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    hidden = "[...document.querySelectorAll('details > :not(summary)')].filter(e => !e.getBoundingClientRect().height).length"
    assert browser.evaluate("document.querySelectorAll('details:not([open])').length") > 0
    assert browser.evaluate(hidden) == 0
    assert browser.evaluate("document.querySelector('nav').getBoundingClientRect().height") == 0
    assert browser.evaluate("document.documentElement.scrollWidth") <= 700


def test_a_policy_that_is_broken_would_be_seen(browser: Browser, pages: list[Path], tmp_path: Path) -> None:
    """The check itself: a page that asks for a picture and runs a script is told apart."""
    html = pages[0].read_text(encoding="utf-8")
    bad = tmp_path / "bad.html"
    bad.write_text(
        html.replace("<main>", "<main><script>1</script><img src='http://127.0.0.1:9/x.png'>"), encoding="utf-8"
    )
    browser.open(bad, 1440)
    assert len(browser.log) == 2
    assert all("Content Security Policy" in line for line in browser.log)
