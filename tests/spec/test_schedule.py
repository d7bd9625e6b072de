"""RR-CFG: every refusal names the field; what is accepted survives a round trip."""

import json
from fractions import Fraction

import jsonschema
import pytest
from reroute_spec import Decision, RerouteError, Schedule, ScoreRule, presets
from reroute_spec.budget import format_keep, parse_keep
from reroute_spec.schemas import schema

GOOD = {"action": "reroute", "decisions": [{"layer": 3, "keep": "0.2644"}, {"layer": 7, "keep": "1/2"}]}


def with_changes(**changes):
    return {**GOOD, **changes}


def decisions(*pairs):
    return [{"layer": layer, "keep": keep} for layer, keep in pairs]


REFUSED = [
    ({"decisions": []}, "action"),
    ({"action": "reroute"}, "decisions"),
    (with_changes(action="defer"), "action"),
    (with_changes(action=None), "action"),
    (with_changes(actoin="reroute"), "actoin"),
    (with_changes(decisions="3:0.5"), "decisions"),
    (with_changes(decisions={"layer": 3}), "decisions"),
    (with_changes(decisions=[3]), "decisions[0]"),
    (with_changes(decisions=[{"layer": 3}]), "decisions[0].keep"),
    (with_changes(decisions=[{"keep": "1"}]), "decisions[0].layer"),
    (with_changes(decisions=[{"layer": 3, "keep": "1", "ratio": 1}]), "decisions[0].ratio"),
    (with_changes(decisions=decisions((-1, "1"))), "decisions[0].layer"),
    (with_changes(decisions=decisions((True, "1"))), "decisions[0].layer"),
    (with_changes(decisions=decisions((2.5, "1"))), "decisions[0].layer"),
    (with_changes(decisions=decisions(("3", "1"))), "decisions[0].layer"),
    (with_changes(decisions=decisions((3, "1"), (3, "1"))), "decisions[1].layer"),
    (with_changes(decisions=decisions((3, "1"), (2, "1"))), "decisions[1].layer"),
    (with_changes(decisions=decisions((3, 0.2644))), "decisions[0].keep"),
    (with_changes(decisions=decisions((3, float("nan")))), "decisions[0].keep"),
    (with_changes(decisions=decisions((3, float("inf")))), "decisions[0].keep"),
    (with_changes(decisions=decisions((3, True))), "decisions[0].keep"),
    (with_changes(decisions=decisions((3, None))), "decisions[0].keep"),
    (with_changes(decisions=decisions((3, 0))), "decisions[0].keep"),
    (with_changes(decisions=decisions((3, -4))), "decisions[0].keep"),
    (with_changes(decisions=decisions((3, "0"))), "decisions[0].keep"),
    (with_changes(decisions=decisions((3, "1.0001"))), "decisions[0].keep"),
    (with_changes(decisions=decisions((3, "-0.5"))), "decisions[0].keep"),
    (with_changes(decisions=decisions((3, "half"))), "decisions[0].keep"),
    (with_changes(decisions=decisions((3, "1/0"))), "decisions[0].keep"),
    (with_changes(decisions=decisions((3, "1e-9999999"))), "decisions[0].keep"),
    (with_changes(decisions=decisions((3, ""))), "decisions[0].keep"),
    (with_changes(decisions=decisions((3, "0.5"), (7, 64))), "decisions[1].keep"),
    (with_changes(action="delete", decisions=decisions((3, "0.5"), (7, "0.6"))), "decisions[1].keep"),
    (with_changes(action="delete", decisions=decisions((3, 5), (7, 6))), "decisions[1].keep"),
    (with_changes(action="delete", decisions=decisions((3, 5)), pool="all"), "pool"),
    (with_changes(pool="some"), "pool"),
    (with_changes(pool=None), "pool"),
    (with_changes(scope="video"), "scope"),
    (with_changes(positions="renumber"), "positions"),
    (with_changes(positions="keep"), "positions"),
    (with_changes(min_keep=0), "min_keep"),
    (with_changes(min_keep="1"), "min_keep"),
    (with_changes(label=3), "label"),
    (with_changes(score="own"), "score"),
    (with_changes(score={"source": "mine"}), "score.source"),
    (with_changes(score={"rows": 3}), "score.rows"),
    (with_changes(score={"query": "last_n", "n": 0}), "score.n"),
    (with_changes(score={"n": 3}), "score.n"),
    (with_changes(score={"heads": "sum"}), "score.heads"),
    (with_changes(score={"source": "previous"}), "score.source"),
    (with_changes(score={"source": "previous"}, decisions=decisions((0, "1"))), "score.source"),
]


@pytest.mark.parametrize(
    ("data", "field"), REFUSED, ids=[f"{i}-{field}" for i, (_, field) in enumerate(REFUSED)]
)
def test_refusals_name_the_field(data, field):
    with pytest.raises(RerouteError) as error:
        Schedule.from_dict(data)
    assert error.value.field == field
    assert error.value.remedy


def test_a_layer_beyond_the_decoder_is_refused_by_name():
    schedule = Schedule.from_dict(GOOD)
    assert schedule.validate(8) is schedule
    with pytest.raises(RerouteError, match=r"decisions\[1\].layer: 7 in a decoder of 7 blocks"):
        schedule.validate(7)


def test_a_float_is_refused_with_its_string_as_remedy():
    with pytest.raises(RerouteError, match=r'write it as the string "0.2644"'):
        Schedule.from_dict(with_changes(decisions=decisions((3, 0.2644))))


@pytest.mark.parametrize(
    ("value", "exact"),
    [
        ("0.2644", Fraction(2644, 10000)),
        ("1/2", Fraction(1, 2)),
        ("1e-05", Fraction(1, 100000)),
        ("1", Fraction(1)),
        (".5", Fraction(1, 2)),
        (64, 64),
        (64.0, 64),
    ],
)
def test_keeps_are_exact(value, exact):
    assert parse_keep(value) == exact
    assert parse_keep(format_keep(parse_keep(value))) == exact


def test_the_string_one_is_a_ratio_and_the_number_one_is_a_row():
    assert isinstance(parse_keep("1"), Fraction)
    assert type(parse_keep(1.0)) is int
    assert format_keep(Fraction(1)) == "1"
    assert format_keep(1) == 1


def test_unusual_ratios_keep_their_value_as_data():
    assert format_keep(Fraction(1, 3)) == "1/3"
    assert format_keep(Fraction(1, 100000)) == "0.00001"


@pytest.mark.parametrize("name", presets())
@pytest.mark.parametrize("num_layers", [28, 32, 36, 12])
def test_presets_round_trip_and_match_the_schema(name, num_layers):
    schedule = Schedule.load(name, num_layers).validate(num_layers)
    data = json.loads(json.dumps(schedule.to_dict()))
    assert Schedule.from_dict(data) == schedule
    assert Schedule.from_dict(data).label == schedule.label
    jsonschema.validate(data, schema("schedule"))


def test_a_minimal_schedule_gets_the_defaults():
    schedule = Schedule.from_dict({"action": "delete", "decisions": []})
    assert schedule == Schedule("delete", (), ScoreRule(), "survivors", "request", "preserve", 1)
    assert Schedule("reroute", [Decision(3, "0.5")]).decisions == (Decision(3, Fraction(1, 2)),)
    hash(schedule)


def test_pool_follows_the_action():
    assert Schedule.from_dict(GOOD).pool == "all"
    assert Schedule.from_dict(with_changes(pool="survivors")).pool == "survivors"
    assert Schedule("delete", (Decision(1, 2),)).pool == "survivors"


def test_previous_is_allowed_where_every_candidate_ran():
    one = with_changes(score={"source": "previous"}, decisions=decisions((2, "0.5")))
    survivors = with_changes(score={"source": "previous"}, pool="survivors")
    assert Schedule.from_dict(one).score.source == Schedule.from_dict(survivors).score.source == "previous"


def test_schedules_load_from_json_files(tmp_path):
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps(GOOD))
    assert Schedule.load(path, 8) == Schedule.from_dict(GOOD)
    with pytest.raises(RerouteError, match=r"decisions\[1\].layer"):
        Schedule.load(str(path), 6)
    path.write_text('{"action": "reroute", "action": "delete", "decisions": []}')
    with pytest.raises(RerouteError, match="action: is given twice"):
        Schedule.load(path)
    path.write_text("action: reroute")
    with pytest.raises(RerouteError, match="is no JSON"):
        Schedule.load(path)
    with pytest.raises(RerouteError, match="cannot be read"):
        Schedule.load(tmp_path / "absent.json")


def test_an_unknown_preset_is_refused_with_the_nearest_name():
    with pytest.raises(RerouteError, match="did you mean 'reroute-fastv-192'"):
        Schedule.load("reroute-fastv-1922")


PUBLISHED = [name for name in presets() if "nuwa" not in name and "original" not in name]


def test_there_are_four_methods_and_three_tiers_beside_the_original_methods():
    assert len(PUBLISHED) == 12
    assert len(presets()) == 12 + 2 + 2 * 3
    assert [d.layer for d in Schedule.load("reroute-fastv-64", 28).decisions] == [3, 6, 13, 20]
    assert [d.layer for d in Schedule.load("pdrop-64", 28).decisions] == [2, 6, 13, 20]


def test_the_original_methods_are_as_their_own_code_runs_them():
    fastv, pdrop = Schedule.load("fastv-original"), Schedule.load("pdrop-original")
    assert fastv == Schedule("delete", (Decision(2, "1/2"),), score=ScoreRule("previous"))
    halves = (Decision(8, "1/2"), Decision(16, "1/4"), Decision(24, "1/8"))
    assert pdrop == Schedule("delete", halves, positions="renumber")
    for tier, count in (("64", 16), ("128", 32), ("192", 48)):
        nuwa, rerouted = Schedule.load(f"nuwa-{tier}"), Schedule.load(f"reroute-nuwa-{tier}")
        assert nuwa == Schedule("delete", (Decision(16, count),), score=ScoreRule("previous"))
        assert rerouted == Schedule("reroute", tuple(Decision(layer, count) for layer in (16, 20, 24, 28)))
    rule = ScoreRule("previous", "last_n", "max", 3)
    assert Schedule.load("nuwa-64", 28) == Schedule("delete", (Decision(15, "1/10"),), score=rule)


@pytest.mark.parametrize("name", ["fastv-original", "nuwa-64"])
def test_a_preset_that_reads_a_block_without_plain_attention_is_refused(name):
    with pytest.raises(RerouteError, match=r"preset: .* would read block \d+, which has no plain attention"):
        Schedule.load(name, 32, range(3, 32, 4))
    assert Schedule.load(name, 32, range(32)) == Schedule.load(name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_scaling_reproduces_the_published_28_block_layers(name):
    published = [d.layer for d in Schedule.load(name, 28).decisions]
    layers = [d.layer for d in Schedule.load(name, 32).decisions]
    assert [int(layer * 28 / 32 + 0.5) for layer in layers] == published


def test_the_label_says_whether_layers_are_published_or_scaled():
    assert Schedule.load("pdrop-64", 28).label == "pdrop-64, 28 blocks, published"
    assert Schedule.load("pdrop-64", 40).label == "pdrop-64, 40 blocks, scaled from 32 blocks"


def test_a_preset_that_cannot_keep_its_decisions_apart_is_refused():
    with pytest.raises(RerouteError, match="scaled to 6 blocks would decide at blocks"):
        Schedule.load("reroute-fastv-64", 6)


def test_the_schema_refuses_what_it_can_say():
    for data in ({"action": "reroute"}, with_changes(extra=1), with_changes(decisions=decisions((3, 0.5)))):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(data, schema("schedule"))


@pytest.mark.parametrize("keep", ["1e-40", "0." + "0" * 38 + "1", "1/3", f"1/{10**40}", f"1/{2**100}"])
def test_whatever_keep_is_accepted_survives_its_own_json(keep):
    schedule = Schedule("reroute", (Decision(1, keep),))
    assert Schedule.from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule


@pytest.mark.parametrize("keep", ["1e-41", Fraction(1, 3**100)])
def test_a_keep_with_more_digits_than_can_be_written_is_refused(keep):
    with pytest.raises(RerouteError, match="too many digits"):
        Decision(1, keep)


@pytest.mark.parametrize("keep", [float("nan"), float("inf"), 1.5, -0.5])
def test_no_remedy_is_offered_that_would_be_refused(keep):
    with pytest.raises(RerouteError, match="a ratio is a string in"):
        Decision(1, keep)


def test_load_says_what_it_takes(tmp_path):
    for wrong in (None, {"action": "reroute"}, 3):
        with pytest.raises(RerouteError, match="give a Schedule, the name of a preset or the path"):
            Schedule.load(wrong)
    path = tmp_path / "schedule.txt"
    path.write_text("{}")
    with pytest.raises(RerouteError, match=r"does not end in \.json"):
        Schedule.load(path)
    path = tmp_path / "deep.json"
    for text in ("[" * 100_000, '{"min_keep": 1' + "0" * 5000 + "}"):
        path.write_text(text)
        with pytest.raises(RerouteError, match="is no JSON"):
            Schedule.load(path)
