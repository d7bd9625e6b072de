"""The page of the command line, read from the commands themselves."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

_INTRO = """# Command line

`vlm-reroute --help` and `vlm-reroute COMMAND --help` say the same in a terminal. Options that are not shown with a default may be left out.
"""


def page(root: Path) -> str:
    """The page."""
    for folder in ("spec", "view", "reference", "optimized", "conformance"):
        if (path := str(root / folder)) not in sys.path:
            sys.path.append(path)  # where the packages are not installed, as when only the site is built
    from reroute_conformance.cli import app
    from typer.main import get_command

    lines = [_INTRO, app.info.epilog or "", ""]
    for name, command in _commands(get_command(app), ()):
        lines += [f"## {name}", "", *_described(name, command), ""]
    return "\n".join(lines)


def _commands(group: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def _described(name: str, command: Any) -> Iterator[str]:
    given = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option"]
    words = [param.name.upper() if param.required else f"[{param.name.upper()}]" for param in given]
    yield f"```text\nvlm-reroute {' '.join([name, *words, '[OPTIONS]'])}\n```\n"
    yield (command.help or "") + "\n"
    if not command.params:
        return
    yield "| | | default |\n|---|---|---|"
    for param in (*given, *options):
        shown = param.name.upper() if param in given else ", ".join(param.opts)
        yield f"| `{shown}` | {escape(getattr(param, 'help', None) or '', quote=False)} | {_default(param)} |"


def _default(param: Any) -> str:
    if param.required:
        return "required"
    if (
        param.default is None
        or param.default is False
        or callable(param.default)
        or repr(param.default).startswith("Sentinel")
    ):
        return ""
    return f"`{getattr(param.default, 'value', param.default)}`"
