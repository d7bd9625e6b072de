"""``vlm-reroute bench``: who gets a speed, what a run says, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from reroute_conformance.bench.measuring import admission
from reroute_conformance.bench.measuring.machine import Rates
from reroute_conformance.bench.measuring.saved_runs import read
from reroute_conformance.bench.presenting.page import overhead, page
from reroute_conformance.bench.presenting.tables import (
    columns,
    counted,
    duration,
    machine_line,
    ratio,
    rows,
    suites,
)
from reroute_conformance.running.smoke import smoked
from reroute_spec import RerouteError

from . import small

ADAPTER = """
from beside import BesideTarget
target = BesideTarget
"""
BESIDE = """
from reroute_conformance.targets import ReferenceTarget
class BesideTarget(ReferenceTarget):
    name = "elsewhere"
    profiles = frozenset({"core"})
"""


@pytest.fixture
def quick(monkeypatch):
    """What the machine does at most, and most of the smoke, take seconds, and nothing here needs them."""
    monkeypatch.setattr(Rates, "measured", lambda place: small.RATES)
    monkeypatch.setattr(admission, "smoked", lambda target, core: smoked(target, core=True))


def bench(vlm_reroute, *arguments):
    return vlm_reroute("bench", "--suite", "select", "--rounds", "3", *arguments)


def test_what_fails_the_smoke_gets_no_speed(vlm_reroute, tmp_path, quick):
    path, name = tmp_path / "run.json", "mutant:lowest-scores"
    code, out, _ = bench(vlm_reroute, "--target", name, "--json", str(path))
    assert code == 1
    assert "not timed: it breaks RR-SEL-" in out
    run = json.loads(path.read_text())
    reference, wrong = run["targets"]
    assert (reference["smoke"], reference["timed"]) == ("passes", True)
    assert (wrong["smoke"], wrong["timed"]) == ("fails", False)
    assert all([*case["measured"]] == ["reference"] for case in run["cases"])


def test_an_interpreter_gets_no_speed_and_says_why(vlm_reroute, quick):
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("the kernels run on a GPU here")
    code, out, _ = bench(vlm_reroute, "--target", "optimized-triton")
    assert code == 2
    assert "optimized-triton: not timed: Triton's interpreter says whether kernels are right" in out


def test_an_implementation_that_lives_elsewhere_is_measured_from_its_adapter(
    vlm_reroute, tmp_path, monkeypatch, quick
):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "beside.py").write_text(BESIDE)
    adapter = tmp_path / "adapter.py"
    adapter.write_text(ADAPTER)
    code, out, _ = bench(vlm_reroute, "--external", str(adapter))
    assert code == 0
    assert out.count("elsewhere") == 3


@pytest.mark.parametrize(
    ("name", "prepare", "words"),
    [
        ("does nothing", "return lambda: None", "does not do the work"),
        ("unrouted", "raise ValueError('no such card')", "it raised ValueError: no such card"),
        ("tires", "times = iter('abc'); return lambda: next(times)", "it raised StopIteration"),
    ],
)
def test_what_does_not_do_the_work_gets_no_speed_and_spoils_nobody_elses(
    vlm_reroute, tmp_path, monkeypatch, quick, name, prepare, words
):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "beside.py").write_text(
        BESIDE.replace("elsewhere", name) + f"    def prepare(self, work, given):\n        {prepare}\n"
    )
    adapter, path = tmp_path / "adapter.py", tmp_path / "run.json"
    adapter.write_text(ADAPTER)
    monkeypatch.delitem(sys.modules, "beside", raising=False)
    code, out, _ = bench(vlm_reroute, "--external", str(adapter), "--json", str(path))
    assert code == 2
    assert words in out
    for case in json.loads(path.read_text())["cases"]:
        assert case["measured"].keys() == {"reference"}
        (who,) = case["unmeasured"]
        assert who == ("unrouted (2)" if name == "unrouted" else name)  # what stands beside all has that name


def test_a_run_that_is_cut_short_has_left_what_it_had_and_the_run_before_it(
    vlm_reroute, tmp_path, monkeypatch, quick
):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "beside", raising=False)
    stops = "    def prepare(self, work, given):\n        if given['k'] == 64: raise KeyboardInterrupt\n"
    (tmp_path / "beside.py").write_text(f"{BESIDE}{stops}        return lambda: self.select(**given)\n")
    adapter, path = tmp_path / "adapter.py", tmp_path / "run.json"
    adapter.write_text(ADAPTER)
    path.write_text("the run before")
    code, *_ = bench(vlm_reroute, "--external", str(adapter), "--json", str(path))
    assert code == 130
    assert path.read_text() == "the run before"
    left = read("--from", tmp_path / "run.json.partial")
    assert [case["case"] for case in left["cases"]] == ["192 of 576 rows"]


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "is no Python file"), ("1 / 0", "ZeroDivisionError"), ("", "no callable 'target'")],
)
def test_an_adapter_that_cannot_be_loaded_is_refused(tmp_path, monkeypatch, content, words):
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = tmp_path / "adapter.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RerouteError, match=words):
        admission.admit([], [path])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cmd", "./port"], "a command is not timed"),
        (["--suite", "prefil"], "did you mean 'prefill'"),
        (["--device", "tpu"], "'tpu'"),
        (["--target", "no.such.module:factory"], "cannot be loaded"),
        (["--compare", "absent.json"], "cannot be read"),
        (["--from", "README.md"], "cannot be read"),
        (["--rounds", "1"], "Invalid value"),
    ],
)
def test_wrong_usage_is_one_error_and_exit_code_3(vlm_reroute, arguments, words):
    code, out, err = vlm_reroute("bench", *arguments)
    assert code == 3
    assert words in err
    assert out == ""


def test_without_matplotlib_the_page_names_what_to_install(vlm_reroute, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = vlm_reroute("bench", "--html", str(tmp_path / "page.html"))
    assert code == 3
    assert "pip install 'vlm-reroute[bench]'" in err


def test_help_waits_for_no_heavy_import():
    code = """
import sys
sys.argv = ["vlm-reroute", "bench", "--help"]
from reroute_conformance.cli import main
try:
    main()
finally:
    print("heavy:", {"torch", "transformers", "matplotlib", "jinja2"} & set(sys.modules) or "none")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "heavy: none" in done.stdout
    assert "conformance smoke" in done.stdout


def test_a_run_says_everything_of_every_case(record):
    for case in record["cases"]:
        assert {"reference", "optimized-torch"} - {*case["measured"], *case.get("unmeasured", {})} == set()
        for name, own in case["measured"].items():
            if case["suite"] == "memory":
                assert own["peak_bytes"] > 0
                continue
            assert own["rounds"] == 3
            assert 0 < own["quartiles_s"][0] <= own["median_s"] <= own["quartiles_s"][1]
            assert own["reached"] == own["floor"]["seconds"] / own["median_s"]
            assert (name == case["base"]) <= (own["faster"] == [1.0, 1.0, 1.0])
            assert ("reference" in case["measured"]) == ("of_reference" in own)
            assert (name == "reference") <= (own.get("of_reference") == [1.0, 1.0, 1.0])
    for cases in suites(record).values():
        cells = {len(row.cells) for case in cases for row in rows(case, cases) if not row.reason}
        assert cells == {len(columns(cases))}
    large = next(case for case in record["cases"] if case["case"] == "visual 40")
    assert "to be read" in large["unmeasured"]["reference"]
    prefill = next(case for case in record["cases"] if case["suite"] == "prefill")
    assert prefill["base"] == "unrouted"
    floors = {name: own["floor"]["flops"] for name, own in prefill["measured"].items()}
    assert floors["optimized-torch"] == floors["floor"] < floors["unrouted"]
    assert overhead(prefill["measured"]["floor"]) == (0, 0, 0)
    weighed = next(case for case in record["cases"] if case["suite"] == "memory")
    assert (
        weighed["measured"]["optimized-torch"]["kv_bytes"]
        == weighed["plan_kv_bytes"]
        < weighed["unrouted_kv_bytes"]
    )
    # measured, and what the cost model says
    assert weighed["measured"]["unrouted"]["kv_bytes"] == weighed["unrouted_kv_bytes"]
    held = {row.name: row.cells[:3] for row in rows(weighed, [weighed])}
    assert held["unrouted"][1:] == ("100%", "as planned")
    assert held["floor"] == ("", "", "")  # it shows no cache


def test_what_anybody_calls_itself_is_escaped(record):
    few = {**record, "cases": [case for case in record["cases"] if case["suite"] == "select"]}
    named = json.loads(json.dumps(few).replace("optimized-torch", "<script>$alert(1)$</script>"))
    assert "<script" not in page(named)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.0123, "12.3 ms"), (2.5, "2.5 s"), (1.234e-6, "1.23 µs"), (0.9996, "1000 ms")]
)
def test_durations_read_in_the_unit_that_fits(seconds, words):
    assert duration(seconds) == words


def test_a_ratio_is_told_with_its_quartiles():
    assert ratio([2.0, 1.9, 2.25]) == "2.00 (1.90-2.25)"
    assert ratio([123.4, 99.994, 130.0]) == "123 (99.99-130)"
    assert ratio([1.0, 1.0, 1.0]) == "1.00"


@pytest.mark.parametrize(("count", "words"), [(0, "no threads"), (1, "1 thread"), (2, "2 threads")])
def test_numbers_of_things_read_right(record, count, words):
    assert counted(count, "thread") == words
    assert counted(count, "try", "tries") == words.replace("thread", "try").replace("trys", "tries")
    machine = {**record["machine"], "threads": count}
    assert f"; {words}, float32" in machine_line({**record, "machine": machine})


def test_the_suites_under_pytest_name_the_plugin_that_they_need():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:benchmark", "-p", "no:cacheprovider", "benchmarks"],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert done.stderr.strip() == "ERROR: benchmarks need pytest-benchmark: pip install 'vlm-reroute[bench]'"
