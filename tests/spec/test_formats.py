"""The data formats: schemas are valid, the documented examples are of their form, and so is what the project writes."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
from referencing import Registry, Resource
from reroute_conformance.reporting.records import Circumstances, to_records
from reroute_conformance.running.finding import load_target
from reroute_conformance.running.runner import run_suite
from reroute_conformance.targets import reference
from reroute_spec import SPEC_VERSION, RerouteError, RoutingTrace, Schedule
from reroute_spec.rules import rules
from reroute_spec.schemas import FORMATS, schema

from ..documents import changed

PAGE = (Path(__file__).parents[2] / "spec/FORMATS.md").read_text("utf-8")
EXAMPLES = re.findall(r"```json (\w+)\n(.*?)```", PAGE, re.DOTALL)
SCHEMAS = {name: schema(name) for name in FORMATS}
REGISTRY = Registry().with_resources(
    (content["$id"], Resource.from_contents(content)) for content in SCHEMAS.values()
)


def errors(name, data):
    validator = jsonschema.Draft202012Validator(SCHEMAS[name], registry=REGISTRY)
    return [error.message for error in validator.iter_errors(data)]


@pytest.mark.parametrize("name", FORMATS)
def test_a_schema_is_valid_versioned_and_documented(name):
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])
    assert re.fullmatch(rf"urn:vlm-reroute:{name}:\d+", SCHEMAS[name]["$id"])
    assert f"`{SCHEMAS[name]['$id']}`" in PAGE
    assert name in {example for example, _ in EXAMPLES}


@pytest.mark.parametrize(("name", "text"), EXAMPLES)
def test_the_documented_examples_are_of_their_form(name, text):
    data = json.loads(text)
    assert errors(name, data) == []
    assert errors(name, {**data, "surplus": 1}) != []
    if name == "schedule":
        assert Schedule.from_dict(data).to_dict()["decisions"] == data["decisions"]
    if name == "vector":
        assert set(data["rules"]) <= rules().keys()
        assert data["spec_version"] == SPEC_VERSION


@pytest.mark.parametrize("target", ["reference", "mutant:lowest-scores"])
def test_a_report_is_of_its_form(target):
    report = run_suite(load_target(target), ["core"], examples=3)
    records = json.loads(json.dumps(to_records(report, Circumstances({"torch": "x"}))))
    assert [error for record in records for error in errors("report", record)] == []
    assert any("failure" in record for record in records) == (target != "reference")


def test_a_traced_request_is_of_its_form():
    from reroute_conformance.cases.fixed import example

    case = example()
    answer = reference().run(case.model(), case.inputs(), case.routing())[0]
    assert errors("trace", json.loads(json.dumps(answer["trace"].to_dict()))) == []


@pytest.mark.parametrize(
    ("kind", "missing"),
    [("select", "k"), ("config", "num_layers"), ("route", "decoder"), ("session", "operations")],
)
def test_a_vector_has_the_inputs_of_its_kind(kind, missing):
    vector = {
        "id": "x",
        "kind": kind,
        "rules": ["RR-SEL-001"],
        "spec_version": "0.1",
        "oracle": "hand",
        "inputs": {},
        "expected": {"error": {"field": "k"}},
    }
    assert any(f"'{missing}' is a required property" in message for message in errors("vector", vector))


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("num_rows",), "6", "num_rows"),
        (("kv_rows",), "6444", "kv_rows"),
        (("visual_rows",), [1, -2], "visual_rows[1]"),
        (("surplus",), 1, "trace.surplus"),
        (("decisions",), {}, "decisions"),
        (("decisions", 0, "pool"), [0.5], "decisions[0].pool[0]"),
        (("decisions", 1, "scores"), ["high"], "decisions[1].scores"),
        (("decisions", 1, "margin"), "wide", "decisions[1].margin"),
        (("decisions", 0, "would_select"), 3, "decisions[0].would_select"),
        (("decisions", 0, "rows"), [], "decisions[0].rows"),
    ],
)
def test_a_trace_of_another_form_is_refused_by_its_field(path, value, field):
    data = json.loads(next(text for name, text in EXAMPLES if name == "trace"))
    assert RoutingTrace.from_dict(data).to_dict() == data
    other = changed(data, path, value)
    with pytest.raises(RerouteError) as refused:
        RoutingTrace.from_dict(other)
    assert refused.value.field == field
    assert errors("trace", other) != []


def test_a_trace_lacks_nothing():
    data = json.loads(next(text for name, text in EXAMPLES if name == "trace"))
    del data["decisions"][0]["would_select"]
    with pytest.raises(RerouteError, match=r"decisions\[0\]\.would_select: is missing"):
        RoutingTrace.from_dict(data)
