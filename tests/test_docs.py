"""What the docs show, runs; what they link to, exists; what is made from the code, is all of it."""

import re
import sys
import tomllib
from importlib import import_module

import pytest
import reroute_optimized
from reroute_conformance.cli import entry as cli
from reroute_conformance.running.finding import load_target
from reroute_conformance.tiny import picture_inputs, tiny_llava
from reroute_spec import RerouteError, Schedule, budget, plan, select
from reroute_spec.rules import rules

from . import pages

sys.path.append(str(pages.ROOT / "docs"))
from generate import api, errors, messages, text  # of the site, which is no package

README = pages.ROOT / "README.md"  # test_readme.py


def named(page):
    return page.relative_to(pages.ROOT).with_suffix("").as_posix()


@pytest.mark.parametrize("page", [page for page in pages.pages() if page != README], ids=named)
def test_a_page_runs(page, tmp_path, monkeypatch):
    pages.Reader(tmp_path, monkeypatch).read(page)


@pytest.mark.parametrize("page", pages.pages(), ids=named)
def test_a_link_leads_to_a_file(page):
    made = {
        pages.ROOT / "docs" / name for name in (*api.PAGES, "reference/errors.md", "reference/commands.md")
    }
    place = page.relative_to(pages.ROOT).as_posix()
    for target in text.targets(page.read_text("utf-8"), place):
        there = pages.ROOT / target
        assert there.exists() or there in made, f"{place}: {target}"


@pytest.mark.parametrize("page", pages.pages(), ids=named)
def test_a_rule_that_a_page_cites_exists(page):
    assert set(re.findall(r"RR-[A-Z]+-\d{3}", page.read_text("utf-8"))) <= rules().keys()


def test_every_rule_has_an_anchor_and_every_mention_leads_there():
    root = pages.ROOT
    anchors = {}
    for chapter in (root / "spec").glob("[0-9]*.md"):
        place = f"spec/{chapter.name}"
        made = text.site(chapter.read_text("utf-8"), place, place, {}, root)
        anchors |= dict.fromkeys(re.findall(r"^### RR-\S+ .* \{ #(rr-\S+) \}$", made, re.MULTILINE), place)
    assert anchors.keys() == {rule.lower() for rule in rules()}
    told = text.site("See RR-SEL-003, not `RR-SEL-004`.", "docs/how-to/x.md", "how-to/x.md", {}, root)
    assert told == "See [RR-SEL-003](../spec/50-select.md#rr-sel-003), not `RR-SEL-004`."


def test_links_of_the_repository_become_links_of_the_site():
    mounted = {"spec/README.md": "spec/index.md"}
    given = "[a `b`](../spec/README.md#x) [c](../spec/reroute_spec/plan.py) [d](../spec/proofs) `[e](f)` [g](https://h.i)"
    told = text.site(given, "docs/page.md", "page.md", mounted, pages.ROOT)
    assert (
        told == "[a `b`](spec/index.md#x) [c](source/spec/reroute_spec/plan.py) d `[e](f)` [g](https://h.i)"
    )


def test_public_names_are_where_their_page_says():
    for package in api.FOLDERS:
        names = api.names(pages.ROOT, package)
        assert names
        for path in names.values():
            module, _, name = path.rpartition(".")
            assert hasattr(import_module(module), name), path
    assert set(reroute_optimized.__all__) <= api.names(pages.ROOT, "reroute_optimized").keys()


def test_every_refusal_in_the_code_is_on_the_page():
    for package, folder in api.FOLDERS.items():
        listed = {place.place for found in errors.raised(pages.ROOT, package).values() for place in found}
        for path in (pages.ROOT / folder / package).rglob("*.py"):
            for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
                if (
                    "raise RerouteError(" in line
                    and "error.problem" not in line
                    and "mutants" not in path.parts
                ):
                    assert f"{path.relative_to(pages.ROOT).as_posix()}:{number}" in listed


def test_the_version_is_said_in_one_place_and_cited_as_that():
    project = tomllib.loads((pages.ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert f"\nversion: {project['version']}\n" in (pages.ROOT / "CITATION.cff").read_text("utf-8")
    for folder in api.FOLDERS.values():
        for path in (pages.ROOT / folder).rglob("*.py"):
            assert "__version__ =" not in path.read_text("utf-8"), path


def test_what_the_suite_needs_beside_the_rest_is_told_where_it_is_missing(monkeypatch, capsys):
    project = tomllib.loads((pages.ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extra = [re.match(r"[\w-]+", entry)[0] for entry in project["optional-dependencies"]["conformance"]]
    assert sorted(extra) == sorted(cli._EXTRA)

    def missing(*args, **kwargs):
        raise ModuleNotFoundError("No module named 'hypothesis'", name="hypothesis")

    monkeypatch.setattr(cli, "app", missing)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 3
    assert "pip install 'vlm-reroute[conformance]'" in capsys.readouterr().err


def refusals(tmp_path):
    """Some of every package, as a user meets them."""
    decision = {"layer": 1, "keep": "0.5"}
    yield lambda: Schedule.from_dict({"action": "rerout", "decisions": [decision]})
    yield lambda: Schedule.from_dict({"action": "reroute", "decisions": [{"layer": 1, "keep": 0.5}]})
    yield lambda: Schedule.from_dict({"action": "reroute", "decisions": [decision, decision]})
    yield lambda: Schedule.load("reroute-fastv-193")
    yield lambda: Schedule.load(tmp_path / "absent.json")
    yield lambda: plan(Schedule("reroute", []), 4, [])
    yield lambda: select([1.0], 2)
    yield lambda: budget("1/2", -1)
    yield lambda: reroute_optimized.apply(tiny_llava(), "fastv-64", backend="cuda")
    yield lambda: reroute_optimized.remove(tiny_llava())
    yield lambda: reroute_optimized.apply(object(), "fastv-64")
    yield lambda: load_target("no.such.module:factory")

    def images_of_another_number():
        model, inputs = tiny_llava(), picture_inputs()
        inputs["input_ids"][0, 5] = 0
        with reroute_optimized.routed(model, "fastv-64"):
            model(**inputs)

    yield images_of_another_number


def test_what_is_raised_reads_as_the_page_says(tmp_path):
    places = [
        place
        for package in api.FOLDERS
        for found in errors.raised(pages.ROOT, package).values()
        for place in found
        if place.kind == errors.REFUSAL
    ]
    filled = re.compile(f"{messages.OPEN}.*?{messages.CLOSE}")

    def can_say(texts, words):
        return any(
            re.fullmatch(".*".join(map(re.escape, filled.split(text))), words, re.DOTALL) for text in texts
        )

    for refused in refusals(tmp_path):
        with pytest.raises(RerouteError) as caught:
            refused()
        error = caught.value
        said = (error.field, error.problem, error.remedy)
        assert any(all(map(can_say, place.parts, said)) for place in places), said


def test_the_page_of_errors_shows_its_tables():
    page = errors.page(pages.ROOT)
    assert page.count("<tr title=") > 300
    assert "<td>&lt;" not in page
    assert not re.search(r"[\x02\x03]", page)
    assert "removed rows cannot come back: keeps never grow" in page
