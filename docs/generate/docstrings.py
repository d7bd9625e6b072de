"""Docstrings name other objects by Sphinx's roles, which editors show too; the site wants links, where there is something to link to."""

from __future__ import annotations

import re
from pathlib import Path

from generate.api import public

ROOT = Path(__file__).parents[2]
_ROLE = re.compile(r":\w+:`(~?)([^`]+)`")


def plain(text: str) -> str:
    """Roles as links to public objects, or as code."""
    known = public(ROOT)

    def link(match: re.Match[str]) -> str:
        name = match[2].removesuffix("()")
        shown = name.rpartition(".")[2] if match[1] else name
        owner, _, member = name.rpartition(".")
        path = known.get(name) or (f"{known[owner]}.{member}" if owner in known else None)
        return f"`{shown}`" if path is None else f"[`{shown}`][{path}]"

    return re.sub(r"``([^`]+)``", r"`\1`", _ROLE.sub(link, text))
