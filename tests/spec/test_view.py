"""A view as data: what was written is read back, and what is of another form is refused by its field."""

import copy
import json
import re
from pathlib import Path

import pytest
from reroute_spec import RerouteError
from reroute_spec.view import FORMAT, View

from ..documents import changed

PAGE = (Path(__file__).parents[2] / "spec/FORMATS.md").read_text("utf-8")
VIEW = json.loads(re.search(r"```json view\n(.*?)```", PAGE, re.DOTALL)[1])
TRACE = VIEW["runs"][0]["trace"]


def test_what_was_written_is_read_back():
    view = View.from_dict(VIEW)
    written = json.loads(json.dumps(view.to_dict()))
    assert View.from_dict(written) == view
    assert written["runs"][0]["trace"] == TRACE
    assert [(p.row, p.column) for p in view.places(view.runs[0])] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_trace_by_itself_is_a_view_without_a_grid():
    view = View.from_dict(TRACE)
    assert view.runs[0].trace.to_dict() == TRACE
    assert view.places(view.runs[0]) is None
    assert not view.runs[0].removes


def test_rows_that_a_first_stage_left_keep_their_places():
    data = copy.deepcopy(VIEW)
    data["images"][0] |= {"rows": 3, "columns": 3}
    data["runs"][0]["kept"] = [0, 4, 5, 8]
    view = View.from_dict(data)
    assert [(p.row, p.column) for p in view.places(view.runs[0])] == [(0, 0), (1, 1), (1, 2), (2, 2)]


def test_the_last_row_of_an_image_need_not_be_routable():
    data = copy.deepcopy(VIEW)
    data["images"][0]["leading"] = 1
    assert View.from_dict(data).places(View.from_dict(data).runs[0])[0] is None


REFUSED = [
    (("format",), "urn:vlm-reroute:view:2", "format"),
    (("surplus",), 1, "surplus"),
    (("prompt",), None, "prompt"),
    (("images",), {}, "images"),
    (("images", 0, "kind"), "sound", "images[0].kind"),
    (("images", 0, "rows"), 0, "images[0].rows"),
    (("images", 0, "rows"), 9, "runs[0].trace.visual_rows"),
    (("images", 0, "columns"), "2", "images[0].columns"),
    (("images", 0, "frames"), 1 << 30, "images"),
    (("images", 0, "pictures"), ["https://example.org/x.png"], "images[0].pictures[0]"),
    (("images", 0, "pictures"), ["data:image/svg+xml;base64,AAAA"], "images[0].pictures[0]"),
    (
        ("images", 0, "pictures"),
        ["data:image/png;base64,AA", "data:image/png;base64,AA"],
        "images[0].pictures",
    ),
    (("images", 0, "height"), 2, "images[0].height"),
    (("runs",), [], "runs"),
    (("runs", 0, "name"), 3, "runs[0].name"),
    (("runs", 0, "kept"), [0, 1, 2], "runs[0].kept"),
    (("runs", 0, "kept"), [0, 2, 1, 3], "runs[0].kept"),
    (("runs", 0, "kept"), [0, 1, 2, 4], "runs[0].kept"),
    (("runs", 0, "schedule", "action"), "hide", "runs[0].schedule.action"),
    (("runs", 0, "trace", "kv_rows"), "6444", "runs[0].trace.kv_rows"),
    (("runs", 0, "trace", "decisions", 0, "pool"), [0.5], "runs[0].trace.decisions[0].pool[0]"),
    (("runs", 0, "trace", "decisions", 0, "layer"), 4, "runs[0].trace.decisions[0].layer"),
    (("runs", 0, "trace", "decisions", 1, "layer"), 1, "runs[0].trace.decisions[1].layer"),
    (("runs", 0, "trace", "decisions", 0, "selected"), [0, 4], "runs[0].trace.decisions[0].selected"),
    (("runs", 0, "trace", "decisions", 0, "scores"), [0.1], "runs[0].trace.decisions[0].scores"),
    (("runs", 0, "trace", "decisions", 0, "scores"), [float("nan")] * 4, "runs[0].trace.decisions[0].scores"),
    (("runs", 0, "trace", "decisions", 0, "scores"), [10**400] * 4, "runs[0].trace.decisions[0].scores"),
    (("runs", 0, "trace", "num_rows"), 4, "runs[0].trace.visual_rows"),
    (("runs", 0, "trace", "num_rows"), 1 << 31, "runs[0].trace.num_rows"),
    (("runs", 0, "trace", "kv_rows"), [6, 4, 4, 1 << 31], "runs[0].trace.kv_rows"),
    (("runs", 0, "trace", "visual_rows"), [1, 1, 2, 3], "runs[0].trace.visual_rows"),
    (("prompt",), "half \ud83d", "prompt"),
]


@pytest.mark.parametrize(
    ("path", "value", "field"), REFUSED, ids=[f"{f}-{i}" for i, (_, _, f) in enumerate(REFUSED)]
)
def test_a_view_of_another_form_is_refused_by_its_field(path, value, field):
    with pytest.raises(RerouteError) as refused:
        View.from_dict(changed(VIEW, path, value))
    assert refused.value.field == field


MISSING = [
    ((), "prompt", "prompt"),
    (("images", 0), "leading", "images[0].leading"),
    (("runs", 0), "kept", "runs[0].kept"),
    (("runs", 0, "trace"), "num_rows", "runs[0].trace.num_rows"),
    (("runs", 0, "trace", "decisions", 0), "margin", "runs[0].trace.decisions[0].margin"),
    (("runs", 0, "schedule"), "decisions", "runs[0].schedule.decisions"),
]


@pytest.mark.parametrize(("path", "name", "field"), MISSING, ids=[field for _, _, field in MISSING])
def test_a_view_lacks_nothing(path, name, field):
    data = copy.deepcopy(VIEW)
    place = data
    for step in path:
        place = place[step]
    del place[name]
    with pytest.raises(RerouteError) as refused:
        View.from_dict(data)
    assert refused.value.field == field
    assert "is missing" in str(refused.value)


@pytest.mark.parametrize("data", [[], "view", None, 3])
def test_what_is_no_object_is_refused(data):
    with pytest.raises(RerouteError, match="view: is a"):
        View.from_dict(data)


def test_another_version_says_which_is_read():
    with pytest.raises(
        RerouteError, match=f"format: is 'urn:vlm-reroute:view:9'; this version reads '{FORMAT}'"
    ):
        View.from_dict({**VIEW, "format": "urn:vlm-reroute:view:9"})
