"""Benchmarks by lmms-eval, offline: the models and tasks are small, the rest is what a user runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from reroute_optimized.integrations.lmms import TASKS
from reroute_spec import RerouteError

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: make lmms")

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

from . import checkpoints, local_tasks

FAMILIES = ("llava_hf", "qwen2_5_vl", "qwen3_vl")
LOADED_BY = {"qwen3_5": "reroute_qwen3_vl"}
KEEP_ALL = {"action": "reroute", "decisions": [{"layer": 3, "keep": "1.0"}, {"layer": 7, "keep": "1.0"}]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint of each family, the tasks, and a schedule that keeps every row."""
    folder = tmp_path_factory.mktemp("lmms")
    checkpoints.llava(folder / "llava_hf")
    for family in (*FAMILIES[1:], *LOADED_BY):
        checkpoints.qwen(folder / family, family)
    (folder / "tasks").mkdir()
    local_tasks.write(folder / "tasks")
    (folder / "keep-all.json").write_text(json.dumps(KEEP_ALL))
    return folder


@pytest.fixture(scope="module")
def manager(place):
    return TaskManager(include_path=str(place / "tasks"), include_defaults=False)


@pytest.fixture(scope="module")
def evaluate(place, manager):
    """What lmms-eval makes of a task, asked as its command line asks."""

    def run(family, reroute="", task="local_questions", model="", more="", **options):
        arguments = f"pretrained={place / family},device_map=cpu{more}"
        return simple_evaluate(
            **{"model": model or LOADED_BY.get(family, f"reroute_{family}"), "tasks": [task]},
            **{"model_args": f"{arguments},reroute={reroute}" if reroute else arguments},
            **{"task_manager": manager, "device": "cpu", "batch_size": 1, "bootstrap_iters": 0, **options},
        )

    return run


def answers(results, task="local_questions"):
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["filtered_resps"] for sample in samples]


@pytest.mark.parametrize("force_simple", [False, True], ids=["chat", "simple"])
@pytest.mark.parametrize("family", [*FAMILIES, *LOADED_BY])
def test_routing_changes_answers_and_keeping_every_row_does_not(evaluate, place, family, force_simple):
    plain, kept, routed = (
        evaluate(family, reroute, force_simple=force_simple)
        for reroute in ("", place / "keep-all.json", "reroute-pdrop-64")
    )
    assert len(answers(plain)) == len(local_tasks.QUESTIONS)
    assert all(any(answer.strip() for answer in given) for given in answers(plain))
    assert answers(kept) == answers(plain)
    assert answers(routed) != answers(plain)
    assert not any("reroute" in name for name in plain.get("throughput", {}))
    assert kept["throughput"]["avg_reroute_kv_share"] == 1
    seen, run = (routed["throughput"][f"avg_reroute_visual_rows{end}"] for end in ("", "_run"))
    assert 0 < run < seen == kept["throughput"]["avg_reroute_visual_rows_run"]
    assert routed["throughput"]["avg_reroute_kv_share"] < 1


def test_a_model_that_is_not_routed_answers_as_lmms_evals_own(evaluate):
    ours = evaluate("qwen2_5_vl")
    theirs = evaluate("qwen2_5_vl", model="qwen2_5_vl")
    assert answers(ours) == answers(theirs)


@pytest.mark.parametrize("family", FAMILIES[1:])
def test_batches_are_routed_request_by_request(evaluate, family):
    one, two = (evaluate(family, "reroute-pdrop-64", batch_size=size) for size in (1, 2))
    assert len(answers(two)) == len(local_tasks.QUESTIONS)
    for name in ("visual_rows", "visual_rows_run", "kv_share"):
        assert one["throughput"][f"avg_reroute_{name}"] == two["throughput"][f"avg_reroute_{name}"]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"reroute": "reroute-pdrop-63"}, "reroute-pdrop-63"),
        ({"reroute": "missing.yaml"}, "missing.yaml"),
        ({"reroute": "64"}, "reroute"),
        ({"more": ",reroute_backend=tritn"}, "tritn"),
        ({"batch_size": 2}, "batch_size"),
        ({"batch_size": "auto"}, "batch_size"),
    ],
)
def test_wrong_arguments_are_refused_before_the_model_is_loaded(evaluate, more, named):
    arguments = {"reroute": "reroute-pdrop-64", "model": "reroute_llava_hf", **more}
    with pytest.raises(RerouteError, match=named):
        evaluate("no-such", **arguments)


@pytest.mark.parametrize("reroute", ["", "reroute-pdrop-64"])
@pytest.mark.parametrize("force_simple", [False, True], ids=["chat", "simple"])
def test_an_error_in_generate_is_no_empty_answer(evaluate, reroute, force_simple):
    with pytest.raises(ValueError, match="max_new_tokens"):
        evaluate("llava_hf", reroute, gen_kwargs="max_new_tokens=0", force_simple=force_simple)


def test_loglikelihood_of_a_routed_model_is_refused(evaluate):
    with pytest.raises(RerouteError, match="loglikelihood"):
        evaluate("llava_hf", "reroute-pdrop-64", "local_choices", force_simple=True)


@pytest.mark.parametrize("reroute", ["", "reroute-pdrop-64"])
def test_a_prompt_without_a_picture_is_not_answered_by_the_one_before(evaluate, reroute):
    with pytest.raises(RerouteError, match="has no picture"):
        evaluate("llava_hf", reroute, "local_unseen", force_simple=True)
    with pytest.raises(IndexError):  # transformers', which takes no empty list of pictures
        evaluate("llava_hf", reroute, "local_unseen")


def test_prompts_without_a_picture_are_answered_by_a_qwen(evaluate):
    results = evaluate("qwen2_5_vl", "reroute-pdrop-64", "local_unseen")
    assert all(any(answer.strip() for answer in given) for given in answers(results, "local_unseen"))


def test_every_round_is_routed(evaluate, place):
    plain, kept, routed = (
        evaluate("qwen2_5_vl", reroute, "local_rounds", force_simple=True)
        for reroute in ("", place / "keep-all.json", "reroute-pdrop-64")
    )
    spoken = [answers(results, "local_rounds") for results in (plain, kept, routed)]
    assert plain["results"]["local_rounds"]["words,none"] > 12  # no round has more
    assert spoken[0] == spoken[1] != spoken[2]


def test_refcocos_tasks_are_found_and_are_nobody_elses():
    index = TaskManager(include_path=str(TASKS)).task_index
    for family in ("llava", "qwen2_5_vl", "qwen3_vl"):
        names = [f"refcoco_{family}_{split}" for split in ("val", "testA", "testB")]
        assert all(index[name]["yaml_path"].startswith(str(TASKS)) for name in names)
        assert sorted(index[f"refcoco_{family}"]["task"]) == sorted(names)


@pytest.mark.parametrize(("family", "task"), zip(FAMILIES, ("llava", "qwen2_5_vl", "qwen3_vl"), strict=True))
def test_refcoco_asks_every_sentence(evaluate, family, task):
    results = evaluate(family, "reroute-pdrop-64", f"local_refcoco_{task}")
    assert len(results["samples"][f"local_refcoco_{task}"]) == 3
    assert results["results"][f"local_refcoco_{task}"]["refcoco_answered,none"] == 0
    assert results["results"][f"local_refcoco_{task}"]["refcoco_acc,none"] == 0


def test_the_command_line_of_the_documentation(place, tmp_path):
    printed = subprocess.run(
        [sys.executable, "-m", "reroute_optimized.integrations.lmms"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (Path(printed.stdout.strip()) / "refcoco").is_dir()
    arguments = {
        "--model": "reroute_llava_hf",
        "--model_args": f"pretrained={place / 'llava_hf'},reroute=reroute-pdrop-64",
        "--tasks": "local_questions",
        "--include_path": str(place / "tasks"),
        "--output_path": str(tmp_path),
        "--device": "cpu",
    }
    said = subprocess.run(
        [sys.executable, "-m", "lmms_eval", *(word for pair in arguments.items() for word in pair)],
        **{"capture_output": True, "text": True, "timeout": 110, "check": True},
    )
    assert "routed by reroute-pdrop-64" in said.stdout
    (written,) = tmp_path.rglob("*_results.json")
    throughput = json.loads(written.read_text())["throughput"]
    assert throughput["avg_reroute_visual_rows"] == 36 > throughput["avg_reroute_visual_rows_run"]
