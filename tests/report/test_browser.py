"""The page in Chromium: nothing complains, nothing is asked for outside, and it fits a phone."""

from pathlib import Path

import pytest

from handscroll.report import evaluation_page, write
from tests.report.browser import Browser
from tests.report.material import DOCTOR, EVERYTHING, LENGTH, RULER, VIEWS, needle, perplexity, tasks

# The widest thing that is not meant to be scrolled by itself, and letters too small to read.
TOO_WIDE = """[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && !e.closest('svg') &&
  e.getBoundingClientRect().right > innerWidth + 1 && !e.classList.contains('skip'))
  .map(e => e.outerHTML.slice(0, 80))"""
TOO_SMALL = """[...document.querySelectorAll('p, td, th, dd, dt, figcaption, caption, li, summary')].filter(e =>
  e.getClientRects().length && parseFloat(getComputedStyle(e).fontSize) < 12).length"""
SMALLEST = """Math.min(...[...document.querySelectorAll('svg text')].filter(e => e.getClientRects().length).map(e =>
  parseFloat(getComputedStyle(e).fontSize) * e.ownerSVGElement.getBoundingClientRect().width /
  e.ownerSVGElement.viewBox.baseVal.width))"""


@pytest.fixture(scope="module")
def browser():
    with Browser() as found:
        yield found


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_report_is_quiet_and_readable_on_a_phone(browser, tmp_path, language):
    records = [*EVERYTHING, perplexity("a method with a long name"), needle("another grid", lengths=[512, 8192])]
    records += [tasks(), tasks("another model"), RULER, LENGTH, VIEWS, DOCTOR]
    page = write(evaluation_page(records, language=language), tmp_path / "report.html")
    assert page.stat().st_size < 2_000_000
    for width in (360, 1280):
        browser.open(page, width)
        assert browser.value("document.documentElement.scrollWidth") <= width, browser.value(TOO_WIDE)
        assert browser.value(TOO_WIDE) == [] and browser.value(TOO_SMALL) == 0
        assert browser.value(SMALLEST) >= 9
    assert browser.value("document.documentElement.lang") == ("en" if language == "en" else "zh-Hans")
    assert browser.errors == [] and {Path(one.split(":", 1)[1]).name for one in browser.requests} == {"report.html"}


def test_what_complains_or_loads_would_be_seen(browser, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<script>console.error('x')</script><img src='http://example.invalid/a.png'><div style='width:2000px'>"
    )
    browser.open(bad, 360)
    assert browser.errors and "http://example.invalid/a.png" in browser.requests
    assert browser.value("document.documentElement.scrollWidth") > 360 or browser.value(TOO_WIDE)
    browser.errors.clear()
    browser.requests.clear()
