"""What a person types and what a machine reads."""

import json
import shlex
import subprocess
import sys

import pytest


def test_help_waits_for_no_heavy_import():
    code = """
import sys
sys.argv = ["vlm-reroute", "--help"]
from reroute_conformance.cli import main
try:
    main()
finally:
    heavy = {"torch", "transformers", "hypothesis", "numpy"} & set(sys.modules)
    print("heavy:", heavy or "none")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "conform" in done.stdout
    assert "heavy: none" in done.stdout


@pytest.mark.usefixtures("few_cases")
def test_conform_prints_a_table_and_ends_in_the_verdict(vlm_reroute, tmp_path):
    """Of too few cases to conform; `make demo` and `make mutants` run all of them and end in CONFORMS."""
    code, out, _ = vlm_reroute(
        "conform", "--target", "reference", "--profiles", "core", "--report", str(tmp_path)
    )
    assert code == 2
    assert out.rstrip().splitlines()[-1].startswith("INCOMPLETE: not exercised: ")
    assert "select-nan" in out
    assert f"Report: {tmp_path / 'report.html'}" in out
    assert {path.name for path in tmp_path.iterdir()} == {
        "report.jsonl",
        "junit.xml",
        "report.html",
        "verdict.txt",
    }
    assert (tmp_path / "verdict.txt").read_text().splitlines()[-1] == out.rstrip().splitlines()[-1]
    assert json.loads((tmp_path / "report.jsonl").read_text().splitlines()[-1])["verdict"] == "INCOMPLETE"


def test_a_failing_target_gets_rule_ordinal_and_a_replay_line_that_works(vlm_reroute, tmp_path):
    target = "mutant:deferred-rows-run-through-the-mlp"
    code, out, _ = vlm_reroute(
        "conform", "--target", target, "--profiles", "stagewise", "--report", str(tmp_path)
    )
    assert code == 1
    assert "RR-BLOCK-001  A deferred row bypasses the whole block, bit for bit" in out
    assert "first differing ordinal" in out
    line = next(line for line in out.splitlines() if "replay: " in line)
    command = line.split("replay: vlm-reroute ")[1].split()
    code, out, _ = vlm_reroute(*command)
    assert code == 1
    assert "RR-BLOCK-001" in out
    code, out, _ = vlm_reroute(*command[:-1], "reference")
    assert code == 0
    assert out.strip().endswith("passes")


def test_json_goes_to_stdout_alone(vlm_reroute, tmp_path):
    code, out, _ = vlm_reroute(
        "conform", "--target", "reference", "--profiles", "stagewise", "--report", str(tmp_path), "--json"
    )
    records = [json.loads(line)["record"] for line in out.splitlines()]
    assert (records[0], set(records[1:-1]), records[-1]) == ("header", {"check"}, "footer")
    assert code == 2  # core was left out: something not exercised is never a pass
    assert json.loads(out.splitlines()[-1])["missing"] == ["profile core"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--target", "optimised-torch"], "did you mean 'optimized-torch'"),
        (["--target", "no.such.module:factory"], "cannot be loaded"),
        (["--target", "tests.conformance.wrong:absent"], "cannot be loaded"),
        (["--target", "tests.conformance.wrong:no_target"], "has no name, profiles"),
        (["--target", "tests.conformance.wrong:unknown_profile"], "'quantum'"),
        (["--target", "tests.conformance.wrong:not_callable"], "no callable 'not_callable'"),
        (["--target", "tests.conformance.wrong:factory_raises"], "ZeroDivisionError"),
        (["--target", "tests.conformance.wrong:factory_exits"], "SystemExit"),
        (["--target", "tests.conformance.wrong:profiles_are_a_number"], "give a frozenset of names"),
        (["--target", "tests.conformance.wrong:families_are_a_number"], "families: is a int"),
        (["--target", "tests.conformance.wrong:families_are_a_string"], "families: is a str"),
        (["--target", "tests.conformance.wrong:profiles_hold_a_list"], "are unknown"),
        (["--target", "tests.conformance.wrong:name_is_a_number"], "name: is 7"),
        (["--target", ":"], "is no package.module:factory"),
        (["--target", "reference", "--report", "README.md/report"], "cannot be written"),
        (["--target", "mutant:idempotent"], "known: "),
        (["--target", "reference", "--profiles", "core,moe"], "'moe' is not known"),
        (["--target", "tests.conformance.wrong:only_batch", "--profiles", "core"], "does not claim 'core'"),
        (["--tarket", "reference"], "No such option"),
        ([], "Missing option"),
    ],
)
def test_wrong_usage_is_one_error_and_exit_code_3(vlm_reroute, arguments, words):
    code, out, err = vlm_reroute("conform", *arguments)
    assert code == 3
    assert words in err
    assert out == ""


@pytest.mark.usefixtures("few_cases")
def test_a_run_leaves_nothing_of_the_run_before(vlm_reroute, tmp_path):
    target = "mutant:lowest-scores"
    vlm_reroute("conform", "--target", target, "--profiles", "core", "--report", str(tmp_path))
    assert list((tmp_path / "cases").iterdir())
    (tmp_path / "cases" / "mine.json").write_text("{}")
    report = (tmp_path / "report.jsonl").read_text()
    vlm_reroute("conform", "--target", "reference", "--profiles", "none", "--report", str(tmp_path))
    assert (tmp_path / "report.jsonl").read_text() == report  # a usage error leaves the last report alone
    vlm_reroute("conform", "--target", "reference", "--profiles", "stagewise", "--report", str(tmp_path))
    assert [path.name for path in (tmp_path / "cases").iterdir()] == ["mine.json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reroute_conformance.running.runner.run_suite", lambda *a, **k: 1 // 0)
        code, _, err = vlm_reroute("conform", "--target", "reference", "--report", str(tmp_path))
    assert code == 3
    assert "ZeroDivisionError" in err
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["report.jsonl"]


@pytest.mark.usefixtures("few_cases")
def test_a_replay_command_survives_a_folder_with_spaces(vlm_reroute, tmp_path):
    folder = tmp_path / "my reports"
    _, out, _ = vlm_reroute(
        "conform", "--target", "mutant:lowest-scores", "--profiles", "core", "--report", str(folder)
    )
    line = next(line for line in out.splitlines() if "replay: " in line)
    assert vlm_reroute(*shlex.split(line.split("replay: vlm-reroute ")[1]))[0] == 1


def test_replay_refuses_what_is_no_case(vlm_reroute, tmp_path):
    mixed = '{"check": "trace", "case": {"kind": "select", "bits": [0], "k": 0}}'
    for content in ("", "{}", mixed, '{"check": "trace", "case": {"kind": "decoder"}}'):
        path = tmp_path / "case.json"
        path.write_text(content)
        code, _, err = vlm_reroute("replay", str(path), "--target", "reference")
        assert code == 3
        assert "is no saved case" in err
