"""YAML schedules: ours, and the configurations of the paper's public release. No ratio passes through a binary float."""

from fractions import Fraction

import pytest
from reroute_spec import Decision, RerouteError, Schedule

OURS = """
action: reroute
decisions:
  - {layer: 3, keep: 0.2644}
  - layer: 7
    keep: 1/2
min_keep: 2
label: mine
"""
PDROP = """
# @package _global_
defaults: [/eval: pope, _self_]
routing:
  method: pdrop
  action: {action}
  monotonic: {monotonic}
  drop_layers: [2, 7, 15, 23]
  keep_ratios: {ratios}
eval: {{batch_size: 1, log_samples: true}}
"""
FASTV = "routing: {method: fastv, action: physical_delete, scoring_layer: 3, keep_ratio: 0.01916}"
PYRAMID = "[0.1392, 0.1392, 0.0696, 0.0348]"


def load(tmp_path, text, num_layers=32):
    path = tmp_path / "schedule.yaml"
    path.write_text(text)
    return Schedule.load(path, num_layers)


def pdrop(action="compact_route", monotonic="false", ratios=PYRAMID):
    return PDROP.format(action=action, monotonic=monotonic, ratios=ratios)


def test_our_own_form_reads_unquoted_ratios_exactly(tmp_path):
    schedule = load(tmp_path, OURS)
    assert schedule == Schedule("reroute", (Decision(3, "0.2644"), Decision(7, "1/2")), min_keep=2)
    assert schedule.decisions[0].keep == Fraction(2644, 10000)
    assert schedule.label == "mine"


@pytest.mark.parametrize(
    ("scalar", "keep"),
    [
        ("0.29", Fraction(29, 100)),
        ("1e-05", Fraction(1, 100000)),
        (".5", Fraction(1, 2)),
        ("1.0", Fraction(1)),  # a number with a point is a ratio
        ("'1'", Fraction(1)),
        ("1", 1),  # a row
        ("64", 64),
    ],
)
def test_a_scalar_is_a_ratio_unless_it_is_an_integer(tmp_path, scalar, keep):
    read = load(tmp_path, f"action: reroute\ndecisions: [{{layer: 3, keep: {scalar}}}]").decisions[0].keep
    assert read == keep
    assert type(read) is type(keep)


@pytest.mark.parametrize("action", ["compact_route", "compact_route_stagewise"])
@pytest.mark.parametrize("tier", ["yaml", "yml", "YAML"])
def test_the_releases_reroute_is_our_preset(tmp_path, action, tier):
    path = tmp_path / f"llava15_ours.{tier}"
    path.write_text(pdrop(action))
    schedule = Schedule.load(path)
    assert schedule == Schedule.load("reroute-pdrop-64")
    assert schedule.label == "llava15_ours, configuration of the public release"


def test_the_releases_pdrop_and_fastv_are_our_presets(tmp_path):
    text = pdrop("physical_delete", "true", "[0.2789, 0.0937, 0.0315, 0.0106]")
    assert load(tmp_path, text) == Schedule.load("pdrop-64")
    assert load(tmp_path, text.replace("  monotonic: true\n", "")) == Schedule.load("pdrop-64")
    assert load(tmp_path, FASTV) == Schedule.load("fastv-64")


def test_a_monotonic_reroute_admits_survivors_only(tmp_path):
    for text in (pdrop(monotonic="true"), pdrop().replace("  monotonic: false\n", "")):
        assert load(tmp_path, text).pool == "survivors"


def test_the_releases_baseline_decides_nothing(tmp_path):
    assert load(tmp_path, "routing: {method: none, action: none, keep_ratio: 1.0}").decisions == ()


def test_an_integer_ratio_of_the_release_is_a_ratio(tmp_path):
    assert load(tmp_path, pdrop(ratios="[1, 0.5, 0.5, 0.5]")).decisions[0].keep == Fraction(1)


REFUSED = [
    (OURS + "tau: 3", "tau"),
    (OURS + "label: twice", "label"),
    (OURS.replace("layer: 3", "layer: 3.0"), "decisions[0].layer"),
    (OURS.replace("layer: 3", "layer: 003"), "decisions[0].layer"),
    (OURS.replace("layer: 3", "layer: 40"), "decisions[1].layer"),
    (OURS.replace("0.2644", "half"), "decisions[0].keep"),
    (OURS.replace("0.2644", "true"), "decisions[0].keep"),
    (OURS.replace("0.2644", "!!float 0.2644"), "schedule"),
    (OURS.replace("action", "[action]"), "schedule"),
    (OURS.replace("action", "no"), "no"),
    (pdrop() + "model: llava", "model"),
    (pdrop().replace("drop_layers", "decision_layers"), "routing.decision_layers"),
    (pdrop().replace("  keep_ratios: " + PYRAMID + "\n", ""), "routing.keep_ratios"),
    (pdrop().replace("pdrop", "nuwa"), "routing.method"),
    (pdrop("full_kv"), "routing.action"),
    (pdrop("physical_delete"), "routing.monotonic"),
    (pdrop(monotonic="maybe"), "routing.monotonic"),
    (pdrop(ratios="[0.5]"), "routing.keep_ratios"),
    (pdrop(ratios="0.5"), "routing.keep_ratios"),
    (pdrop(ratios="[0.5, 0.5, null, 0.5]"), "routing.keep_ratios[2]"),
    (pdrop(ratios="[0.5, 0.5, 0, 0.5]"), "decisions[2].keep"),
    (pdrop().replace("[2, 7", "[2.0, 7"), "routing.drop_layers[0]"),
    (pdrop().replace("[2, 7", "[7, 7"), "decisions[1].layer"),
    (FASTV.replace("scoring_layer", "drop_layers"), "routing.drop_layers"),
    (FASTV.replace("0.01916", "[0.01916]"), "routing.keep_ratio"),
    ("routing: none", "routing"),
    ("routing: {method: none, action: none, keep_ratio: 0.5}", "routing.keep_ratio"),
    ("routing: {method: none, action: compact_route}", "routing.action"),
    ("", "schedule"),
    ("# nothing\n", "schedule"),
    ("- 1", "schedule"),
    ("reroute", "schedule"),
    ("action: [", "schedule"),
    ("--- a\n--- b", "schedule"),
    ("[" * 100_000, "schedule"),
    ("a: &a [*a]", "a"),
    ("action: reroute\ndecisions: [{layer: !!int '', keep: 1}]", "schedule"),
    ("action: reroute\ndecisions: [{layer: !!int '0x10', keep: 1}]", "schedule"),
    ("action: reroute\ndecisions: [{layer: !!bool maybe, keep: 1}]", "schedule"),
]


@pytest.mark.parametrize(("text", "field"), REFUSED, ids=[f"{i}-{f}" for i, (_, f) in enumerate(REFUSED)])
def test_refusals_name_the_field(tmp_path, text, field):
    with pytest.raises(RerouteError) as error:
        load(tmp_path, text)
    assert error.value.field == field
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path):
    with pytest.raises(RerouteError, match="cannot be read"):
        Schedule.load(tmp_path / "absent.yaml")
    path = tmp_path / "binary.yml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RerouteError, match="cannot be read"):
        Schedule.load(path)


def test_a_release_configuration_has_a_depth_like_any_explicit_schedule(tmp_path):
    with pytest.raises(RerouteError, match=r"decisions\[3\].layer: 23 in a decoder of 23 blocks"):
        load(tmp_path, pdrop(), 23)
