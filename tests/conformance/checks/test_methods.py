"""Presets, the methods' variants, M-RoPE, low precision and Nüwa's first stage: what the suite says where a target is off."""

import json

import pytest
import torch
from reroute_conformance.cases.low_precision import LowCase
from reroute_conformance.cases.mrope import coordinates
from reroute_conformance.checks import checks
from reroute_conformance.judging.nuwa import best_of_regions
from reroute_conformance.judging.presets import stated
from reroute_conformance.mutants.mutant import Mutant, patched
from reroute_conformance.protocol import DTYPES, dtypes_of
from reroute_conformance.reporting.records import Circumstances, to_records
from reroute_conformance.running.results import INCOMPLETE, Report
from reroute_conformance.running.runner import run_check, run_suite
from reroute_conformance.targets import ReferenceTarget, reference
from reroute_reference import CanonicalDecoder
from reroute_reference.routing import score
from reroute_spec import RerouteError, presets

CHECKS = {check.name: check for check in checks()}


def test_every_preset_is_stated():
    assert sorted(stated()) == sorted(presets())
    assert {what.rule for what in stated().values()} == {"RR-CFG-010", "RR-CFG-013"}
    pyramid = stated()["reroute-pdrop-192"]
    assert pyramid.layers == {32: [2, 7, 15, 23], 28: [2, 6, 13, 20]}
    assert list(pyramid.keeps) == [".4502", ".4502", ".2251", ".1126"]
    assert list(stated()["reroute-fastv-64"].keeps) == [".01916"] * 4


def test_text_goes_on_after_the_largest_coordinate_of_an_image():
    assert coordinates("tvvvvvt", (2, 2)).tolist() == [
        [0, 1, 1, 1, 1, 2, 3],
        [0, 1, 1, 2, 2, 1, 3],
        [0, 1, 2, 1, 2, 1, 3],
    ]


def test_the_best_of_regions_go_to_the_lower_patch():
    first_of_region = [row * 24 + column for row in range(0, 24, 2) for column in range(0, 24, 2)]
    assert sorted(best_of_regions([1.0] * 576, "64")) == first_of_region[:112]


def off_by_a_fifth(*given, **rest):
    """Scores within what bfloat16 allows, of which decisions are made that float32 does not."""
    values = score(*given, **rest)
    noise = torch.rand(len(values), generator=torch.Generator().manual_seed(len(values)))
    return (torch.tensor(values) * (0.8 + 0.4 * noise)).tolist()


def test_decisions_of_low_precision_are_reported_and_fail_nothing():
    fault = Mutant("noise", "RR-NUM-002", "trace", {"reroute_reference.routing.score": off_by_a_fifth})
    result = run_check(CHECKS["trace-bfloat16"], patched(fault))
    assert result.failure is None
    assert result.differing > 0
    report = Report("noise", ("low-precision",), [result])
    assert report.failures == []
    line = json.loads(json.dumps(to_records(report, Circumstances({}))[1]))
    assert line["differing"] == result.differing
    assert run_check(CHECKS["trace"], patched(fault)).failure is not None


def test_a_target_is_asked_for_the_precisions_that_it_names():
    class Half(ReferenceTarget):
        dtypes = frozenset({"float32", "float16"})

    class Single(ReferenceTarget):
        dtypes = frozenset({"float32"})

    assert dtypes_of(reference()) == DTYPES
    report = run_suite(Half(), ["low-precision"], examples=2)
    assert {result.check.dtype for result in report.results} == {"float16"}
    report = run_suite(Single(), ["low-precision"], examples=2)
    assert report.results == []
    assert report.verdict == INCOMPLETE
    assert "profile low-precision" in report.missing


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_of_low_precision_are_the_same_for_target_and_oracle(dtype):
    case = next(case for case in CHECKS[f"wide-{dtype}"].cases if isinstance(case, LowCase))
    narrow, wide = case.reference_model(case.precision), case.reference_model(torch.float64)
    assert isinstance(narrow, CanonicalDecoder)
    for name, weight in case.model()[1].items():
        assert weight.dtype == case.precision
        assert torch.equal(weight.double(), wide.weights[name])
        assert torch.equal(weight, narrow.weights[name])
    assert case.inputs()["inputs_embeds"].dtype == case.precision


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metric": None}, "metric is NoneType"),
        ({"pillars": [[0, "1"]]}, "pillars are no 1 lists"),
        ({"pillars": [[576]]}, "pillars are no 1 lists"),
        ({"metric": torch.zeros(2, 576)}, "another number of images"),
        ({"visual_mask": torch.zeros(1, 3)}, "expected integers"),
    ],
)
def test_a_first_stage_of_another_form_is_malformed(change, words):
    class Malformed(ReferenceTarget):
        def first_stage(self, *given):
            return {**super().first_stage(*given), **change}

    result = run_check(CHECKS["nuwa"], Malformed())
    assert result.failure.violation.rule == "RR-ERR-003"
    assert words in result.failure.violation.detail


def test_a_schedule_that_cannot_be_read_is_malformed():
    class Malformed(ReferenceTarget):
        def schedule(self, *given):
            return {**super().schedule(*given), "budget": 1}

    for name in ("preset", "read-back"):
        violation = run_check(CHECKS[name], Malformed(), examples=20).failure.violation
        assert violation.rule == "RR-ERR-003"
        assert "is no schedule" in violation.detail


@pytest.mark.parametrize(("layer", "attention_blocks"), [(9, None), (4, [3, 7])])
def test_the_reference_holds_a_schedule_against_its_decoder(layer, attention_blocks):
    data = {"action": "reroute", "decisions": [{"layer": layer, "keep": "1/2"}]}
    with pytest.raises(RerouteError) as refused:
        ReferenceTarget().schedule(data, 8, attention_blocks)
    assert refused.value.field == "decisions[0].layer"
