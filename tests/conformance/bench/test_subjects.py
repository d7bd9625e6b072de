"""Who is measured does the work that is measured, any number of times, and leaves everybody else's model alone."""

from itertools import product

import pytest
import torch
from reroute_conformance.bench.measuring import memory
from reroute_conformance.bench.measuring.models import decoder, own
from reroute_conformance.bench.measuring.subjects import (
    UnmeasuredError,
    attention_map,
    plain,
    subject_of,
    unrouted,
)
from reroute_conformance.bench.measuring.suites import SUITES
from reroute_conformance.protocol import WORKS
from reroute_conformance.running.finding import load_target
from reroute_conformance.targets import ReferenceTarget
from torch.testing import assert_close

from . import small

TARGETS = ("reference", "optimized-torch")


def measured(name):
    return subject_of(load_target(name), name)


@pytest.mark.parametrize(("target", "kind"), list(product(TARGETS, WORKS)))
def test_our_targets_do_every_kind_of_work_as_often_as_they_are_called(target, kind):
    call = measured(target).prepare(small.WORKS[kind](small.CPU))
    with torch.no_grad():
        for _ in range(3):
            call()


@pytest.mark.parametrize("kind", [kind for kind in WORKS if kind not in ("select", "score")])
def test_the_unrouted_model_does_what_a_model_does(kind):
    call = unrouted().prepare(small.WORKS[kind](small.CPU))
    with torch.no_grad():
        for _ in range(3):
            call()


def test_a_target_that_prepares_nothing_is_timed_by_select_and_run():
    asked = []

    class Bare(ReferenceTarget):
        profiles = frozenset({"core"})
        prepare = None

        def run(self, model, inputs, schedule, **more):
            asked.append(type(model))
            return super().run(model, inputs, schedule, **more)

    subject = subject_of(Bare(), "bare")
    assert subject.prepare(small.WORKS["select"](small.CPU))() == load_target("reference").select(
        small.WORKS["select"](small.CPU).data["scores"], 9
    )
    subject.prepare(small.WORKS["prefill"](small.CPU))()
    assert asked == [tuple, tuple]  # who claims no transformers models gets a canonical decoder
    for kind in ("score", "decode", "reorder"):
        with pytest.raises(UnmeasuredError, match=kind):
            subject.prepare(small.WORKS[kind](small.CPU))


def test_a_target_that_raises_is_not_measured_and_says_why():
    class Raises(ReferenceTarget):
        def prepare(self, work, given):
            return lambda: 1 // 0

    with pytest.raises(UnmeasuredError, match="ZeroDivisionError"):
        subject_of(Raises(), "raises").prepare(small.WORKS["prefill"](small.CPU))


def test_scores_are_those_of_the_attention_map():
    work = small.WORKS["score"](small.CPU)
    ours, reference = (measured(name).prepare(work)() for name in reversed(TARGETS))
    with torch.no_grad():
        whole = attention_map().prepare(work)()
    assert_close(ours, whole)
    assert_close(torch.tensor([reference]), whole[:, list(work.plan.visual_rows)])


def test_the_floor_fills_caches_with_the_plans_rows():
    work = small.WORKS["prefill"](small.CPU)
    cache = measured("optimized-torch").prepare(work)()
    assert [cache.get_seq_length(layer) for layer in range(4)] == list(work.plan.kv_rows)
    assert plain().prepare(work)().shape == (2, 1, 1000)
    assert unrouted().prepare(work)().get_seq_length() == 26


def test_a_model_of_ones_own_shares_weights_and_no_modules():
    model = decoder(small.SHAPE, small.CPU)
    mine = own(model)
    assert all(a is b for a, b in zip(model.parameters(), mine.parameters(), strict=True))
    assert not set(map(id, model.modules())) & set(map(id, mine.modules()))


@pytest.mark.parametrize("target", TARGETS)
def test_what_a_target_holds_is_what_the_plan_says(target):
    work = small.WORKS["prefill"](small.CPU)
    held = memory.kv_bytes(load_target(target), work)
    assert held == 2 * sum(work.plan.kv_rows) * 2 * small.SHAPE.key_size * 4


def test_more_requests_fit_the_fewer_rows_they_keep():
    for entry in memory.fits(("reroute-fastv-192", "reroute-fastv-64")):
        assert 0 < entry["unrouted"] < entry["routed"]


def test_every_case_has_a_name_of_its_own():
    names = [(case.suite, case.name) for make in SUITES.values() for case in make()]
    assert len(set(names)) == len(names)
    prefills = [case.name for case in SUITES["prefill"]()]
    assert prefills == ["reroute-fastv-192", "reroute-fastv-64"]
    ends = {case.axis: case.parameters[case.axis] for case in SUITES["scaling"]()}
    assert ends == {"visual": 8192, "batch": 64, "decisions": 8, "blocks": 64}
