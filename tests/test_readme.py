"""What the README shows, runs."""

import re
from pathlib import Path

BLOCKS = re.findall(
    r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text("utf-8"), re.DOTALL
)


def test_the_checkpoint_example_is_valid_python_that_imports_what_exists():
    checkpoint = BLOCKS[0]
    compile(checkpoint, "README.md", "exec")
    exec("\n".join(line for line in checkpoint.splitlines() if re.match(r"import |from .* import", line)), {})


def test_the_tiny_example_runs(capsys):
    exec(compile(BLOCKS[1], "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "torch.Size([1, 50]) (46, 19, 19, 19, 19, 19, 19, 19)" in printed
    assert printed.count("rows run") == 4


def test_what_was_decided_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(BLOCKS[1], "README.md", "exec"), names)
    exec(compile(BLOCKS[3], "README.md", "exec"), names)
    assert "<h3>pdrop-192</h3>" in (tmp_path / "trace.html").read_text("utf-8")
    assert len(names["figure"].axes) == 18


def test_many_questions_about_one_image_are_asked(capsys):
    names = {}
    exec(compile(BLOCKS[1], "README.md", "exec"), names)
    exec(compile(BLOCKS[2], "README.md", "exec"), names)
    assert names["prefix"].served == 2
    assert names["prefix"].saved.rows == 38 * len(names["prefix"].saved.blocks) > 0
