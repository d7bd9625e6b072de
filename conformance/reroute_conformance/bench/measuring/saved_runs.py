"""Reads a run of the benchmark from its JSON file, and refuses a file that is not in the form of ``schemas/bench.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
from reroute_spec import RerouteError
from reroute_spec.schemas import schema

_REMEDY = "give what --json wrote"


def read(option: str, path: Path) -> dict[str, Any]:
    """The run in a file.

    Args:
        option: that named the file, for the error.
        path: of the file.

    Raises:
        RerouteError: no JSON, or none in the form of ``schemas/bench.json``; it names the field.
    """

    def constant(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    try:
        record = json.loads(path.read_text("utf-8"), parse_constant=constant)
    except (OSError, ValueError, RecursionError) as error:
        raise RerouteError(option, f"{path} cannot be read ({error})", _REMEDY) from None
    form = schema("bench")
    if not isinstance(record, dict) or record.get("format") != form["$id"]:
        raise RerouteError(option, f"{path} is no run in the format {form['$id']}", _REMEDY)
    wrong = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(form).iter_errors(record))
    if wrong is not None:
        field = wrong.json_path.removeprefix("$").removeprefix(".") or "the run"
        raise RerouteError(option, f"{path}, {field}: {wrong.message[:200]}", _REMEDY)
    found: dict[str, Any] = record
    return found
