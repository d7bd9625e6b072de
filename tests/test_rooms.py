"""The rooms of the packages: each has a sign on its door and a place on the map, and none is too full."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = [
    ROOT / part / f"reroute_{name}"
    for part, name in (
        ("spec", "spec"),
        ("view", "view"),
        ("reference", "reference"),
        ("optimized", "optimized"),
        ("conformance", "conformance"),
    )
]
ROOMS = [
    path.parent
    for package in PACKAGES
    for path in sorted(package.rglob("__init__.py"))
    if path.parent != package
]
MAPPED = [room for room in ROOMS if room.parent in PACKAGES[3:]]


def named(folder):
    return folder.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("folder", [*PACKAGES, *ROOMS], ids=named)
def test_a_folder_holds_at_most_twenty_modules(folder):
    assert len(list(folder.glob("*.py"))) <= 20


@pytest.mark.parametrize("room", MAPPED, ids=named)
def test_a_room_says_at_its_door_what_lives_there_and_what_it_may_know(room):
    sign = ast.get_docstring(ast.parse((room / "__init__.py").read_text("utf-8")))
    assert sign is not None
    assert len(sign.split()) >= 25


@pytest.mark.parametrize("room", MAPPED, ids=named)
def test_the_map_names_every_room(room):
    assert f"| `{room.name}/` |" in (ROOT / "CONTRIBUTING.md").read_text("utf-8")
