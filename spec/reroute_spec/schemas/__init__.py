"""JSON schemas of the project's data formats."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any


def schema(name: str) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) called ``name``: ``schedule`` or ``trace``."""
    data: dict[str, Any] = json.loads(resources.files(__name__).joinpath(f"{name}.json").read_text("utf-8"))
    return data
