"""A schedule's plain data from a JSON or YAML file. Numbers with a point stay text: no ratio becomes a binary float."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import RerouteError

if TYPE_CHECKING:
    import yaml

SUFFIXES = (".json", ".yaml", ".yml")


def read_schedule_file(path: Path) -> Any:
    """What the file holds: for JSON what it says, for YAML strings, integers, booleans, null, lists and mappings.

    In YAML an unquoted ``0.2644`` reads as the string, and so does ``1.0``: a number with a point is a ratio.

    Raises:
        RerouteError: a file that cannot be read or parsed, is empty, or gives a key twice.
    """
    kind = "JSON" if path.suffix.lower() == ".json" else "YAML"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RerouteError(
            "schedule", f"{path} cannot be read ({error})", f"give a readable UTF-8 {kind} file"
        ) from None
    data = _parse_json(text, path) if kind == "JSON" else _parse_yaml(text, path)
    if data is None:
        raise RerouteError("schedule", f"{path} is empty", "see schemas/schedule.json")
    return data


def _parse_json(text: str, path: Path) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_no_duplicates)
    except RerouteError:
        raise
    except (ValueError, RecursionError) as error:
        raise RerouteError("schedule", f"{path} is no JSON ({error})", "see schemas/schedule.json") from None


def _parse_yaml(text: str, path: Path) -> Any:
    import yaml

    try:
        return yaml.load(text, Loader=_loader())  # _loader derives from SafeLoader
    except RerouteError:
        raise
    except (yaml.YAMLError, ValueError, LookupError, RecursionError) as error:
        message = " ".join(str(error).split())
        raise RerouteError(
            "schedule", f"{path} is no YAML ({message})", "see schemas/schedule.json"
        ) from None


def _no_duplicates(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    data: dict[Any, Any] = {}
    for key, value in pairs:
        if key in data:
            raise RerouteError(str(key), "is given twice", "give each key once")
        data[key] = value
    return data


@cache
def _loader() -> type[yaml.SafeLoader]:
    """A safe loader that knows integers, booleans and null by their plainest form; every other scalar is its text.

    YAML 1.1 reads ``010`` as 8, ``1:30`` as 90 and ``no`` as false: none of that is meant in a schedule.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # PyYAML's own form

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
            pairs = []
            for key_node, value_node in node.value:
                key = self.construct_object(key_node, deep=True)
                if not isinstance(key, Hashable):
                    raise yaml.constructor.ConstructorError(
                        None, None, "a key is a list or a mapping", key_node.start_mark
                    )
                pairs.append((key, self.construct_object(value_node, deep=deep)))
            return _no_duplicates(pairs)

    integers = r"-?(0|[1-9][0-9]*)"
    for tag, form, first in (
        ("int", integers, "-0123456789"),
        ("bool", "true|false|True|False", "tfTF"),
        ("null", "~|null|", ["~", "n", ""]),
    ):
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"(?:{form})$"), list(first))

    def refuse(_: Loader, node: yaml.Node) -> Any:
        raise yaml.constructor.ConstructorError(None, None, "a number is tagged !!float", node.start_mark)

    def integer(loader: Loader, node: yaml.ScalarNode) -> int:
        text = loader.construct_scalar(node)
        if re.fullmatch(integers, text) is None:  # an explicit !!int would be read as YAML 1.1 has it
            raise yaml.constructor.ConstructorError(
                None, None, f"{text!r} is no decimal integer", node.start_mark
            )
        return int(text)

    Loader.add_constructor("tag:yaml.org,2002:float", refuse)
    Loader.add_constructor("tag:yaml.org,2002:int", integer)
    return Loader
