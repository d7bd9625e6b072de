"""A schedule scaled to an average: the average is met, the ratios say so exactly, and the rest stays as it was."""

import json
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reroute_spec import Decision, RerouteError, Schedule, fit_average, plan, presets
from reroute_spec.budget import format_keep
from reroute_spec.plan import visual_flags


def averages(schedule, num_layers, num_visual):
    return plan(schedule, num_layers, visual_flags(num_visual, 1)).average_visual


def keeps(schedule):
    return [format_keep(decision.keep) for decision in schedule.decisions]


def test_the_published_avg64_pyramid_scaled_to_64():
    given_schedule = Schedule.load("reroute-pdrop-64")
    fit = fit_average(given_schedule, 32, 576, 64)
    assert fit.before.average_visual == Fraction(2 * 576 + 13 * 80 + 8 * 40 + 9 * 20, 32)  # 84.125
    assert fit.after.average_visual == Fraction(2 * 576 + 13 * 47 + 8 * 23 + 9 * 11, 32)  # 63.9375
    assert keeps(fit.schedule) == ["0.0821", "0.0821", "0.0411", "0.0205"]
    assert fit.factor == Fraction(59, 100)
    assert "reroute-pdrop-64, 32 blocks, published, scaled by 0.59 to average 63.9375" in fit.schedule.label
    assert fit == fit_average(given_schedule, 32, 576, "64.0")


def test_a_schedule_that_meets_the_average_keeps_its_ratios():
    fit = fit_average(Schedule.load("reroute-fastv-64"), 32, 576, 64)  # 63.97, and the next is 64.88
    assert fit.schedule == Schedule.load("reroute-fastv-64")
    assert fit.factor == 1
    assert fit.after is fit.before


def test_of_two_averages_equally_near_the_smaller_is_taken():
    half = Schedule("reroute", (Decision(0, "0.5"),))  # one block: averages are whole
    assert fit_average(half, 1, 10, "3.5").after.average_visual == 3
    assert fit_average(half, 1, 10, "3.6").after.average_visual == 4


def test_ratios_are_capped_at_one():
    pyramid = Schedule("delete", (Decision(0, "0.9"), Decision(1, "0.3")))
    fit = fit_average(pyramid, 2, 10, 9)
    assert fit.after.kv_rows == (11, 9)  # 10 and 8 of 10, and one row of text
    assert keeps(fit.schedule)[0] == "1"
    assert keeps(fit_average(pyramid, 2, 10, 10).schedule) == ["1", "1"]


def test_the_least_average_is_what_min_keep_and_the_dense_blocks_leave():
    schedule = Schedule("reroute", (Decision(1, "0.5"),), min_keep=2)
    assert fit_average(schedule, 4, 10, 4).after.kv_rows == (11, 3, 3, 3)
    with pytest.raises(RerouteError, match="ask for 4 to 10: blocks before") as error:
        fit_average(schedule, 4, 10, "3.99")
    assert error.value.field == "average"


@pytest.mark.parametrize("average", [0, -3, "10.01"])
def test_an_average_out_of_reach_is_refused_with_the_range(average):
    with pytest.raises(RerouteError, match=r"average: .* cannot be reached .* ask for 1 to 10"):
        fit_average(Schedule("reroute", (Decision(0, "0.5"),)), 4, 10, average)


REFUSED = [
    ({"average": 64.0}, "average"),
    ({"average": True}, "average"),
    ({"average": "sixty"}, "average"),
    ({"average": "1/0"}, "average"),
    ({"average": "1e999999999"}, "average"),
    ({"average": "-64"}, "average"),
    ({"num_visual": 0}, "num_visual"),
    ({"num_visual": "576"}, "num_visual"),
    ({"num_layers": 20}, "decisions[3].layer"),
    ({"schedule": Schedule("reroute", ())}, "decisions"),
    ({"schedule": Schedule("reroute", (Decision(3, 64),))}, "decisions[0].keep"),
    ({"schedule": Schedule("reroute", (Decision(3, "0.5"),), scope="image")}, "scope"),
]


@pytest.mark.parametrize(("changes", "field"), REFUSED, ids=[f"{i}-{f}" for i, (_, f) in enumerate(REFUSED)])
def test_what_cannot_be_fitted_is_refused_by_name(changes, field):
    good = {"schedule": Schedule.load("pdrop-64"), "num_layers": 32, "num_visual": 576, "average": 64}
    with pytest.raises(RerouteError) as error:
        fit_average(**{**good, **changes})
    assert error.value.field == field


@pytest.mark.parametrize("keep", ["1/3", "1e-20", "0." + "7" * 30])
def test_unusual_ratios_are_scaled_too(keep):
    fit = fit_average(Schedule("reroute", (Decision(1, keep),)), 4, 100, 60)
    assert abs(fit.after.average_visual - 60) <= Fraction(1, 2)


ratios = st.integers(1, 10**4).map(lambda numerator: Fraction(numerator, 10**4))


@st.composite
def fits(draw):
    num_layers, num_visual = draw(st.integers(1, 40)), draw(st.integers(1, 3000))
    layers = draw(st.sets(st.integers(0, num_layers - 1), min_size=1, max_size=5))
    action = draw(st.sampled_from(["reroute", "delete"]))
    keep = draw(st.lists(ratios, min_size=len(layers), max_size=len(layers)))
    keep = sorted(keep, reverse=True) if action == "delete" else keep
    decisions = tuple(Decision(layer, k) for layer, k in zip(sorted(layers), keep, strict=True))
    schedule = Schedule(action, decisions, min_keep=draw(st.integers(1, 4)))
    least = averages(
        Schedule(action, tuple(Decision(d.layer, "1e-9") for d in decisions), min_keep=schedule.min_keep),
        num_layers,
        num_visual,
    )
    share = draw(st.fractions(0, 1, max_denominator=1000))
    return schedule, num_layers, num_visual, least + share * (num_visual - least)


@settings(max_examples=60)
@given(fits())
def test_every_average_within_reach_is_met_to_half_a_row(case):
    schedule, num_layers, num_visual, asked = case
    fit = fit_average(schedule, num_layers, num_visual, asked)
    data = json.loads(json.dumps(fit.schedule.to_dict()))
    assert Schedule.from_dict(data) == fit.schedule
    assert averages(Schedule.from_dict(data), num_layers, num_visual) == fit.after.average_visual
    assert abs(fit.after.average_visual - asked) <= Fraction(1, 2)
    assert [d.layer for d in fit.schedule.decisions] == [d.layer for d in schedule.decisions]
    assert (fit.schedule.action, fit.schedule.pool) == (schedule.action, schedule.pool)
    assert fit.schedule.min_keep == schedule.min_keep


@settings(max_examples=30)
@given(
    st.sampled_from([name for name in presets() if "nuwa" not in name]),
    st.integers(50, 2000),
    st.integers(0, 100),
)
def test_ratios_stay_in_proportion_and_short(name, num_visual, share):
    given_schedule = Schedule.load(name)
    least = averages(
        Schedule("reroute", (Decision(given_schedule.decisions[0].layer, "1e-9"),)), 32, num_visual
    )
    fit = fit_average(given_schedule, 32, num_visual, least + Fraction(share, 100) * (num_visual - least))
    for before, after in zip(given_schedule.decisions, fit.schedule.decisions, strict=True):
        scaled = min(Fraction(1), before.keep * fit.factor)
        assert abs(after.keep - scaled) <= Fraction(1, 2 * 10**4)
        assert len(str(format_keep(after.keep))) <= 12
