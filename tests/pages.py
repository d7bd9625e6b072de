"""Pages of Markdown as programs: what they show is run, in the order in which a reader would run it.

What stands directly before a block, in a comment of its own, says how:

- ``<!-- not run: REASON -->``: only that it is valid, and that what it names exists;
- ``<!-- run by tests/FILE.py -->``: another test does it, which names the same scripts or commands;
- ``<!-- few cases -->``: with every check of the suite on one case;
- ``<!-- exits N -->``: its last command ends with that code.

A ``text`` block holds lines that the block before it prints. A block with a title is the file of that name.
"""

import ast
import json
import os
import re
import runpy
import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

from reroute_conformance.checks import checks
from reroute_conformance.cli import app, main
from reroute_spec import Schedule
from typer.main import get_command

ROOT = Path(__file__).parents[1]
FOLDERS = ("reference", "optimized", "conformance", "view", "examples/port-c")
_BLOCK = re.compile(
    r"^(?:<!-- (?P<marks>[^\n]*) -->\n)?```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?[^\n]*\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    where: str
    marks: str
    language: str
    title: str | None
    text: str

    @property
    def not_run(self) -> str | None:
        """Why it is not run."""
        found = re.match(r"not run: (.*)", self.marks)
        return found and found[1]

    @property
    def elsewhere(self) -> str | None:
        """The test that runs it."""
        found = re.match(r"run by (\S+)", self.marks)
        return found and found[1]

    @property
    def code(self) -> int:
        """What its last command ends with."""
        found = re.search(r"exits (\d)", self.marks)
        return int(found[1]) if found else 0


def pages():
    """The README, all of ``docs/``, and the READMEs of folders that are pages of the site."""
    folders = [ROOT / folder / "README.md" for folder in FOLDERS]
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *folders]


def blocks(page):
    """The fenced blocks of a page, in order."""
    text = page.read_text("utf-8")
    assert text.count("\n```") == 2 * len(list(_BLOCK.finditer(text))), f"{page}: a block of another form"
    return [
        Block(
            f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}",
            match["marks"] or "",
            match["language"],
            match["title"],
            match["text"],
        )
        for match in _BLOCK.finditer(text)
    ]


def commands(block):
    """The command lines of a block, as lists of words."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def on_one_case():
    """The checks of the suite, each on one of its cases."""
    return tuple(replace(check, examples=1) for check in checks())


class Reader:
    """Runs a page in a folder of its own.

    Attributes:
        names: what its Python has defined so far.
        printed: all that it has printed, block by block.
    """

    def __init__(self, folder, patch):
        self.names, self.printed = {"__name__": "page"}, []
        self._patch = patch
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

    def read(self, page):
        """Run all of a page."""
        known = set(sys.modules)
        try:
            for block in blocks(page):
                self.run(block)
        finally:
            for name in set(sys.modules) - known:
                if not isinstance(getattr(sys.modules[name], "__file__", None), str):
                    continue
                if Path(sys.modules[name].__file__).parent == Path.cwd():
                    del sys.modules[name]

    def run(self, block):
        """Run one block, or look at what it holds."""
        if block.title is not None:
            Path(block.title).write_text(block.text, "utf-8")
        if block.language == "json":
            data = json.loads(block.text)
            assert "decisions" not in data or Schedule.from_dict(data), block.where
        elif block.language == "text":
            self._compare(block)
        elif block.not_run is not None:
            assert len(block.not_run.split()) > 1, f"{block.where}: say why"
            look_at(block)
        elif block.elsewhere is not None:
            look_at(block)
            there = (ROOT / block.elsewhere).read_text("utf-8")
            for words in commands(block):
                named = [Path(word).name for word in words if word.startswith("examples/")] or words[1:2]
                assert all(name in there for name in named), (
                    f"{block.where}: {named} not in {block.elsewhere}"
                )
        else:
            self._run(block)

    def _run(self, block):
        heard = StringIO()
        with redirect_stdout(heard), redirect_stderr(heard):
            if block.language == "python":
                exec(compile(block.text, block.where, "exec"), self.names)
            else:
                assert block.language == "sh", f"{block.where}: nobody runs {block.language}"
                self._shell(block)
        self.printed.append(heard.getvalue())

    def _shell(self, block):
        lines = commands(block)
        for index, words in enumerate(lines):
            expected = block.code if index == len(lines) - 1 else 0
            with self._patch.context() as patch:
                if "few cases" in block.marks:
                    patch.setattr("reroute_conformance.running.runner.checks", on_one_case)
                code = _command(words, patch)
            assert code == expected, f"{block.where}: {' '.join(words)} ends with {code}"

    def _compare(self, block):
        """Lines of what was printed last, in order; the space between words is the terminal's."""
        printed = (
            iter(" ".join(line.split()) for line in self.printed[-1].splitlines())
            if self.printed
            else iter(())
        )
        for line in block.text.splitlines():
            wanted = " ".join(line.split())
            assert any(found.startswith(wanted) for found in printed), f"{block.where}: not printed: {line}"


def _command(words, patch):
    """Run one command in this process."""
    if words == [".", ".venv/bin/activate"]:
        return 0
    if words[0] == "python":
        patch.setattr(sys, "argv", words[1:])
        runpy.run_path(str(ROOT / words[1]), run_name="__main__")
        return 0
    assert words[0] == "vlm-reroute", f"mark it: {' '.join(words)} is run by nobody"
    patch.setattr(sys, "argv", words)
    try:
        main()
    except SystemExit as stop:
        return stop.code
    raise AssertionError("unreachable: main always exits")


def look_at(block):
    """Of a block that is not run: its syntax, its imports, and that commands, options, scripts and targets exist."""
    if block.language == "python":
        tree = ast.parse(block.text, block.where)
        imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        exec(compile(ast.Module(imports, []), block.where, "exec"), {})
        return
    for words in commands(block):
        for word in words:
            assert not word.startswith("examples/") or (ROOT / word).exists() or word.endswith("/port"), (
                block.where
            )
        if words[0] == "vlm-reroute":
            get_command(app).make_context("vlm-reroute", words[1:]).close()
            group, rest = get_command(app), words[1:]
            while hasattr(group, "commands"):
                group, rest = group.commands[rest[0]], rest[1:]
            group.make_context(words[1], list(rest)).close()
        elif words[0] == "make" and len(words) == 2:
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE), (
                block.where
            )
