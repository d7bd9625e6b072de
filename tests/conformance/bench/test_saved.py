"""Runs as files: their form, what is made of them again, and what is refused."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
from reroute_conformance.bench.presenting.readme import NO_GPU, check_marks, escaped, markdown, write_between
from reroute_spec import RerouteError
from reroute_spec.schemas import schema

ROOT = Path(__file__).parents[3]
EMPTY = "before\n<!-- bench:cpu -->\nold\n<!-- /bench:cpu -->\nafter\n"


@pytest.fixture
def saved(record, tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(record))
    return path


@pytest.fixture
def readme(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(EMPTY)
    return path


def test_a_run_is_of_its_form(record):
    form = jsonschema.Draft202012Validator(schema("bench"))
    assert [error.message for error in form.iter_errors(json.loads(json.dumps(record)))] == []
    assert {"timed", "weighed"} <= schema("bench")["$defs"].keys()


@pytest.mark.parametrize("option", ["--from", "--compare"])
@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("rates",), None, "the run: 'rates' is a required property"),
        (("surplus",), 1, "the run: Additional properties are not allowed"),
        (("format",), "urn:vlm-reroute:bench:99", "is no run in the format urn:vlm-reroute:bench:1"),
        (("machine", "threads"), "2", "machine.threads: '2' is not of type 'integer'"),
        (("cases", 0, "suite"), "selekt", "cases[0].suite: 'selekt' is not one of"),
        (("cases", 0, "measured", "reference", "median_s"), 0, "cases[0].measured.reference.median_s: 0 is"),
        (
            ("cases", 6, "measured", "unrouted", "kv_bytes"),
            1.5,
            "cases[6].measured.unrouted.kv_bytes: 1.5 is",
        ),
        (("rates", "call"), float("nan"), "NaN is no JSON"),
    ],
)
def test_a_file_of_another_form_is_refused_by_its_field(vlm_reroute, saved, option, path, value, words):
    data = json.loads(saved.read_text())
    place = data
    for step in path[:-1]:
        place = place[step]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    saved.write_text(json.dumps(data))
    code, out, err = vlm_reroute("bench", option, str(saved))
    assert (code, out) == (3, "")
    assert err.startswith(f"error: {option}: ")
    assert words in err
    assert err.count("\n") == 1


def test_saved_runs_make_tables_and_pages_again(vlm_reroute, record, saved, readme, tmp_path):
    html = tmp_path / "run.html"
    code, out, _ = vlm_reroute(
        "bench", "--from", str(saved), "--html", str(html), "--readme", str(readme), "--compare", str(saved)
    )
    assert code == 0
    assert "no changes beyond noise" in out
    assert re.search(r"small prefill +unrouted ", out)  # the table that a run prints
    assert record["machine"]["processor"] in out
    text = readme.read_text()
    assert text.startswith("before\n<!-- bench:cpu -->\n| |")
    assert text.endswith("<!-- /bench:cpu -->\nafter\n")
    assert "old" not in text
    assert escaped(record["machine"]["processor"]) in text
    assert "| prefill: small prefill | unrouted |" in text
    write_between(readme, "cpu", markdown(record))
    assert readme.read_text() == text
    assert html.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--suite", "prefill"], "--suite has no meaning"),
        (["--rounds", "9", "--device", "cpu"], "--rounds, --device have no meaning"),
        (
            ["--target", "reference", "--external", "a.py", "--threads", "1"],
            "--target, --external, --threads",
        ),
    ],
)
def test_what_only_a_measurement_has_is_refused_beside_a_saved_run(vlm_reroute, saved, options, words):
    code, out, err = vlm_reroute("bench", "--from", str(saved), *options)
    assert (code, out) == (3, "")
    assert words in err


def test_the_readme_tells_ratios_round_by_round(record):
    prefill = next(case for case in record["cases"] if case["suite"] == "prefill")
    own = {
        **prefill["measured"]["optimized-torch"],
        "median_s": 0.5,
        "of_reference": [3.0, 2.5, 3.5],
        "faster": [2.0, 1.5, 2.5],
        "of_floor": [0.9, 0.8, 0.95],
    }
    measured = {"reference": {**prefill["measured"]["reference"], "median_s": 5.0}, "optimized-torch": own}
    lines = markdown({**record, "cases": [{**prefill, "measured": measured}]}).splitlines()
    (line,) = (line for line in lines if "| optimized-torch |" in line)
    assert "| 500 ms | 2.00 (1.50-2.50) | 3.00 (2.50-3.50) | 0.90 (0.80-0.95) |" in line
    assert any(line.startswith("Ratios are medians of the rounds' own") for line in lines)


def test_names_break_no_table(record):
    name = "a|b`c\n[d](e) <!-- /bench:cpu --> \\"
    few = {**record, "cases": [case for case in record["cases"] if case["suite"] in ("select", "prefill")]}
    text = json.dumps(few).replace("optimized-torch", json.dumps(name)[1:-1])
    named = json.loads(text.replace("small select", json.dumps(name)[1:-1]))
    named["command"] = "vlm-reroute bench --target '```'"
    made = markdown(named)
    table = [line for line in made.splitlines() if line.startswith("|")]
    cells = [len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in table]
    assert set(cells) == {8}
    assert len(table) == 2 + sum(len(case["measured"]) for case in few["cases"])
    assert r"a\|b\`c \[d\](e) \<!-- /bench:cpu --\> \\ |" in made
    assert "<!-- /bench:cpu -->" not in made
    assert "````sh\nvlm-reroute bench --target '```'\n````" in made


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        (b"\xff\xfe", "in UTF-8"),
        (b"no marks", "has no <!-- bench:cpu --> … <!-- /bench:cpu -->"),
        (b"<!-- /bench:cpu --><!-- bench:cpu -->", "add the two marks"),
    ],
)
def test_a_place_for_the_table_is_looked_for_before_anything_is_measured(
    vlm_reroute, monkeypatch, tmp_path, content, words
):
    monkeypatch.setattr("reroute_conformance.cli.bench._measured", lambda *_: pytest.fail("it measures"))
    path = tmp_path / "README.md"
    if content is not None:
        path.write_bytes(content)
    code, out, err = vlm_reroute("bench", "--readme", str(path))
    assert (code, out) == (3, "")
    assert err.startswith("error: --readme: ")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_readme_has_a_place_for_the_table(device, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text((ROOT / "README.md").read_text("utf-8"), "utf-8")
    check_marks(readme, device)
    write_between(readme, device, "| a table |")
    assert f"<!-- bench:{device} -->\n| a table |\n<!-- /bench:{device} -->" in readme.read_text("utf-8")


def test_without_a_run_on_a_gpu_the_readme_says_how_to_make_one(readme):
    with pytest.raises(RerouteError, match="bench:cuda"):
        write_between(readme, "cuda", "")
    for between in ("", "\n", f"\n{NO_GPU}\n"):
        readme.write_text(f"{EMPTY}<!-- bench:cuda -->{between}<!-- /bench:cuda -->")
        write_between(readme, "cpu", "new")
        assert readme.read_text().endswith(f"<!-- bench:cuda -->\n{NO_GPU}\n<!-- /bench:cuda -->")
    write_between(readme, "cuda", "a table")
    write_between(readme, "cpu", "new")
    assert NO_GPU not in readme.read_text()
