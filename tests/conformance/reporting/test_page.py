"""The page in a real browser: it fits a phone, needs no other file, and logs nothing."""

import pytest
from reroute_conformance.checks import checks
from reroute_conformance.mutants import mutant
from reroute_conformance.protocol import PROFILES
from reroute_conformance.reporting.files import write_report
from reroute_conformance.reporting.records import Circumstances, to_records
from reroute_conformance.running.results import Report
from reroute_conformance.running.runner import run_check, save_failures
from reroute_conformance.targets import reference

from ..browser import CUT, needs_browser

CHECKS = {check.name: check for check in checks()}
pytestmark = needs_browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page per verdict; the one that fails has a long name, and as many profiles as there are."""
    folder = tmp_path_factory.mktemp("pages")
    name = "mutant:row-0s-decision-for-the-whole-batch"
    wrong = [run_check(CHECKS["select"], reference()), run_check(CHECKS["trace-batch"], mutant(name[7:]))]
    fails = Report(
        f"{name}-{'x' * 200}", tuple(PROFILES), wrong, ("llava",), "<script>document.title = 1</script>"
    )
    save_failures(fails, name, folder / "FAILS" / "cases")
    conforms = Report("reference", ("core",), [run_check(CHECKS["trace-ties"], reference())])
    incomplete = Report("reference", ("core",), [run_check(CHECKS["trace"], reference(), examples=2)])
    for report in (conforms, fails, incomplete):
        place = folder / report.verdict
        place.mkdir(exist_ok=True)
        write_report(to_records(report, Circumstances({"torch": "x"}, "vlm-reroute conform")), place)
    return folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("verdict", ["CONFORMS", "FAILS", "INCOMPLETE"])
def test_the_page_opens_and_fits(browser, pages, verdict, width, scheme):
    path = pages / verdict / "report.html"
    browser.console.clear()
    browser.requested.clear()
    browser.open(path, width, scheme=scheme)
    assert browser.evaluate("document.querySelector('h1').innerText").split()[-1] == verdict
    assert browser.evaluate("document.querySelectorAll('.matrix tbody th[scope=row]').length") > 80
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate(CUT) == []
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 128 * 3) == (scheme == "dark")
    assert browser.console == []
    assert browser.requested == [path.as_uri()]


def test_a_failure_comes_with_its_command_in_one_piece(browser, pages):
    browser.open(pages / "FAILS" / "report.html", 390)
    command = browser.evaluate("document.querySelector('article .command').innerText")
    assert command.startswith("vlm-reroute replay ")
    assert "\n" not in command
    assert browser.evaluate("document.querySelectorAll('script').length") == 0
    assert browser.evaluate("document.title").startswith("FAILS")


def test_everything_that_scrolls_can_be_reached_by_keyboard(browser, pages):
    browser.open(pages / "FAILS" / "report.html", 390)
    boxes = "[...document.querySelectorAll('.scroll')]"
    assert browser.evaluate(
        f"{boxes}.every(box => box.tabIndex === 0 && box.getAttribute('aria-labelledby'))"
    )
    assert browser.evaluate(f"{boxes}.some(box => box.scrollWidth > box.clientWidth)")
