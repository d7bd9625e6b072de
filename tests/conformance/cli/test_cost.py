"""What `plan` and `schedule` print, write and refuse."""

import json

import pytest
from reroute_spec import Schedule, plan
from reroute_spec.plan import visual_flags


def test_plan_shows_rows_flops_and_cache(vlm_reroute):
    code, out, _ = vlm_reroute("plan", "--preset", "reroute-fastv-192", "--model", "llava-1.5-7b")
    assert code == 0
    assert "Average visual rows: 191.75 of 576" in out
    assert "of 8.41 TFLOPs unrouted" in out
    code, out, _ = vlm_reroute("plan", "--preset", "pdrop-64", "--visual", "576", "--text", "65", "--json")
    data = json.loads(out)
    assert data["average_visual"] == pytest.approx(80.44, abs=0.005)
    assert len(data["blocks"]) == 32


@pytest.mark.parametrize(
    ("preset", "average"),
    [("reroute-fastv-64", "63.97"), ("reroute-pdrop-64", "84.12"), ("pdrop-64", "80.44")],
)
def test_plan_says_what_an_avg64_label_runs(vlm_reroute, preset, average):
    _, out, _ = vlm_reroute("plan", "--preset", preset)
    assert f"Average visual rows: {average} of 576 per block" in out


def test_plan_says_what_a_decoded_token_reads(vlm_reroute):
    arguments = ("plan", "--preset", "reroute-pdrop-64", "--batch", "8", "--decode", "100")
    _, out, _ = vlm_reroute(*arguments)
    assert "read per token (batch 8, 100 tokens before)" in out
    decode = json.loads(vlm_reroute(*arguments, "--json")[1])["decode"]
    assert decode["batch"] == 8
    assert decode["unrouted_kv_bytes"] == 32 * (576 + 65 + 101) * 2 * 4096 * 2
    assert decode["bytes_per_token"] < decode["unrouted_bytes_per_token"]


def test_plan_on_a_hybrid_decoder_shows_states_and_where_the_preset_went(vlm_reroute):
    _, out, _ = vlm_reroute("plan", "--preset", "reroute-pdrop-64", "--model", "qwen3.5-9b")
    assert "snapped to plain attention (2 to 3)" in out
    assert "of linear-attention states, routed or not" in out


def test_plan_reads_a_models_folder(vlm_reroute):
    arguments = ("--model", "tests/data/release/llava", "--visual", "16", "--text", "4")
    code, out, _ = vlm_reroute("plan", "--preset", "reroute-fastv-64", *arguments)
    assert code == 0
    assert "reroute-fastv-64, 10 blocks, scaled from 32 blocks" in out


@pytest.mark.parametrize("name", ["mine.json", "mine.yaml"])
def test_plan_takes_a_schedule_file(vlm_reroute, tmp_path, name):
    path = tmp_path / name
    path.write_text('{"action": "reroute", "decisions": [{"layer": 3, "keep": "0.5"}]}')
    assert vlm_reroute("plan", "--preset", str(path))[0] == 0


def test_schedule_meets_the_average_that_a_label_only_names(vlm_reroute, tmp_path):
    path = tmp_path / "avg64.json"
    code, out, _ = vlm_reroute("schedule", "--average", "64", "--like", "reroute-pdrop-64", "-o", str(path))
    assert code == 0
    assert "every ratio times 0.59" in out
    assert "84.12 before, 63.94 after; asked 64" in out
    written = plan(Schedule.load(path), 32, visual_flags(576, 65))
    assert float(written.average_visual) == 63.9375
    _, out, _ = vlm_reroute("plan", "--preset", str(path))
    assert "Average visual rows: 63.94 of 576" in out


def test_schedule_prints_data_for_machines_and_a_schedule_to_copy(vlm_reroute):
    arguments = ("schedule", "--average", "64", "--like", "reroute-pdrop-64")
    data = json.loads(vlm_reroute(*arguments, "--json")[1])
    assert (data["factor"], data["average_before"], data["average_after"]) == (0.59, 84.125, 63.9375)
    assert (data["rows_before"], data["rows_after"]) == ([80, 80, 40, 20], [47, 47, 23, 11])
    assert json.loads(vlm_reroute(*arguments)[1].splitlines()[-1]) == data["schedule"]


REFUSED = [
    (["plan", "--preset", "fastv"], "--preset: 'fastv' is not known; did you mean"),
    (["plan", "--preset", "absent.yaml"], "--preset: absent.yaml cannot be read"),
    (["plan", "--model", "llava"], "--model: 'llava' is not known; known: 'llava-1.5-7b'"),
    (["plan", "--model", "qwen3.5"], "--model: 'qwen3.5' is not known"),
    (["plan", "--model", "absent/config.json"], "--model: absent/config.json does not exist"),
    (["plan", "--model", "pyproject.toml"], "--model: config: pyproject.toml is no JSON"),
    (["plan", "--visual", "-1"], "--visual: -1"),
    (["plan", "--text", "0"], "--text: 0"),
    (["plan", "--batch", "0"], "--batch: 0"),
    (["plan", "--decode", "-1"], "--decode: -1"),
    (["schedule", "--average", "12", "--like", "reroute-pdrop-64"], "ask for 36.9375 to 576"),
    (["schedule", "--average", "many", "--like", "reroute-pdrop-64"], "--average: 'many' is no number"),
    (["schedule", "--average", "64", "--like", "pdrop"], "--like: 'pdrop' is not known"),
    (["schedule", "--average", "64", "--like", "pdrop-64", "--visual", "0"], "--visual: 0"),
    (["schedule", "--average", "64", "--like", "pdrop-64", "-o", "out.txt"], "--output: out.txt"),
    (["schedule", "--average", "64", "--like", "pdrop-64", "-o", "no/such/out.json"], "cannot be written"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_wrong_input_is_one_line_that_names_the_option(vlm_reroute, arguments, words):
    code, out, err = vlm_reroute(*arguments)
    assert code == 3
    assert err.startswith("error: --")
    assert len(err.strip().splitlines()) == 1
    assert words in err
    assert out == ""


def test_an_explicit_schedule_is_never_moved_off_a_linear_block(vlm_reroute, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"action": "reroute", "decisions": [{"layer": 2, "keep": "0.5"}]}')
    code, _, err = vlm_reroute("plan", "--preset", str(path), "--model", "qwen3.5-9b")
    assert code == 3
    assert "--preset: decisions[0].layer: 2 is a block without plain attention" in err
