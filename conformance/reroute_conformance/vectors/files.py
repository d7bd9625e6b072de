"""Reads and writes a vector as a folder with ``case.json`` and, where it has tensors of its own, ``tensors.safetensors``.

Reading checks the form of ``case.json`` by its JSON schema and that every tensor that it names is there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
from referencing import Registry, Resource
from reroute_spec import RerouteError
from reroute_spec.canonical import CanonicalConfig
from reroute_spec.schemas import schema
from safetensors.torch import load, save
from torch import Tensor

V1 = Path(str(resources.files(__package__))) / "v1"
CASE_FILE, TENSOR_FILE, SHARED = "case.json", "tensors.safetensors", "shared"
_SHARED_FILE = re.compile(rf"\.\./\.\./({SHARED}/[a-z0-9][a-z0-9._-]*\.safetensors)")


@dataclass(frozen=True)
class Vector:
    """One vector, as its files have it.

    Attributes:
        data: the content of ``case.json``.
        tensors: the tensors of its own, by key.
        shared: files of tensors that several vectors name, by their path in ``v1``, for example
            ``shared/plain.safetensors``.
    """

    data: dict[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    shared: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Kind and id: its path in ``v1``."""
        return f"{self.data['kind']}/{self.data['id']}"

    def tensor(self, name: str) -> Tensor:
        """A tensor by its key, or by a file, a colon, and its key there.

        Raises:
            RerouteError: there is none.
        """
        file, _, key = name.rpartition(":")
        found = (self._file(file) if file else self.tensors).get(key)
        if found is None:
            raise RerouteError(f"tensor {name}", "is missing", "take the vector's files unchanged")
        return found

    def weights(self) -> dict[str, Tensor]:
        """The decoder's weights by their own names: of several prefixes the first that has it."""
        decoder = self.data["inputs"]["decoder"]
        given = decoder["weights"]
        prefixes = [given] if isinstance(given, str) else given
        weights = {}
        for name in CanonicalConfig.from_dict(decoder["config"]).weight_shapes():
            places = [prefix for prefix in prefixes if self._has(prefix + name)]
            weights[name] = self.tensor((places or prefixes)[0] + name)
        return weights

    def named(self) -> Iterator[str]:
        """Every tensor that is named by itself, not by a prefix."""
        yield from _named(self.data)

    def _has(self, name: str) -> bool:
        file, _, key = name.rpartition(":")
        return key in (self._file(file) if file else self.tensors)

    def _file(self, name: str) -> Mapping[str, Tensor]:
        found = _SHARED_FILE.fullmatch(name)
        if found is None or found[1] not in self.shared:
            raise RerouteError(f"file {name}", "is not among the vector's", f"name ../../{SHARED}/FILE")
        return self.shared[found[1]]


def read_vector(folder: Path) -> Vector:
    """The vector of a folder, its form checked and all its tensors there.

    Raises:
        RerouteError: a folder that holds none, or a damaged one.
    """
    try:
        data = json.loads((folder / CASE_FILE).read_text("utf-8"))
        problem = next(_validator().iter_errors(data), None)
        if problem is not None:
            raise ValueError(f"{problem.json_path}: {problem.message[:200]}")
        path = folder / TENSOR_FILE
        content = path.read_bytes() if path.exists() else b""
        due = data.get("suite", {}).get("tensors")
        if due is not None and sha256(content).hexdigest() != due:
            raise ValueError(f"{TENSOR_FILE} was changed: its digest is not the one in {CASE_FILE}")
        tensors = load(content) if content else {}
        files = {found[1] for name in _texts(data) if (found := _SHARED_FILE.match(name))}
        vector = Vector(data, tensors, {name: _shared(folder.parents[1] / name) for name in files})
        for name in vector.named():
            vector.tensor(name)
        if "decoder" in data.get("inputs", {}):
            vector.weights()
    except RerouteError:
        raise
    except Exception as error:  # JSON, its form, safetensors: whatever is wrong with the files
        problem_ = f"{folder} is no saved case ({type(error).__name__}: {error})"
        raise RerouteError("CASE", problem_, "give a folder that conform wrote, or a vector") from None
    return vector


def write_vector(vector: Vector, folder: Path) -> None:
    """Write a vector's own files; the same vector gives the same bytes. Its folder has nothing else in it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CASE_FILE).write_text(as_text(vector.data), "utf-8")
    if vector.tensors:
        (folder / TENSOR_FILE).write_bytes(tensor_bytes(vector.tensors))
    else:
        (folder / TENSOR_FILE).unlink(missing_ok=True)


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tensor_bytes(tensors))


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file."""
    content: bytes = save({name: tensors[name].contiguous() for name in sorted(tensors)})
    return content


def as_text(data: Any) -> str:
    """JSON for people: an entry per line down to the third level, what is deeper on its line."""
    return _lines(data, 0) + "\n"


def _lines(value: Any, depth: int) -> str:
    if depth == 3 or not isinstance(value, dict) or not value:
        return json.dumps(value, ensure_ascii=False)
    pad = " " * (depth + 1)
    entries = [f"{pad}{json.dumps(name)}: {_lines(entry, depth + 1)}" for name, entry in value.items()]
    return "{\n" + ",\n".join(entries) + "\n" + " " * depth + "}"


@lru_cache(maxsize=8)
def _shared(path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load(path.read_bytes())
    return tensors


@lru_cache(maxsize=1)
def _validator() -> jsonschema.Draft202012Validator:
    contents = [
        (content["$id"], Resource.from_contents(content)) for content in map(schema, ("vector", "trace"))
    ]
    registry: Registry[Any] = Registry().with_resources(contents)
    return jsonschema.Draft202012Validator(schema("vector"), registry=registry)


def _named(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(name := value.get("tensor"), str):
            yield name
        for entry in value.values():
            yield from _named(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _named(entry)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _texts(entry)
