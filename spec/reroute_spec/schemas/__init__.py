"""JSON schemas (draft 2020-12) of the project's data formats; ``spec/FORMATS.md`` describes them."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

FORMATS = ("schedule", "trace", "view", "vector", "protocol", "report", "bench")


def schema(name: str) -> dict[str, Any]:
    """The JSON schema called ``name``, one of :data:`FORMATS`. Its ``$id`` ends in the format's version.

    The schemas of the protocol refer to those of vectors and traces by ``$id``, that of views to schedules and traces.
    """
    data: dict[str, Any] = json.loads(resources.files(__name__).joinpath(f"{name}.json").read_text("utf-8"))
    return data
