"""The suite's target over several processes: heads are divided where they can be, and what is shown is of all of them."""

import math
import os
import sys
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from reroute_conformance.cases.case import Row
from reroute_conformance.cases.decoder import DecoderCase, decoder_config
from reroute_conformance.checks import checks
from reroute_conformance.running.finding import load_in_process
from reroute_conformance.running.runner import run_check
from reroute_conformance.targets.ranks import RankedTarget
from reroute_optimized import routed
from reroute_optimized.conforming.canonical import build
from reroute_optimized.conforming.ranks import in_processes, shared
from reroute_optimized.conforming.target import torch_target
from reroute_spec import Decision, RerouteError, Schedule
from torch.testing import assert_close

pytestmark = pytest.mark.slow
SCHEDULE = Schedule("reroute", (Decision(1, "0.5"), Decision(3, "0.25")))


@pytest.fixture(scope="module", autouse=True)
def _importable():
    """What is asked of other processes is found there by name."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "path", [str(Path(__file__).parents[3]), *sys.path])
        yield


def decoder(kv_heads=2, **rest):
    config = decoder_config(4, heads=4, kv_heads=kv_heads, **rest)
    return DecoderCase(SCHEDULE.to_dict(), [Row("tvvvvvvtt", 1), Row("ttvvvvtvt", 2)], config=config)


def divided_among(model):
    with routed(shared(build(*model)), SCHEDULE) as result:
        return result.shards, torch.distributed.get_rank()


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (decoder(), 2),
        (decoder(attention_bias=True), 2),
        (decoder(qk_norm=True), 2),
        (decoder(kv_heads=1), 1),
        (decoder(mrope_section=(2, 1, 1), mrope_interleaved=True, qk_norm=True), 1),  # Qwen3-VL has no plan
    ],
    ids=["llama", "qwen2", "qwen3", "one key head", "qwen3-vl"],
)
def test_heads_are_divided_where_there_is_a_plan_and_they_can_be(case, expected):
    assert in_processes(divided_among, 2, case.model()) == [(expected, 0), (expected, 1)]


@pytest.mark.parametrize("shards", [2, 4])
def test_every_process_shows_all_heads(shards):
    case = decoder(kv_heads=4)
    one = torch_target().run(case.model(), case.inputs(), SCHEDULE)
    ranks = torch_target().run_shards(case.model(), case.inputs(), SCHEDULE, shards)
    assert len(ranks) == shards
    for rank in ranks:
        for request, (expected, found) in enumerate(zip(one, rank, strict=True)):
            trace, first = found["trace"], ranks[0][request]["trace"]
            assert [d.selected for d in trace.decisions] == [d.selected for d in expected["trace"].decisions]
            assert [d.scores for d in trace.decisions] == [d.scores for d in first.decisions]
            for name in ("keys", "values"):
                for mine, theirs in zip(found[name], expected[name], strict=True):
                    assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
            assert_close(found["logits"], expected["logits"], atol=1e-4, rtol=1e-4)


def test_a_transformers_model_is_not_sent_to_other_processes():
    with pytest.raises(RerouteError, match=r"^model"):
        torch_target().run_shards(build(*decoder().model()), {}, SCHEDULE, 2)


def departs():
    if torch.distributed.get_rank():
        os._exit(17)


def test_processes_are_made_anew_after_one_died():
    with pytest.raises(BrokenProcessPool):
        in_processes(departs, 2)
    assert in_processes(divided_among, 2, decoder().model()) == [(2, 0), (2, 1)]


def test_the_suite_in_two_processes_finds_nothing_wrong():
    target = RankedTarget(partial(load_in_process, "optimized-torch"), 2)
    try:
        assert target.device == "cpu, heads divided among 2 processes where they can be"
        for check in checks():
            if check.name in ("example", "trace", "trace-nan", "trace-batch", "session"):
                result = run_check(check, target, examples=4)
                assert result.failure is None, result.failure
    finally:
        target.close()


def test_a_process_that_multiprocessing_started_ends_although_it_had_processes_of_its_own():
    """As those of `conform --jobs` do."""
    process = get_context("spawn").Process(target=in_processes, args=(math.sqrt, 2, 4.0))
    process.start()
    process.join(100)
    ended = process.exitcode
    process.kill()
    assert ended == 0
