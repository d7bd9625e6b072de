"""The page in a real browser: what it draws, by pointer and by keyboard; it fits a phone, needs no other file, and logs nothing."""

import base64
import io
import itertools
import json
import time
from dataclasses import replace

import pytest
from PIL import Image
from reroute_conformance.showing.trace import ask, load_schedule, trace
from reroute_conformance.tiny import picture, tiny_llava, tiny_processor
from reroute_conformance.tiny.qwen import tiny_qwen
from reroute_conformance.tiny.qwen_processor import TinyQwenProcessor
from reroute_spec.view import View
from reroute_view import Shown

from ...painted import QWEN, painted, qwen_inputs
from ..browser import CUT, needs_browser

pytestmark = needs_browser
PROMPT = "where is <b>the red ball</b> ?"


@pytest.fixture(scope="module")
def views():
    """LLaVA beside the method it augments, two images of a Qwen, a video, and the first without grid and picture."""
    llava, qwen = tiny_llava(), tiny_qwen("qwen2_5_vl")
    names = ("reroute-pdrop-192", "pdrop-192")
    both = [(name, load_schedule(name, llava)) for name in names]
    first = trace(
        llava,
        tiny_processor(),
        ask(llava, tiny_processor(), "?", [picture()]),
        both,
        prompt=PROMPT,
        name="x" * 200,
    )
    pictures = [picture(), picture(112, 168)]
    processor = TinyQwenProcessor()
    second = trace(qwen, processor, ask(qwen, processor, "?", pictures), both[:1])
    video = qwen_inputs("qwen2_5_vl", [[painted(2, 3, (1, 0)), painted(2, 3)], painted(4, 2)])
    return {
        "llava": first,
        "images": second,
        "video": trace(qwen, QWEN, video, both[:1]),
        "bare": View.from_dict(first.runs[0].trace.to_dict()),
        "text": trace(llava, tiny_processor(), ask(llava, tiny_processor(), "what ?", []), both),
    }


@pytest.fixture(scope="module")
def pages(tmp_path_factory, views):
    folder = tmp_path_factory.mktemp("pages")
    for name, view in views.items():
        Shown(view).save(folder / f"{name}.html")
    return folder


def show(browser, path, width=1280, scheme="light"):
    browser.console.clear()
    browser.requested.clear()
    browser.open(path, width, scheme=scheme)
    until = time.monotonic() + 20
    while "text" not in path.name and not browser.evaluate("document.body.dataset.ready === 'yes'"):
        assert time.monotonic() < until
        time.sleep(0.02)


def press(browser, key):
    """A key as a person presses it."""
    codes = {"ArrowRight": 39, "ArrowDown": 40, "ArrowLeft": 37, "Tab": 9, "End": 35}
    for kind in ("rawKeyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])


def text(browser, selector):
    return browser.evaluate(f"document.querySelector({json.dumps(selector)}).textContent")


def colour(browser, run, row, column, cells):
    """Mean colour of the middle of a cell as it is drawn."""
    return browser.evaluate(
        f"""(() => {{
        const canvas = document.getElementById("grid-{run}"), cell = canvas.width / {cells}, part = Math.floor(cell / 4);
        const values = canvas.getContext("2d").getImageData(({column} + .3) * cell, ({row} + .3) * cell, part, part).data;
        return [0, 1, 2].map(channel => values.filter((_, i) => i % 4 === channel).reduce((a, b) => a + b) / (part * part));
        }})()"""
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["llava", "video", "text"])
def test_the_page_opens_and_fits(browser, pages, name, width, scheme):
    path = pages / f"{name}.html"
    show(browser, path, width, scheme)
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate(CUT) == []
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 128 * 3) == (scheme == "dark")
    assert browser.console == []
    assert [address for address in browser.requested if not address.startswith("data:")] == [path.as_uri()]


def test_a_prompt_is_text_and_nothing_else(browser, pages):
    show(browser, pages / "llava.html")
    assert text(browser, "blockquote") == PROMPT
    assert browser.evaluate("document.querySelectorAll('blockquote *').length") == 0


def test_the_slider_moves_by_keys_and_says_what_is_shown(browser, pages, views):
    show(browser, pages / "llava.html")
    browser.evaluate("document.getElementById('step').focus()")
    decisions = views["llava"].runs[0].trace.decisions
    assert text(browser, "#line-0").startswith("Decision 1 at block 1: 16 of 36 visual rows run")
    press(browser, "ArrowRight")
    assert text(browser, "#where") == "2 to 3 of 8"
    assert f"{len(decisions[1].reentered)} of them re-enter" in text(browser, "#line-0")
    said = browser.evaluate("document.getElementById('step').getAttribute('aria-valuetext')")
    assert "reroute-pdrop-192: 16 of 36" in said
    assert "pdrop-192: 12 of 36" in said


def test_every_cell_is_drawn_as_the_trace_says(browser, pages, views):
    """Without a picture beneath: blue runs, orange re-enters, pale does not run."""
    show(browser, pages / "bare.html")
    browser.evaluate("slider.value = 2; show()")
    decision = views["bare"].runs[0].trace.decisions[1]
    for ordinal in range(36):
        red, green, blue = colour(browser, 0, *divmod(ordinal, 24), 24)
        state = "blue" if blue > red + 40 else "pale" if min(red, green, blue) > 110 else "orange"
        expected = (
            "orange" if ordinal in decision.reentered else "blue" if ordinal in decision.selected else "pale"
        )
        assert state == expected, (ordinal, red, green, blue)


def test_what_is_no_candidate_is_dashed_among_the_scores(browser, pages, views):
    show(browser, pages / "llava.html")
    browser.evaluate("slider.value = 2; document.querySelector('input[value=scores]').click()")
    pool = views["llava"].runs[1].trace.decisions[1].pool
    without = next(ordinal for ordinal in range(36) if ordinal not in pool)
    red, green, blue = colour(browser, 1, *divmod(without, 6), 6)
    assert max(red, green, blue) - min(red, green, blue) < 10
    assert 150 < red < 230  # paler without a dash


def test_a_patch_is_read_by_arrow_keys_and_by_pointer(browser, pages, views):
    show(browser, pages / "llava.html")
    browser.evaluate("slider.focus(); slider.value = 2; show()")
    for _ in range(3):
        press(browser, "Tab")  # what runs or scores, save, the first picture
    assert browser.evaluate("document.activeElement.id") == "grid-0"
    press(browser, "ArrowDown")
    press(browser, "ArrowRight")
    decision = views["llava"].runs[0].trace.decisions[1]
    rank = sorted(decision.scores, reverse=True).index(decision.scores[7]) + 1
    said = text(browser, "#readout-0")
    assert said.startswith("row 2, column 2: ")
    assert f"score {float(f'{decision.scores[7]:.3g}')}, rank {rank} of 36; visual row 7" in said
    assert ("runs" in said) == (7 in decision.selected)
    assert text(browser, "#readout-1").startswith("row 2, column 2: ")  # the same patch beside
    press(browser, "End")
    assert text(browser, "#readout-0").startswith("row 2, column 6: ")
    box = browser.evaluate(
        "(b => [b.left, b.top, b.width])(document.getElementById('grid-1').getBoundingClientRect())"
    )
    x, y = box[0] + box[2] * 0.6 / 6, box[1] + box[2] * 4.5 / 6
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert text(browser, "#readout-1").startswith("row 5, column 1: ")


def test_arrow_keys_go_on_into_the_next_frame(browser, pages):
    show(browser, pages / "video.html")
    browser.evaluate("document.getElementById('grid-0').focus(); point([0, 1, 2])")
    press(browser, "ArrowRight")
    assert text(browser, "#readout-0").startswith("video 1, frame 2, row 2, column 1: ")
    browser.evaluate("point([1, 1, 2])")
    press(browser, "ArrowRight")
    assert text(browser, "#readout-0").startswith("image 2, row 2, column 1: ")
    assert "visual row 14," in text(browser, "#readout-0")


@pytest.mark.parametrize("mode", ["states", "scores"])
def test_the_button_saves_a_picture(browser, pages, mode):
    show(browser, pages / "llava.html", scheme="dark")
    # a download is caught: the canvas and the name that the browser would save it under
    browser.evaluate(
        f"""HTMLAnchorElement.prototype.click = function () {{ window.saved = this.download; }};
        const toBlob = HTMLCanvasElement.prototype.toBlob;
        HTMLCanvasElement.prototype.toBlob = function (done) {{ window.address = this.toDataURL(); toBlob.call(this, done); }};
        document.querySelector('input[value={mode}]').click(); document.getElementById("save").click()"""
    )
    until = time.monotonic() + 20
    while not browser.evaluate("Boolean(window.saved)"):
        assert time.monotonic() < until
        time.sleep(0.02)
    suffix = "" if mode == "states" else "-scores"
    assert browser.evaluate("window.saved") == f"trace-blocks-1-1{suffix}.png"
    address = browser.evaluate("window.address")
    assert browser.console == []
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as saved:
        assert saved.width == 2 * (2 * 560 + 3 * 32)
        assert saved.convert("RGB").getpixel((4, 4)) == (255, 255, 255)  # paper, in a dark page too
        assert len(saved.convert("RGB").getcolors(1 << 24)) > 50


def test_tables_and_words_say_the_same_as_the_picture(browser, pages, views):
    show(browser, pages / "images.html")
    run = views["images"].runs[0]
    cells = browser.evaluate(
        "[...document.querySelectorAll('table')[0].rows].slice(1).map(row => row.innerText.split('\\t'))"
    )
    for row, decision in zip(cells, run.trace.decisions, strict=True):
        assert [int(cell) for cell in (row[0], *row[2:6])] == [
            decision.stage,
            *(
                len(rows)
                for rows in (decision.pool, decision.selected, decision.deferred, decision.reentered)
            ),
        ]
    words = browser.evaluate("document.querySelector('dl.patches dd').textContent")
    places = views["images"].places(run)
    first = places[run.trace.decisions[0].selected[0]]
    assert words.startswith(f"image {first.image + 1}: row {first.row + 1}: {first.column + 1}")


def test_everything_can_be_reached_and_is_named(browser, pages):
    show(browser, pages / "llava.html", 390)
    assert browser.evaluate(
        "[...document.querySelectorAll('.scroll, canvas[role]')].every(box => box.tabIndex === 0 && box.getAttribute('aria-label'))"
    )
    assert browser.evaluate(
        "[...document.querySelectorAll('input, button')].every(i => i.labels?.length || i.textContent)"
    )
    assert browser.evaluate(
        "[...document.querySelectorAll('svg')].every(svg => svg.getAttribute('aria-label'))"
    )
    names = browser.evaluate("[...document.querySelectorAll('[id]')].map(element => element.id)")
    assert len(set(names)) == len(names)


def test_headings_step_by_one(browser, pages):
    show(browser, pages / "llava.html")
    levels = browser.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_bars_are_told_apart_in_grey(browser, pages, scheme):
    show(browser, pages / "llava.html", scheme=scheme)
    fills = browser.evaluate(
        "['visual', 'text', 'left'].map(kind => getComputedStyle(document.querySelector(`.bars .${kind}`)).fill)"
    )
    visual, text_rows, left = map(luminance, fills)
    for one, other in ((visual, text_rows), (text_rows, left)):
        assert (max(one, other) + 0.05) / (min(one, other) + 0.05) > 2


def luminance(colour):
    """Relative luminance of ``rgb(…)``, as WCAG defines it."""
    shares = [int(part) / 255 for part in colour[4:-1].split(",")]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_paper_is_light_whatever_the_screen_is(browser, pages):
    show(browser, pages / "llava.html", scheme="dark")
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.call("Emulation.setEmulatedMedia", media="print", features=dark)
    ink = browser.evaluate("getComputedStyle(document.body).color")
    controls = browser.evaluate(
        "[slider, document.querySelector('.buttons')].map(own => getComputedStyle(own).display)"
    )
    browser.call("Emulation.setEmulatedMedia", media="", features=dark)
    assert luminance(ink) < 0.1
    assert controls == ["none", "none"]


def test_scores_of_a_long_video_have_their_range(browser, pages):
    show(browser, pages / "llava.html")
    browser.evaluate("stageOf(0).scores = new Array(300000).fill(.25); stageOf(1).scores = [.5, 0, null]")
    assert browser.evaluate("scoreRange()") == [0.25, 0.5]


def test_a_long_prompt_leaves_room_for_the_picture(browser, pages, views):
    path = pages / "long.html"
    Shown(replace(views["llava"], prompt="where is the ball ? " * 300)).save(path)
    show(browser, path, 390)
    assert browser.evaluate("document.querySelector('blockquote').tabIndex") == 0
    assert browser.evaluate("document.getElementById('controls').getBoundingClientRect().top") < 800


def test_a_notebook_shows_the_same_page_in_a_frame(browser, views, tmp_path):
    path = tmp_path / "notebook.html"
    path.write_text(
        f"<!doctype html><title>n</title><body data-ready=yes>{Shown(views['llava'])._repr_html_()}", "utf-8"
    )
    show(browser, path)
    frame = browser.evaluate(
        "(f => [f.title, f.sandbox.value, f.srcdoc.length])(document.querySelector('iframe'))"
    )
    assert frame[:2] == ["vlm-reroute trace", "allow-scripts allow-downloads"]
    assert frame[2] == len(Shown(views["llava"]).html())
    assert browser.console == []
