"""What changed since an earlier run: what moved beyond noise, what only one run has, and nothing else."""

import copy

import pytest
from reroute_conformance.bench.presenting.compare import Unpaired, changes, compare, same_machine, unpaired
from reroute_conformance.bench.presenting.tables import moved, untold


def of(record, suite):
    return next(case for case in record["cases"] if case["suite"] == suite)


@pytest.fixture
def runs(record):
    """Two equal runs of an idle machine, whatever this one was busy with."""
    old, new = copy.deepcopy(record), copy.deepcopy(record)
    for run in (old, new):
        for case in run["cases"]:
            if "spread" in case:
                case["spread"] = 0.01
    return old, new


def test_a_comparison_tells_what_moved_beyond_noise_and_nothing_else(runs):
    old, new = runs
    assert changes(old, new) == []
    for run, faster in ((old, [2.0, 1.9, 2.1]), (new, [6.0, 5.9, 6.1])):
        of(run, "prefill")["measured"]["optimized-torch"]["faster"] = faster
    prefill = of(new, "prefill")
    own = prefill["measured"]["optimized-torch"]
    (change,) = changes(old, new)
    assert (change.suite, change.name, change.what, change.better) == (
        "prefill",
        "optimized-torch",
        "times unrouted's speed",
        True,
    )
    assert moved(change) == (
        "prefill, small prefill, optimized-torch: times unrouted's speed 2 (1.9-2.1) → 6 (5.9-6.1), better"
    )
    assert [moved.better for moved in changes(new, old)] == [False]
    prefill["spread"] = 0.5  # nobody knows what a busy machine says
    assert changes(old, new) == []
    assert compare(old, new).disturbed == [("prefill", "small prefill")]
    prefill["spread"], own["faster"][1] = 0.01, 0.0  # quartiles that meet explain any median
    assert changes(old, new) == []


def test_seconds_are_compared_on_the_same_machine_alone(runs):
    old, new = runs
    for case in new["cases"]:
        for own in case["measured"].values():
            if "median_s" in own:
                own["median_s"] *= 2
                own["quartiles_s"] = [2 * value for value in own["quartiles_s"]]
    assert same_machine(old, new)
    assert {change.what for change in changes(old, new)} <= {"seconds"}
    new["machine"]["processor"] = "another"
    assert changes(old, new) == []
    assert not compare(old, new).same_machine


def test_bytes_that_differ_at_all_are_told_in_the_same_dtype(runs):
    old, new = runs
    own = of(new, "memory")["measured"]["optimized-torch"]
    before = own["kv_bytes"]
    own["kv_bytes"] += 4
    (change,) = changes(old, new)
    assert moved(change) == f"memory, small memory, optimized-torch: KV bytes {before} → {before + 4}, worse"
    assert [change.better for change in changes(new, old)] == [True]
    new["machine"]["dtype"] = "bfloat16"
    assert changes(old, new) == []


def test_what_only_one_run_has_is_named_once(runs):
    old, new = runs
    assert unpaired(old, new) == []
    new["cases"] = [
        case for case in new["cases"] if case["suite"] != "decode" and case["case"] != "visual 20"
    ]
    del of(old, "prefill")["measured"]["optimized-torch"]
    of(new, "select")["case"] = "another"
    assert unpaired(old, new) == [
        Unpaired("decode", "", "", False),
        Unpaired("select", "small select", "", False),
        Unpaired("scaling", "visual 20", "", False),
        Unpaired("select", "another", "", True),
        Unpaired("prefill", "small prefill", "optimized-torch", True),
    ]
    assert [untold(entry) for entry in unpaired(old, new)][::4] == [
        "suite decode: not in this run",
        "prefill, small prefill, optimized-torch: new in this run",
    ]
