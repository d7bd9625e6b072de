"""Makes all vectors of v1 again, writes them, and says where the files differ from what is made."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from reroute_spec import RerouteError
from safetensors.torch import load
from torch import Tensor

from ...verdicts.tolerance import same
from ..files import V1, Vector, read_vector, write_tensors, write_vector
from ..manifest import damages, entries, profiles_of, write_manifest
from .decoders import shared_weights
from .hand_data import hand_data_vectors
from .hand_routes import by_hand_weights, hand_route_vectors
from .recipes import reference_vectors
from .release import release_vectors
from .trained import trained_vectors


def made(root: Path = V1) -> Iterator[Vector]:
    """Every vector of v1, from its source: by hand, by the reference, as measured and completed, or of what was trained."""
    yield from hand_data_vectors()
    yield from hand_route_vectors()
    yield from reference_vectors()
    yield from release_vectors(root)
    yield from trained_vectors(root)


def rewrite(root: Path = V1, tick: Callable[[], None] = lambda: None) -> int:
    """Write all of v1 anew and return how many vectors there are. Nothing else in the folder is touched."""
    for name, tensors in _shared_files().items():
        write_tensors(tensors, root / name)
    vectors = []
    for vector in made(root):
        write_vector(vector, root / vector.place)
        vectors.append(vector)
        tick()
    write_manifest(vectors, root)
    return len(vectors)


def differences(root: Path = V1, tick: Callable[[], None] = lambda: None) -> list[str]:
    """Where v1 is not what is made again, a line each; none where all is as it should be.

    Compared are the files with the manifest's digests, every ``case.json`` with its schema, and with what is made again:
    the content of ``case.json``, and of every tensor the dtype, the shape and all bits.
    """
    found = damages(root)
    for name, tensors in _shared_files().items():
        path = root / name
        found += _of_tensors(name, load(path.read_bytes()) if path.exists() else {}, tensors)
    listed = {entry.place: entry for entry in entries(root)}
    places = set()
    for vector in _made_again(root, found):
        places.add(vector.place)
        tick()
        entry = listed.get(vector.place)
        if entry is None:
            found.append(f"{vector.place} is made, and is not in the manifest")
            continue
        if (entry.rules, entry.oracle, entry.profiles) != (
            tuple(vector.data["rules"]),
            vector.data["oracle"],
            profiles_of(vector),
        ):
            found.append(f"{vector.place}: its entry in the manifest is of other rules, oracle or profiles")
        try:
            there = read_vector(root / vector.place)
        except RerouteError as error:
            found.append(f"{vector.place}: {error}")
            continue
        found += _of_data(vector.place, there.data, json.loads(json.dumps(vector.data)))
        found += _of_tensors(vector.place, there.tensors, vector.tensors)
    found += [f"{place} is in the manifest, and nothing makes it" for place in listed if place not in places]
    return list(dict.fromkeys(found))


def _made_again(root: Path, found: list[str]) -> Iterator[Vector]:
    """All that can be made; what was given, measured or trained, cannot where it is damaged."""
    try:
        yield from made(root)
    except RerouteError as error:
        found.append(f"what rests on given files cannot be made: {error}")


def _shared_files() -> dict[str, dict[str, Tensor]]:
    return {**shared_weights(), **by_hand_weights()}


def _of_data(place: str, there: Any, again: Any, at: str = "") -> list[str]:
    """The first difference of two JSON values, by its path."""
    if isinstance(there, dict) and isinstance(again, dict):
        if there.keys() != again.keys():
            odd = ", ".join(sorted(there.keys() ^ again.keys()))
            return [f"{place}: {at or 'case.json'} has not the same entries: {odd}"]
        lines = [line for name in again for line in _of_data(place, there[name], again[name], f"{at}.{name}")]
        return lines[:1]
    if there == again:
        return []
    return [f"{place}: {at.removeprefix('.')} is {_short(there)}, made again it is {_short(again)}"]


def _of_tensors(place: str, there: Mapping[str, Tensor], again: Mapping[str, Tensor]) -> list[str]:
    lines = [f"{place}: tensor {name} is there or is made, not both" for name in there.keys() ^ again.keys()]
    for name in sorted(there.keys() & again.keys()):
        mine, due = there[name], again[name]
        if same(mine, due):
            continue
        if mine.shape != due.shape or mine.dtype != due.dtype:
            forms = (f"{x.dtype} {list(x.shape)}" for x in (mine, due))
            lines.append(f"{place}: tensor {name} is {', made again it is '.join(forms)}")
            continue
        changed = (mine.view(torch.uint8) != due.view(torch.uint8)).view(*mine.shape, -1).any(-1)
        first = tuple(int(i) for i in changed.nonzero()[0])
        values = f"{float(mine[first])!r}, made again it is {float(due[first])!r}"
        lines.append(
            f"{place}: tensor {name}{list(first)} is {values} ({int(changed.sum())} elements differ)"
        )
    return lines


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "…"
