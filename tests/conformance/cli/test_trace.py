"""What `trace` prints, writes and refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from reroute_conformance.tiny import picture, tiny_llava, tiny_processor
from reroute_spec.view import View
from reroute_view.pictures import pixels


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "scene.png"
    picture().save(path)
    return str(path)


def data(path):
    return View.from_dict(json.loads(path.read_text("utf-8")))


def test_trace_writes_a_page_a_figure_and_data(vlm_reroute, image, tmp_path):
    paths = [tmp_path / "new" / f"trace{suffix}" for suffix in (".html", ".png", ".json")]
    outputs = [word for path in paths for word in ("-o", str(path))]
    arguments = ("--model", "tiny", "--image", image, "--prompt", "where is the red ball ?")
    code, out, err = vlm_reroute("trace", *arguments, "--preset", "reroute-pdrop-192", *outputs)
    assert (code, err) == (0, "")
    assert "reroute-pdrop-192: 46 rows, 36 of them visual" in out
    assert out.count("Decision 4 at block 6: 4 of 36 visual rows run") == 2
    assert f"Written: {paths[0]}" in out
    view = data(paths[2])
    assert [run.name for run in view.runs] == ["reroute-pdrop-192", "pdrop-192"]
    assert [run.removes for run in view.runs] == [False, True]
    assert pixels(view.images[0].pictures[0]).size == (84, 84)
    assert view.prompt in paths[0].read_text("utf-8")
    assert "http" not in paths[0].read_text("utf-8").replace("http-equiv", "")
    with Image.open(paths[1]) as figure:
        assert figure.format == "PNG"
        assert min(figure.size) > 1000

    page = paths[0].read_text("utf-8")
    code, out, _ = vlm_reroute("trace", "--from", str(paths[2]), "-o", str(paths[0]))
    assert code == 0
    assert "46 rows" in out
    assert paths[0].read_text("utf-8") == page  # a file that is there is replaced, by the same page


def test_a_saved_trace_draws_without_torch(vlm_reroute, image, tmp_path):
    path = tmp_path / "trace.json"
    assert vlm_reroute("trace", "--image", image, "-o", str(path))[0] == 0
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None);"
        "from reroute_conformance.cli.entry import main; main()"
    )
    command = [sys.executable, "-c", code, "trace", "--from", str(path), "-o", str(tmp_path / "trace.html")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert "<canvas" in (tmp_path / "trace.html").read_text("utf-8")


@pytest.mark.parametrize("model", ["tiny-qwen2.5-vl", "tiny-qwen3-vl", "tiny-qwen3.5"])
def test_grids_of_a_qwen_are_as_its_processor_makes_them(vlm_reroute, image, tmp_path, model):
    tall, path = tmp_path / "tall.png", tmp_path / "trace.json"
    picture(112, 168).save(tall)
    arguments = ("--model", model, "--image", image, "--image", str(tall), "--preset", "reroute-fastv-192")
    # Qwen3.5 attends in two blocks of eight, too few for a preset of four decisions
    schedule = tmp_path / "mine.json"
    schedule.write_text(
        '{"action": "reroute", "decisions": [{"layer": 3, "keep": "0.5"}, {"layer": 7, "keep": "0.2"}]}'
    )
    if model == "tiny-qwen3.5":
        arguments = (*arguments[:-1], str(schedule))
    code, _, err = vlm_reroute("trace", *arguments, "-o", str(path))
    assert (code, err) == (0, "")
    view = data(path)
    assert [(s.grid.rows, s.grid.columns) for s in view.images] == [(6, 8), (6, 4)]
    assert len(view.runs[0].trace.visual_rows) == 72
    assert [pixels(s.pictures[0]).size for s in view.images] == [(8 * 28, 6 * 28), (4 * 28, 6 * 28)]
    if model == "tiny-qwen3.5":
        assert [run.name for run in view.runs] == [str(schedule), "mine, removing"]


def test_a_checkpoint_in_a_folder_is_loaded_with_its_processor(vlm_reroute, image, tmp_path):
    tiny_llava().save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    found = []
    for model in ("tiny", str(tmp_path / "model")):
        path = tmp_path / "trace.json"
        arguments = ("--model", model, "--image", image, "--prompt", "where is the ball ?", "-o", str(path))
        code, _, err = vlm_reroute("trace", *arguments)
        assert code == 0, err
        found.append(data(path))
    assert found[0].runs == found[1].runs
    assert found[0].images == found[1].images


def schedule_file(folder, decisions, action="reroute"):
    path = folder / "mine.json"
    path.write_text(json.dumps({"action": action, "decisions": decisions}))
    return str(path)


@pytest.mark.parametrize(
    ("decisions", "names", "words"),
    [
        ([], 1, "nothing is decided"),
        ([{"layer": 2, "keep": "1"}, {"layer": 4, "keep": "1"}], 2, "36 of 36 visual rows run; margin none"),
        ([{"layer": 0, "keep": 1}], 2, "1 of 36 visual rows run"),
        ([{"layer": 2, "keep": "0.2"}, {"layer": 4, "keep": "0.5"}], 1, "18 of 36 visual rows run"),
    ],
    ids=["no decision", "keeps all", "one decision, one row", "grows, so that nothing can remove like it"],
)
def test_schedules_at_the_ends(vlm_reroute, image, tmp_path, decisions, names, words):
    path = tmp_path / "trace.json"
    preset = schedule_file(tmp_path, decisions)
    outputs = ("-o", str(path), "-o", str(tmp_path / "trace.html"))
    code, out, err = vlm_reroute("trace", "--image", image, "--preset", preset, *outputs)
    assert (code, err) == (0, "")
    assert words in out
    assert len(data(path).runs) == names


def test_a_prompt_without_a_picture_decides_nothing(vlm_reroute, tmp_path):
    paths = [tmp_path / f"trace{suffix}" for suffix in (".html", ".png")]
    outputs = [word for path in paths for word in ("-o", str(path))]
    code, out, _ = vlm_reroute("trace", "--prompt", "where is the ball ?", *outputs)
    assert code == 0
    assert "nothing is decided" in out
    assert "The prompt has no image" in paths[0].read_text("utf-8")


def test_beside_is_what_is_asked(vlm_reroute, image, tmp_path):
    path = tmp_path / "trace.json"
    for beside, names in (("none", ["reroute-pdrop-64"]), ("fastv-64", ["reroute-pdrop-64", "fastv-64"])):
        assert vlm_reroute("trace", "--image", image, "--beside", beside, "-o", str(path))[0] == 0
        assert [run.name for run in data(path).runs] == names


REFUSED = [
    (["--preset", "fastv"], "--preset: 'fastv' is not known; did you mean"),
    (["--preset", "absent.yaml"], "--preset: absent.yaml cannot be read"),
    (["--beside", "pdrop"], "--beside: 'pdrop' is not known"),
    (["--image", "absent.png"], "--image: absent.png cannot be read"),
    (["--image", "README.md"], "--image: README.md cannot be read"),
    (["--model", "tiny-qwen"], "--model: 'tiny-qwen' is not known; did you mean"),
    (["--model", "spec"], "--model: spec cannot be loaded"),
    (["--prompt", "<image> what ?"], "--prompt: the processor refuses prompt and pictures"),
    (["-o", "trace.svg"], "--output: trace.svg does not end in .html, .png or .json"),
    (["-o", "trace"], "--output: trace does not end in"),
    # before a model is loaded
    (["--model", "spec", "-o", "README.md/trace.json"], "--output: README.md/trace.json cannot be written"),
    (["-o", "x" * 300 + ".html"], "x.html cannot be written"),
    (["--from", "absent.json"], "--from: absent.json cannot be read"),
    (["--from", "README.md"], "--from: README.md cannot be read"),
    (["--from", "absent.json", "--model", "tiny"], "--model: is given with --from"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_wrong_usage_is_one_line_that_names_the_option(vlm_reroute, arguments, words):
    code, out, err = vlm_reroute("trace", *arguments)
    assert code == 3
    assert err.startswith("error: --")
    assert len(err.strip().splitlines()) == 1
    assert words in err
    assert out == ""


@pytest.mark.parametrize(("library", "path"), [("jinja2", "trace.html"), ("matplotlib", "trace.png")])
def test_a_library_that_is_missing_is_told_before_a_model_is_loaded(
    vlm_reroute, monkeypatch, tmp_path, library, path
):
    monkeypatch.setitem(sys.modules, library, None)
    code, out, err = vlm_reroute("trace", "--model", str(tmp_path / "absent"), "-o", str(tmp_path / path))
    told = f"error: --output: needs {library}; pip install 'vlm-reroute[view]'"
    assert (code, out, err.strip()) == (3, "", told)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda view: view.update(format="urn:vlm-reroute:view:7"),
            "--from: format: is 'urn:vlm-reroute:view:7'",
        ),
        (lambda view: view.pop("prompt"), "--from: prompt: is missing"),
        (lambda view: view["runs"][0]["trace"].pop("kv_rows"), "--from: runs[0].trace.kv_rows: is missing"),
        (lambda view: view["images"][0].update(rows=5), "--from: runs[0].trace.visual_rows: are 36"),
        (
            lambda view: view["images"][0].update(pictures=["file:///etc/hosts"]),
            "--from: images[0].pictures[0]: is no picture",
        ),
    ],
    ids=[
        "another version",
        "a field is missing",
        "a field of the trace is missing",
        "another grid",
        "another file",
    ],
)
def test_a_saved_trace_of_another_form_is_refused_by_its_field(vlm_reroute, image, tmp_path, change, words):
    path = tmp_path / "trace.json"
    assert vlm_reroute("trace", "--image", image, "--beside", "none", "-o", str(path))[0] == 0
    view = json.loads(path.read_text("utf-8"))
    change(view)
    path.write_text(json.dumps(view))
    code, out, err = vlm_reroute("trace", "--from", str(path), "-o", str(tmp_path / "trace.html"))
    assert (code, out) == (3, "")
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "trace.html").exists()


def test_a_picture_that_is_none_is_named_as_the_figure_is_drawn(vlm_reroute, image, tmp_path):
    path = tmp_path / "trace.json"
    assert vlm_reroute("trace", "--image", image, "--beside", "none", "-o", str(path))[0] == 0
    view = json.loads(path.read_text("utf-8"))
    view["images"][0]["pictures"] = ["data:image/png;base64,AAAA"]
    path.write_text(json.dumps(view))
    code, _, err = vlm_reroute("trace", "--from", str(path), "-o", str(tmp_path / "trace.png"))
    assert code == 3
    assert "--output: pictures: hold none that can be read" in err


def test_half_a_letter_is_refused(vlm_reroute, tmp_path):
    path = tmp_path / "trace.json"
    assert vlm_reroute("trace", "--prompt", "what ?", "-o", str(path))[0] == 0
    path.write_text(path.read_text("utf-8").replace("what ?", r"\ud83d"), "utf-8")
    code, _, err = vlm_reroute("trace", "--from", str(path), "-o", str(tmp_path / "trace.html"))
    assert code == 3
    assert "--from: prompt: holds half of a surrogate pair" in err


def test_a_picture_stands_as_its_camera_says(vlm_reroute, tmp_path):
    turned, path = tmp_path / "turned.jpg", tmp_path / "trace.json"
    seen = Image.new("RGB", (84, 84), (90, 90, 90))
    seen.paste((20, 20, 250), (0, 0, 42, 84))  # the left half of what was seen
    camera = Image.Exif()
    camera[0x0112] = 6  # as the sensor has it, turned by a quarter to the left
    seen.transpose(Image.Transpose.ROTATE_90).save(turned, exif=camera, quality=95)
    assert vlm_reroute("trace", "--image", str(turned), "-o", str(path))[0] == 0
    frame = pixels(data(path).images[0].pictures[0])
    assert [frame.getpixel(at)[2] > 200 for at in ((20, 20), (20, 64), (64, 20), (64, 64))] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("mode", "size", "words"),
    [
        ("RGB", (900, 3), "the processor refuses prompt and pictures (absolute aspect ratio"),
        ("I;16", (90, 90), "grey with more"),
    ],
)
def test_a_picture_that_cannot_be_seen_is_named(vlm_reroute, tmp_path, mode, size, words):
    path = tmp_path / "picture.png"
    Image.new(mode, size).save(path)
    code, _, err = vlm_reroute("trace", "--model", "tiny-qwen2.5-vl", "--image", str(path))
    assert code == 3
    assert err.startswith("error: --image: ")
    assert words in err


def test_a_file_is_written_once_and_never_over_what_was_given(vlm_reroute, image, tmp_path):
    path = str(tmp_path / "trace.html")
    code, out, _ = vlm_reroute("trace", "--image", image, "-o", path, "-o", path)
    assert (code, out.count("Written")) == (0, 1)
    before = Path(image).read_bytes()
    code, _, err = vlm_reroute("trace", "--image", image, "-o", image)
    assert code == 3
    assert f"--output: {image} is one of the files given" in err
    assert Path(image).read_bytes() == before


def test_help_answers_without_torch(tmp_path):
    code = (
        "import sys; sys.modules.update(torch=None, matplotlib=None, jinja2=None, PIL=None);"
        "from reroute_conformance.cli.entry import main; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, "trace", "--help"], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    assert "--preset" in ended.stdout
