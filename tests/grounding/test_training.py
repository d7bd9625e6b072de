"""Training goes on where it was stopped, and learns."""

import json

import pytest
import torch

from benchmarks.grounding import train
from benchmarks.grounding.model import load

SMALL = ["--threads", "1", "--steps", "4", "--blocks", "2", "--width", "32", "--validation", "4"]


def options(folder):
    """As the command line would read them."""
    found = train.parser().parse_args(["--out", str(folder), *SMALL])
    torch.set_num_threads(found.threads)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of four steps, not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert train.main(["--out", str(folder), *SMALL]) == 0
    return folder


def test_a_stopped_run_ends_in_the_same_weights(whole, tmp_path):
    first = train.Training(options(tmp_path))
    for _ in range(2):
        first.learn()
    first.stopping = True
    assert not train.run(first, train.Console(quiet=True))
    assert train.main(["--out", str(tmp_path), *SMALL]) == 0
    for name, tensor in load(whole).state_dict().items():
        assert torch.equal(tensor, load(tmp_path).state_dict()[name]), name
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    train.Training(options(tmp_path)).keep()
    with pytest.raises(SystemExit, match="give those, or another --out"):
        train.main(["--out", str(tmp_path), *SMALL, "--seed", "1"])


def test_what_is_trained_is_not_trained_over(whole):
    with pytest.raises(SystemExit, match="is trained already"):
        train.main(["--out", str(whole), *SMALL])


def test_the_log_says_settings_and_what_the_shipped_weights_reach(whole):
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text("utf-8").splitlines()]
    assert lines[0]["started"]["steps"] == 4
    assert not lines[0]["started"]["resumed"]
    assert lines[-1]["step"] == 4
    assert 0 <= lines[-1]["final"]["accuracy"] <= lines[-1]["final"]["items"] == 16


def test_steps_lower_the_loss_of_a_batch(tmp_path, monkeypatch):
    same = train.batch("same", 4)
    monkeypatch.setattr(train, "batch", lambda name, pictures: same)
    training = train.Training(options(tmp_path))
    training.options.steps = 40
    found = [training.learn()["loss"] for _ in range(12)]
    assert found[-1] < 0.9 * found[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "-1"], "argument --steps: '-1': give a whole number, 0 or more"),
        (["--minutes", "0"], "argument --minutes: 0: give a time, or --steps"),
        (["--minutes", "nan"], "argument --minutes: 'nan'"),
        (["--width", "40"], "argument --width: 40: give a multiple of 32"),
        (["--blocks", "0"], "argument --blocks: '0'"),
        (["--threads", "0"], "argument --threads: '0'"),
        (["--validation", "0"], "argument --validation: '0'"),
        (["--out", __file__], "argument --out"),
    ],
)
def test_what_it_cannot_mean_is_refused_by_its_option(tmp_path, arguments, said, capsys):
    with pytest.raises(SystemExit) as error:
        train.main(["--out", str(tmp_path / "out"), *arguments])
    assert error.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "log.jsonl").exists()


def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"damaged")
    with pytest.raises(SystemExit, match=r"checkpoint\.pt cannot be read"):
        train.main(["--out", str(tmp_path), *SMALL])
