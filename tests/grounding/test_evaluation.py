"""An evaluation runs from weights to the picture, on a model that has learnt nothing."""

import hashlib
import json
import re
import shutil
import xml.etree.ElementTree as ET
from fractions import Fraction

import numpy as np
import pytest
import torch
from reroute_conformance.vectors.files import V1
from reroute_conformance.vectors.making.trained import DECODER, TRAINED, VISUAL, trained_vectors
from reroute_spec import DecoderShape
from safetensors.torch import load_file

from benchmarks.grounding import evaluate, export_scores, plot, scenes
from benchmarks.grounding.intervals import estimate
from benchmarks.grounding.items import items
from benchmarks.grounding.kept import Kept
from benchmarks.grounding.model import build, load, save
from benchmarks.grounding.routes import BUDGETS, routes

SHAPE = DecoderShape(12, 128, 256, 4, 4, 32)
ITEMS = 4


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Two models of eight blocks, as training leaves them. Wide matrices, so that scores have margins."""
    folder = tmp_path_factory.mktemp("weights")
    for seed in range(2):
        model = build(seed, blocks=8, width=32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 2 and "layers" in name:
                    parameter.mul_(8)
        save(model, folder / f"seed-{seed}")
    return folder


@pytest.fixture(scope="module")
def results(weights, tmp_path_factory):
    """What a whole evaluation of a few items writes."""
    out = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "BUDGETS", (Fraction(20, 100),))
        arguments = [
            "--weights",
            str(weights),
            "--items",
            str(ITEMS),
            "--threads",
            "1",
            "--reference-minutes",
            "0.0001",
        ]
        assert (
            evaluate.main([*arguments, "--json", str(out / "results.json"), "--work", str(out / "work")]) == 0
        )
    return out / "results.json"


def test_methods_of_a_budget_run_equal_rows():
    found = routes(SHAPE)
    for budget in BUDGETS:
        average = {route.method: route.average for route in found if route.budget == budget}
        assert average["reroute-fastv"] == average["reroute-every-block"] == average["fastv"]
        assert average["reroute-nuwa"] == average["nuwa"]
        for method in {"pdrop", "pdrop-late", "reroute-pdrop"} & average.keys():
            assert abs(average[method] - average["fastv"]) <= 1
    assert {route.method for route in found if route.budget == BUDGETS[0]} >= {"pdrop-late", "pdrop"}


def test_layers_scale_with_depth_as_the_published_ones_do():
    def layers(blocks):
        shape = DecoderShape(blocks, 128, 256, 4, 4, 32)
        return {r.method: [d.layer for d in r.schedule.decisions] for r in routes(shape, BUDGETS[:1])}

    assert layers(28)["reroute-fastv"] == [3, 6, 13, 20]
    ours = layers(12)
    assert ours["fastv"] == [1]
    assert ours["reroute-fastv"] == ours["pdrop"] == ours["reroute-pdrop"] == [1, 3, 6, 9]
    assert ours["reroute-every-block"] == list(range(1, 12))
    assert (ours["nuwa"], ours["reroute-nuwa"]) == ([6], [6, 8, 9, 11])


def test_more_decisions_cost_more_flops_at_equal_rows_and_equal_kv():
    by_method = {route.method: route for route in routes(SHAPE, (Fraction(1, 5),))}
    one, four, all_ = (by_method[name] for name in ("fastv", "reroute-fastv", "reroute-every-block"))
    assert one.flops < four.flops < all_.flops < 1
    assert one.kv == four.kv == all_.kv


def test_results_hold_every_route_and_both_engines_answer_alike(results):
    data = json.loads(results.read_text("utf-8"))  # the schema was checked as it was written
    methods = {route["method"] for route in data["routes"]}
    assert methods >= {"fastv", "reroute-fastv", "pdrop", "reroute-pdrop", "reroute-every-block", "nuwa"}
    assert data["setting"]["items"] == ITEMS == data["engines"]["items"]
    assert len(data["unrouted"]["accuracy"]["seeds"]) == 2
    assert data["engines"]["rounds_in_all"] == 2 * len(data["routes"])
    assert data["engines"]["answers"] == ITEMS * data["engines"]["rounds"] >= ITEMS
    assert data["engines"]["differences"] == []
    assert [(one["budget"], one["items"]) for one in data["random_rows"]] == [(0.2, ITEMS)]
    assert "--items 4" in data["made"]["command"]
    flat = next(route for route in data["routes"] if route["method"] == "reroute-every-block")
    assert flat["decisions"][0]["reentered"] == 0 < sum(one["reentered"] for one in flat["decisions"])
    removed = next(route for route in data["routes"] if route["method"] == "pdrop")
    assert all(one["reentered"] == 0 for one in removed["decisions"])


def test_an_evaluation_goes_on_from_the_answers_it_has(results, weights, monkeypatch):
    monkeypatch.setattr(evaluate, "BUDGETS", (Fraction(20, 100),))
    monkeypatch.setattr(evaluate, "ask", None)  # whoever asks again fails
    before = results.read_text("utf-8")
    evaluate.main(
        [
            "--weights",
            str(weights),
            "--items",
            str(ITEMS),
            "--reference-minutes",
            "0",
            "--threads",
            "1",
            "--json",
            str(results.with_name("again.json")),
            "--work",
            str(results.parent / "work"),
        ]
    )
    again = json.loads(results.with_name("again.json").read_text("utf-8"))
    assert again["routes"] == json.loads(before)["routes"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--items", "0"], "argument --items: '0': give a whole number, 1 or more"),
        (["--items", "-1"], "argument --items: '-1'"),
        (["--threads", "0"], "argument --threads: '0'"),
        (["--reference-minutes", "nan"], "argument --reference-minutes: 'nan'"),
        (["--items", "1"], "--json: a part of the evaluation is no new results.json"),
        (["--reference-minutes", "0"], "--json: a part of the evaluation is no new results.json"),
        (["--quick", "--json", "x.json"], "--quick writes nothing"),
        (["--json", "/"], "argument --json: / is a folder"),
        (["--work", __file__], "argument --work"),
        (["--quick", "--weights", "nowhere"], "no folder in it holds a model.safetensors"),
    ],
)
def test_what_it_cannot_mean_is_refused_by_its_option(arguments, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        evaluate.main(arguments)
    assert said in f"{error.value} {capsys.readouterr().err}"
    assert error.value.code != 0


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors"])
def test_damaged_weights_are_named(weights, tmp_path, damage):
    shutil.copytree(weights / "seed-0", tmp_path / "seed-0")
    path = tmp_path / "seed-0" / damage
    path.unlink() if damage == "config.json" else path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SystemExit, match=f"--weights {tmp_path}: cannot be read"):
        evaluate.main(["--quick", "--weights", str(tmp_path)])


def test_kept_answers_are_of_their_items_and_damaged_ones_are_made_again(tmp_path, monkeypatch):
    few = items("validation", 2)
    kept = Kept(tmp_path, few)
    key = kept.key("x", "w", None)
    assert Kept(tmp_path, few).key("x", "w", None) == key
    assert Kept(tmp_path, items("validation", 1)).key("x", "w", None) != key
    monkeypatch.setitem(scenes._RGB, few[0].scene.things[0].kind[1], (1, 2, 3))
    assert Kept(tmp_path, few).key("x", "w", None) != key  # the same names, other pixels
    made = []

    def make():
        made.append(1)
        return {"a": np.arange(3)}

    for _ in range(2):
        assert kept.arrays("x", "w", None, make)["a"].tolist() == [0, 1, 2]
    assert len(made) == 1
    (tmp_path / f"{key}.npz").write_bytes(b"PK damaged")
    kept.arrays("x", "w", None, make)
    assert len(made) == 2


@pytest.mark.parametrize("content", [None, "{}", "no JSON"])
def test_a_plot_of_no_results_is_refused(tmp_path, content):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content, "utf-8")
    with pytest.raises(SystemExit, match="no results of an evaluation"):
        plot.main(["--json", str(path), "--out", str(tmp_path / "x.svg")])
    assert not (tmp_path / "x.svg").exists()


def test_vectors_are_exported_from_models_of_their_shape_alone(weights, tmp_path):
    with pytest.raises(SystemExit, match="vectors are of"):
        export_scores.main(["--weights", str(weights / "seed-0"), "--vectors", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_the_plot_is_an_svg_for_light_and_dark_pages(results):
    svg = plot.drawing(json.loads(results.read_text("utf-8")))
    ET.fromstring(svg)
    assert "prefers-color-scheme: dark" in svg
    assert "#0404" not in svg
    assert "reroute-fastv" in svg


def test_an_interval_is_paired_and_repeats_itself():
    drawn = np.random.default_rng(0)
    right = drawn.random((3, 400)) < 0.7
    found = estimate(right.astype(float))
    assert found == estimate(right.astype(float))
    assert found["low"] < found["mean"] < found["high"]
    shifted = estimate(right - (right - 0.1))  # whatever items do, they do it in both
    assert shifted["low"] == shifted["mean"] == shifted["high"] == 0.1


def test_the_vectors_are_of_the_shipped_weights(tmp_path):
    assert export_scores.main(["--vectors", str(tmp_path), "--items", "2"]) == 0
    made, given = (load_file(root / TRAINED) for root in (tmp_path, V1))
    assert made.keys() <= given.keys()
    for name, tensor in made.items():  # a processor's own sums may end in other bits
        assert torch.allclose(tensor.double(), given[name].double(), rtol=1e-3, atol=1e-6), name


def test_the_vectors_decoder_is_the_model_cut_off():
    model = load(evaluate.WEIGHTS / "seed-0")
    assert export_scores.decoder_config(model) == DECODER
    assert export_scores.VISUAL == VISUAL


def test_a_vector_is_made_of_every_score():
    found = {vector.data["id"]: vector for vector in trained_vectors()}
    scores = [name.removeprefix("scores.") for name in load_file(V1 / TRAINED) if name.startswith("scores.")]
    assert len(scores) > 20
    for name in scores:
        assert len(found[name].data["expected"]["exact"]["selected"]) == found[name].data["inputs"]["k"]
    again = [vector for vector in found.values() if vector.data["kind"] == "trace"]
    reentered = [
        d["reentered"] for v in again for t in v.data["expected"]["exact"]["traces"] for d in t["decisions"]
    ]
    assert any(reentered)


def test_pages_say_what_the_results_say():
    """Every `+1.2 points (+0.8 to +1.6)` is a difference in the results."""
    data = json.loads((evaluate.HERE / "results.json").read_text("utf-8"))
    estimates = [pair[metric] for pair in data["pairs"] for metric in ("accuracy", "gist")]
    for one in data["random_rows"]:
        estimates += [one[method]["scored_over_drawn"] for method in ("fastv", "reroute-fastv")]
        estimates.append(one["drawn_rerouted_over_removed"])
    known = {
        f"{100 * one['mean']:+.1f} points ({100 * one['low']:+.1f} to {100 * one['high']:+.1f})"
        for one in estimates
    }
    root = evaluate.HERE.parents[1]
    for page in ("README.md", "benchmarks/grounding/README.md", "docs/explanation/reroute.md"):
        said = re.findall(r"[+-][\d.]+ points \([^)]*\)", (root / page).read_text("utf-8").replace("\n", " "))
        assert said, page
        assert set(said) <= known, page


def test_shipped_weights_are_those_of_the_results():
    data = json.loads((evaluate.HERE / "results.json").read_text("utf-8"))
    paths = sorted(evaluate.WEIGHTS.glob("*/model.safetensors"))
    assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths] == data["made"]["weights_sha256"]
    assert sum(path.stat().st_size for path in paths) < 16e6
    assert len(data["unrouted"]["accuracy"]["seeds"]) == 3
    assert data["unrouted"]["accuracy"]["low"] >= 0.8
    assert data["setting"]["items"] >= 2000
    assert data["engines"]["rounds"] >= 1
