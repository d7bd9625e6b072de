"""The pages of the public names: which there are is read from each package, what they say from their docstrings."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

FOLDERS = {
    "reroute_spec": "spec",
    "reroute_reference": "reference",
    "reroute_optimized": "optimized",
    "reroute_conformance": "conformance",
    "reroute_view": "view",
}
BESIDE = {
    "reroute_spec": {"grids": ("Grid",)},
    "reroute_reference": {"families": ()},
    "reroute_conformance": {
        "protocol": ("Target", "Timed", "PROFILES", "FAMILIES", "DTYPES", "WORKS", "Model"),
        "tiny.llava": ("tiny_llava", "tiny_processor", "picture", "picture_inputs"),
        "tiny.qwen": ("tiny_qwen", "qwen_inputs"),
    },
}
"""Public by being told of in the docs, though a package does not import it: module, and names in it; none means all."""


def names(root: Path, package: str) -> dict[str, str]:
    """Public names of a package, and where each is defined."""
    folder = root / FOLDERS[package] / package
    tree = ast.parse((folder / "__init__.py").read_text("utf-8"))
    found = dict(_imported(tree, package))
    public = {name: found[name] for name in _listed(tree) if name in found}
    # what __init__ itself defines
    public |= {name: f"{package}.{name}" for name in _listed(tree) if name not in found}
    for module, chosen in BESIDE.get(package, {}).items():
        defined = _defined(ast.parse((folder / f"{module.replace('.', '/')}.py").read_text("utf-8")))
        public |= {name: f"{package}.{module}.{name}" for name in chosen or defined}
    return public


def public(root: Path) -> dict[str, str]:
    """Public names of all packages, each also with its package in front."""
    found: dict[str, str] = {}
    for package in FOLDERS:
        for name, path in names(root, package).items():
            found |= {name: path, f"{package}.{name}": path, path: path}
    return found


def page(root: Path, package: str) -> str:
    """The page of a package."""
    text = ast.get_docstring(
        ast.parse((root / FOLDERS[package] / package / "__init__.py").read_text("utf-8"))
    )
    lines = [f"# {package}", "", inspect.cleandoc(_plain(text or "")), ""]
    lines += [f"::: {path}\n" for path in names(root, package).values()]
    return "\n".join(lines)


PAGES: dict[str, Callable[[Path], str]] = {
    f"reference/{package}.md": partial(page, package=package) for package in FOLDERS
}


def _plain(docstring: str) -> str:
    from generate.docstrings import plain  # which asks here for what is public

    return plain(docstring)


def _listed(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


def _imported(tree: ast.Module, package: str) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            for name in node.names:
                yield name.asname or name.name, f"{package}.{node.module}.{name.name}"


def _defined(tree: ast.Module) -> list[str]:
    found = [node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    return [name for name in found if not name.startswith("_")]
