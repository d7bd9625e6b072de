"""The page in a real browser: it fits a phone, needs no other file, and logs nothing."""

import pytest
from reroute_conformance.bench.presenting.compare import Change, Comparison, Unpaired
from reroute_conformance.bench.presenting.page import page

from ..browser import CUT, needs_browser

pytestmark = needs_browser
NAMES = """
[...document.querySelectorAll("[id]")].map(element => element.id)
"""

# of words in drawings, in pixels of the page; some are turned
SIZES = """
[...document.querySelectorAll("svg text")].map(text => {
  const turned = text.getScreenCTM();
  return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(turned.a, turned.b);
})
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory, record):
    written = tmp_path_factory.mktemp("page") / "bench.html"
    moved = ("prefill", "small prefill", "optimized-torch", "of the floor's speed")
    comparison = Comparison(
        since="2025-12-31T00:00:00+00:00",
        changes=[Change(*moved, (0.9, 0.89, 0.91), (0.95, 0.94, 0.96), better=True)],
        unpaired=[Unpaired("prefill", "another", "", new=True)],
        disturbed=[("decode", "small decode")],
        same_machine=False,
    )
    written.write_text(page(record, comparison), "utf-8")
    return written


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_opens_and_fits(browser, path, width, scheme):
    browser.console.clear()
    browser.requested.clear()
    browser.open(path, width, scheme=scheme)
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate(CUT) == []
    assert browser.evaluate("document.querySelectorAll('figure svg').length") == 8
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 128 * 3) == (scheme == "dark")
    words = browser.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
    assert (sum(map(int, words[4:-1].split(","))) > 128 * 3) == (scheme == "dark")
    sizes = browser.evaluate(SIZES)
    assert 12 <= min(sizes) <= max(sizes) <= 17
    assert browser.console == []
    assert browser.requested == [path.as_uri()]


def test_no_two_drawings_share_a_name(browser, path):
    browser.open(path, 1280)
    names = browser.evaluate(NAMES)
    assert len(set(names)) == len(names)
