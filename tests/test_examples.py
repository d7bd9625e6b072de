"""What the examples show, runs, and cites rules that exist."""

import os
import re
import runpy
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from reroute_conformance.tiny import tiny_processor
from reroute_spec.rules import rules

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_walk_through_the_reference_follows_one_token_with_rule_numbers(capsys):
    runpy.run_path(str(EXAMPLES / "reference_walkthrough.py"), run_name="__main__")
    printed = capsys.readouterr().out
    cited = re.findall(r"\[(RR-[A-Z]+-\d{3})\]$", printed, re.MULTILINE)
    assert len(cited) > 20
    assert set(cited) <= rules().keys()
    assert "deferred" in printed
    assert "its state changes by 0.0, bit for bit" in printed
    assert "selected, and re-enters" in printed
    assert "joins every cache: (47, 20, 20, 20, 20, 20, 20, 20)" in printed


def run_example(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.syspath_prepend(str(EXAMPLES))  # as Python does for a script
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_a_chat_goes_on_over_turns_and_images(monkeypatch, capsys):
    run_example(monkeypatch, "chat_with_image.py", "--tokens", "3")
    printed = capsys.readouterr().out
    assert printed.count("\n> ") == 3
    # the second turn is of text: what is told is still the first image's routing
    assert printed.count("last image: 46 rows, 36 visual") == 2
    assert "and in this one ?" in printed
    assert printed.count("visual rows run") == 12


def test_many_questions_start_after_one_image(monkeypatch, capsys):
    run_example(monkeypatch, "many_questions_one_image.py", "--tokens", "2", "--question", "what is it ?")
    printed = capsys.readouterr().out
    # user : and 36 rows of the image, in block 0
    assert "1 questions started after 38 rows in each of the first 1 blocks: 38 rows and" in printed
    run_example(monkeypatch, "many_questions_one_image.py", "--tokens", "2")
    printed = capsys.readouterr().out
    assert printed.count("\n> ") == 4
    assert "5 questions started after 38 rows" in printed


def test_pictures_are_captioned_in_batches(monkeypatch, capsys):
    run_example(monkeypatch, "batch_captioning.py", "--batch", "2", "--schedule", "reroute-pdrop-64")
    printed = capsys.readouterr().out
    assert [printed.count(f"drawn {angle}:") for angle in (0, 90, 180)] == [1, 1, 1]
    assert printed.count("36 visual rows") == 3


TEMPLATE = (
    "{% for message in messages %}user : {% for part in message.content %}"
    "{{ '<image>' if part.type == 'image' else part.text }} {% endfor %}{% endfor %}assistant :"
)


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_a_pipeline_answers_through_a_routed_model(monkeypatch, capsys, template):
    # a checkpoint's processor has a template, the tiny one has none
    monkeypatch.setattr(tiny_processor(), "chat_template", template)
    run_example(monkeypatch, "pipeline.py", "--tokens", "3")
    question, answer, told = capsys.readouterr().out.splitlines()
    assert question == "> where is the red ball ?"
    assert answer.strip()
    assert told == "36 visual rows, 12.4 of them run in a block on average"


def launched(*command):
    """What a launcher's processes print; none of them outlives it."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, said = process.communicate(timeout=100)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said[-3000:]
    return printed


@pytest.mark.slow
def test_processes_that_share_a_models_heads_decide_alike():
    printed = launched(
        "torch.distributed.run",
        *["--standalone", "--nproc-per-node", "2"],
        str(EXAMPLES / "tensor_parallel.py"),
    )
    assert re.findall(r"process (\d), heads divided among 2", printed) == ["0", "1"]
    assert printed.count("9 of 36 rows") == 8
    assert "every process decided alike, bit for bit" in printed


@pytest.mark.slow
def test_accelerate_divides_pictures_among_processes():
    printed = launched(
        "accelerate.commands.launch",
        *["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"],
        *[str(EXAMPLES / "batch_captioning.py"), "--batch", "1"],
    )
    assert [printed.count(f"drawn {angle}:") for angle in (0, 90, 180)] == [1, 1, 1]
    assert sorted(re.findall(r"process \d of 2", printed)) == ["process 0 of 2", "process 1 of 2"]
