"""Reads and writes ``MANIFEST.json``, which lists every vector of v1 with the digest of each file and one digest over all.

It also finds files that were changed, are missing or are not listed, and says which profiles a vector needs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from reroute_spec import RerouteError

from .files import CASE_FILE, SHARED, TENSOR_FILE, V1, Vector, as_text

_NAME = "MANIFEST.json"


@dataclass(frozen=True)
class Entry:
    """One vector in the manifest.

    Attributes:
        id, kind, rules, oracle: the same as in its ``case.json``.
        profiles: the profiles besides ``core`` that a target has to claim to be given the vector.
        files: the SHA-256 of each file, by file name.
    """

    id: str
    kind: str
    rules: tuple[str, ...]
    oracle: str
    profiles: tuple[str, ...]
    files: Mapping[str, str]

    @property
    def place(self) -> str:
        """Its path in ``v1``."""
        return f"{self.kind}/{self.id}"


def entries(root: Path = V1) -> tuple[Entry, ...]:
    """Every vector, in the order of the manifest."""
    data = _read(root)
    return tuple(
        Entry(**{**entry, "rules": tuple(entry["rules"]), "profiles": tuple(entry["profiles"])})
        for entry in data["vectors"]
    )


def vector_digest(root: Path = V1) -> str:
    """The digest over all vectors, for the header of a report."""
    return str(_read(root)["digest"])


def write_manifest(vectors: Sequence[Vector], root: Path = V1) -> None:
    """Write the manifest of vectors whose files are in place."""
    listed = [
        asdict(
            Entry(
                id=vector.data["id"],
                kind=vector.data["kind"],
                rules=tuple(vector.data["rules"]),
                oracle=vector.data["oracle"],
                profiles=profiles_of(vector),
                files={name: _digest(root / vector.place / name) for name in _own_files(vector)},
            )
        )
        for vector in sorted(vectors, key=lambda vector: vector.place)
    ]
    shared = {path.name: _digest(path) for path in sorted((root / SHARED).glob("*"))}
    data = {"digest": _overall(listed, shared), "shared": shared, "vectors": listed}
    lines = [f' "{name}": {json.dumps(data[name])}' for name in ("digest", "shared")]
    lines.append(' "vectors": [\n' + ",\n".join("  " + json.dumps(entry) for entry in listed) + "\n ]")
    (root / _NAME).write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


def damages(root: Path = V1) -> list[str]:
    """Where the files are not those of the manifest, a line each: changed, missing, or not listed."""
    data = _read(root)
    listed = {f"{SHARED}/{name}": digest for name, digest in data["shared"].items()}
    for entry in data["vectors"]:
        listed |= {f"{entry['kind']}/{entry['id']}/{name}": digest for name, digest in entry["files"].items()}
    found = {str(path.relative_to(root)): path for path in sorted(root.glob("*/**/*")) if path.is_file()}
    lines = [f"{name} is missing" for name in listed if name not in found]
    lines += [f"{name} is not in the manifest" for name in found if name not in listed]
    lines += [
        f"{name} was changed: its digest is not the manifest's"
        for name, path in found.items()
        if name in listed and _digest(path) != listed[name]
    ]
    if _overall(data["vectors"], data["shared"]) != data["digest"]:
        lines.append(f"{_NAME}: its digest is not that of its entries")
    return lines


def profiles_of(vector: Vector) -> tuple[str, ...]:
    """What a target has to claim, besides ``core``, in the order of the profiles."""
    inputs = vector.data.get("inputs", {})
    config, requests = inputs.get("decoder", {}).get("config", {}), inputs.get("requests", [])
    shape, schedule = config.get("shape", {}), inputs.get("schedule", {})
    needs = {
        "stagewise": vector.data["kind"] == "route",
        "gqa": bool(config.get("attention_bias") or config.get("qk_norm"))
        or shape.get("num_attention_heads") != shape.get("num_key_value_heads"),
        "mrope": config.get("mrope_section") is not None,
        "batch": len(requests) > 1 or any(r.get("pad_left") or r.get("pad_right") for r in requests),
        "cache": any("continuation" in request for request in requests),
        "methods": bool(requests)
        and (
            schedule.get("positions") == "renumber" or schedule.get("score", {}).get("source") == "previous"
        ),
    }
    return tuple(profile for profile, needed in needs.items() if needed)


def _own_files(vector: Vector) -> list[str]:
    return [CASE_FILE, TENSOR_FILE] if vector.tensors else [CASE_FILE]


def _read(root: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads((root / _NAME).read_text("utf-8"))
        return data
    except (OSError, ValueError) as error:
        problem = f"{root / _NAME} cannot be read ({error})"
        raise RerouteError("vectors", problem, "install the package anew") from None


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def _overall(listed: Sequence[Mapping[str, Any]], shared: Mapping[str, str]) -> str:
    return sha256(as_text({"shared": shared, "vectors": list(listed)}).encode()).hexdigest()
