"""What the examples show, runs, and cites rules that exist."""

import re
import runpy
import sys
from pathlib import Path

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
