"""A target in two processes: each answer is judged, they have to agree, and one that dies or hangs is told, and soon."""

import time
from functools import partial

import pytest
from reroute_conformance.checks import checks
from reroute_conformance.running.finding import load_in_process
from reroute_conformance.running.runner import replay_case, run_check
from reroute_conformance.running.saved_failures import save_case
from reroute_conformance.targets.ranks import RankedTarget
from reroute_spec import RerouteError

CHECKS = {check.name: check for check in checks()}
RANKED = "tests.conformance.targets.ranked:"
PATIENCE = 3.0
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mood(tmp_path_factory):
    """What the second process does from now on."""
    path = tmp_path_factory.mktemp("mood") / "mood"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MOOD", str(path))
        path.write_text("good")
        yield path


@pytest.fixture(scope="module")
def target(mood):
    started = RankedTarget(partial(load_in_process, RANKED + "moody"), 2, PATIENCE)
    yield started
    started.close()


def judged(target, tmp_path):
    """The worked example, judged of what both processes say."""
    (example, *_) = CHECKS["example"].cases
    return replay_case(save_case(CHECKS["example"], "RR-ERR-003", example, tmp_path), target)


def test_every_check_of_the_core_can_be_asked_of_several_processes(target, mood):
    mood.write_text("good")
    assert (target.name, target.device) == ("moody", "cpu, two of them")
    assert {"core", "session", "prefix"} <= target.profiles
    assert not {"hf", "nuwa", "shards"} & target.profiles
    for check in CHECKS.values():
        if check.profile in ("core", "session", "prefix"):
            result = run_check(check, target, examples=2)
            assert result.failure is None, result.failure
            judges_runs = check.kind in ("trace", "route") and result.decisions
            assert bool(result.exercised["RR-EQV-008"]) >= bool(judges_runs)


def test_processes_that_decide_by_other_scores_break_the_rule_on_sharded_heads(target, mood, tmp_path):
    mood.write_text("other scores")
    (broken, *_) = judged(target, tmp_path).violations
    assert broken.rule == "RR-EQV-008"
    assert broken.where == "process 1"


def test_what_only_the_second_process_has_wrong_is_found_and_named(target, mood, tmp_path):
    mood.write_text("other logits")
    (broken, *_) = judged(target, tmp_path).violations
    assert broken.rule == "RR-BLOCK-004"  # the one on logits
    assert broken.where.startswith("process 1: ")


def test_a_nan_on_all_processes_is_blamed_on_the_scores(target, mood, tmp_path):
    mood.write_text("the same nan")
    broken = judged(target, tmp_path).violations
    assert broken
    assert all(violation.rule != "RR-EQV-008" for violation in broken)


def test_a_process_that_dies_is_told_and_the_next_request_finds_another(target, mood, tmp_path):
    mood.write_text("dies")
    (broken,) = judged(target, tmp_path).violations
    assert broken.rule == "RR-ERR-003"
    assert "process 1 of 2 ended with exit code 17 instead of answering" in broken.detail
    mood.write_text("good")
    assert not judged(target, tmp_path).violations


def test_a_process_that_hangs_is_given_up(target, mood, tmp_path):
    judged(target, tmp_path)
    mood.write_text("hangs")
    started = time.monotonic()
    (broken,) = judged(target, tmp_path).violations
    assert broken.rule == "RR-ERR-003"
    assert "process 1 of 2 did not answer within 8 s" in broken.detail
    assert time.monotonic() - started < 12


def test_a_process_that_waits_for_one_that_raised_says_so(mood, tmp_path):
    target = RankedTarget(partial(load_in_process, RANKED + "meeting"), 2, PATIENCE)
    mood.write_text("refuses, and nobody comes")
    started = time.monotonic()
    broken = judged(target, tmp_path).violations
    target.close()
    assert [violation.rule for violation in broken] == ["RR-ERR-003"]
    assert "process 0: RuntimeError" in broken[0].detail
    assert time.monotonic() - started < 10


def test_a_target_that_cannot_be_loaded_is_told_once(mood):
    with pytest.raises(RerouteError, match="no such kernel"):
        RankedTarget(partial(load_in_process, RANKED + "broken"), 2, PATIENCE)


def test_processes_are_given_with_a_target_and_one_job(vlm_reroute):
    code, _, said = vlm_reroute("conform", "--cmd", "true", "--nproc", "2")
    assert code == 3
    assert "--nproc: is given with --cmd" in said
    code, _, said = vlm_reroute("conform", "--target", "reference", "--nproc", "2", "--jobs", "2")
    assert code == 3
    assert "--jobs: 2 with --nproc 2" in said
    code, _, said = vlm_reroute("conform", "--target", "reference", "--nproc", "2", "--profiles", "hf")
    assert code == 3
    assert "'hf' is not asked of several processes" in said
    code, _, said = vlm_reroute("conform", "--target", "reference", "--nproc", "2", "--timeout", "-3")
    assert code == 3
    assert "--timeout: -3; give a number above 0" in said
