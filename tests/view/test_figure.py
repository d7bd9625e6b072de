"""The figure: a line per decision, every run beside the other, rows of blocks below."""

import dataclasses
import sys
from pathlib import Path

import pytest
from matplotlib.collections import LineCollection
from reroute_conformance.showing.trace import ask, load_schedule, trace
from reroute_conformance.tiny import picture, tiny_llava, tiny_processor
from reroute_spec import RerouteError
from reroute_spec.view import View
from reroute_view import Shown

TEXT = 5  # rows of the prompt beside the image


@pytest.fixture(scope="module")
def view():
    model, processor = tiny_llava(), tiny_processor()
    both = [(name, load_schedule(name, model)) for name in ("reroute-fastv-192", "fastv-192")]
    return trace(model, processor, ask(model, processor, "?", [picture()]), both, prompt="where is $x_1$ ?")


def test_a_figure_has_a_line_per_decision(view):
    figure = Shown(view).figure()
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 4 * 4 + 2  # what runs and scores, of two runs at four decisions; bars
    assert titles[0] == "reroute-fastv-192\nblock 1: 9 run"
    assert titles[1].startswith("reroute-fastv-192\nblock 1: scores, margin ")


def test_what_is_no_candidate_is_dashed_among_the_scores():
    model, processor = tiny_llava(), tiny_processor()
    pruning = [("pdrop-192", load_schedule("pdrop-192", model))]
    view = trace(model, processor, ask(model, processor, "?", [picture()]), pruning)
    scores = Shown(view).figure().axes[3]  # of the second decision
    dashes = next(own for own in scores.collections if isinstance(own, LineCollection))
    assert len(dashes.get_segments()) == 36 - len(view.runs[0].trace.decisions[1].pool) > 0


def test_bars_are_the_rows_of_every_block(view):
    axes = Shown(view).figure().axes[-2]
    heights = [bar.get_height() for bar in axes.containers[0]]
    assert heights == [rows - TEXT for rows in view.runs[0].trace.kv_rows]


@pytest.mark.parametrize("dark", [False, True])
def test_a_trace_by_itself_is_drawn_on_either_ground(view, dark):
    bare = Shown(View.from_dict(view.runs[0].trace.to_dict()))
    figure = bare.figure(dark=dark)
    assert (sum(figure.get_facecolor()[:3]) < 1) == dark
    figure.canvas.draw()


def test_a_prompt_in_any_script_is_drawn_without_a_warning(view, tmp_path, recwarn):
    Shown(dataclasses.replace(view, prompt="球 \U0001f534 \x1b")).save(tmp_path / "trace.png")
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize(
    ("name", "field"), [("matplotlib", "figure"), ("jinja2", "html"), ("PIL", "pictures")]
)
def test_a_library_that_is_missing_is_named(view, monkeypatch, tmp_path, name, field):
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, name, None)
    path = Path("x.html" if name == "jinja2" else "x.png")
    with pytest.raises(RerouteError, match=f"{field}: needs? .*; pip install"):
        Shown(view).save(tmp_path / path)
    assert list(tmp_path.iterdir()) == []
