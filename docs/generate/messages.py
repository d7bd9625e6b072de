"""What a message in the code can say, without running it: its own words, and a name for whatever is filled in."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

OPEN, CLOSE = "\x02", "\x03"
"""Around the name of what is filled in."""
_MOST = 6
"""More alternatives than these are told by a name."""
_DEEP = 3

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def shown(text: str) -> str:
    """A message as HTML."""
    return escape(text, quote=False).replace(OPEN, "<var>").replace(CLOSE, "</var>")


@dataclass(frozen=True)
class Module:
    """A module's source.

    Attributes:
        path: of its file.
        tree: its syntax.
        parents: of every node, the node around it.
    """

    path: Path
    tree: ast.Module
    parents: dict[ast.AST, ast.AST]

    @staticmethod
    @cache
    def read(path: Path) -> Module:
        """The module in a file."""
        tree = ast.parse(path.read_text("utf-8"))
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        return Module(path, tree, parents)

    @property
    def name(self) -> str:
        """Its name to import."""
        parts = self.path.with_suffix("").parts
        start = next(index for index, part in enumerate(parts) if part.startswith("reroute_"))
        return ".".join(part for part in parts[start:] if part != "__init__")

    @property
    def summary(self) -> str:
        """The first paragraph of its docstring, in Markdown."""
        from generate.docstrings import plain

        return plain((ast.get_docstring(self.tree) or "").partition("\n\n")[0])

    def calls(self, *names: str) -> list[ast.Call]:
        """Calls of functions of these names."""
        found = (node for node in ast.walk(self.tree) if isinstance(node, ast.Call))
        return [call for call in found if self.called(call) in names]

    @staticmethod
    def called(call: ast.Call) -> str:
        """The last name of what is called."""
        return str(getattr(call.func, "id", getattr(call.func, "attr", "")))

    def inside(self, node: ast.AST) -> str:
        """The name of the function around a node."""
        function = self._around(node)
        return "" if function is None else function.name

    def texts(self, value: ast.expr, at: ast.AST, depth: int = 0) -> list[str]:
        """All that an expression can be as text; what is not known by its name."""
        if isinstance(value, ast.Constant):
            return [str(value.value)]
        if isinstance(value, ast.JoinedStr):
            return self._joined(value.values, at, depth)
        if isinstance(value, ast.IfExp):
            return [*self.texts(value.body, at, depth), *self.texts(value.orelse, at, depth)]
        if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
            return self._joined([value.left, value.right], at, depth)
        if isinstance(value, ast.Name) and depth < _DEEP:
            found = [
                text
                for node, place in self._values(value.id, at)
                for text in self.texts(node, place, depth + 1)
            ]
            found = list(dict.fromkeys(found))
            if 0 < len(found) <= _MOST:
                return found
        return [f"{OPEN}{_named(value)}{CLOSE}"]

    def _joined(self, parts: list[ast.expr], at: ast.AST, depth: int) -> list[str]:
        found = [""]
        for part in parts:
            filled = isinstance(part, ast.FormattedValue)
            inner = part.value if isinstance(part, ast.FormattedValue) else part
            own = self._listed(inner) if filled else None
            # of what is filled in only a choice of the code's own words is told, not what it was computed from
            words = [own] if own else self.texts(inner, at, depth)
            if filled and not own and (len(words) > 2 or any(OPEN in word for word in words)):
                words = [f"{OPEN}{_named(inner)}{CLOSE}"]
            found = [before + word for before in found for word in words]
        return found if len(found) <= _MOST else found[:1]

    def _listed(self, value: ast.expr) -> str | None:
        """The entries of a constant of the module that a message lists."""
        names = [
            node.id for node in ast.walk(value) if isinstance(node, ast.Name) and node.id.strip("_").isupper()
        ]
        looked_up = any(isinstance(node, ast.Subscript) for node in ast.walk(value))
        if isinstance(value, ast.Constant) or looked_up or len(names) > 1:
            return None
        literal = next((node for node in ast.walk(value) if isinstance(node, (ast.List, ast.Tuple))), value)
        node = self._constant(names[0]) if names else literal
        try:
            entries = ast.literal_eval(node) if node is not None else None
        except ValueError:
            return None
        listed = isinstance(entries, (list, tuple, set, dict)) and all(
            isinstance(entry, str) for entry in entries
        )
        if not listed:
            return None
        quoted = any(getattr(node, "id", "") == "repr" for node in ast.walk(value))
        return ", ".join(map(repr, entries) if quoted else entries)

    def _constant(self, name: str) -> ast.expr | None:
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
                return node.value
            if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", None) == name:
                return node.value
        return None

    def _values(self, name: str, at: ast.AST) -> Iterator[tuple[ast.expr, ast.AST]]:
        """What a name can hold at a place: assignments, loops over literals, a constant, what callers in the module give."""
        function = self._around(at)
        if function is None or name.strip("_").isupper():
            constant = self._constant(name)
            if constant is not None:
                yield constant, self.tree
            return
        bound = list(self._bound(name, at, function))
        yield from bound
        if bound:
            return
        parameters = [argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)]
        if name in parameters:
            place = parameters.index(name)
            for call in self.calls(function.name):
                keyword = [word.value for word in call.keywords if word.arg == name]
                bound = isinstance(call.func, ast.Attribute) and parameters[0] in ("self", "cls")
                index = place - bound
                given = keyword or call.args[index : index + 1]
                yield from ((value, call) for value in given)

    def _bound(self, name: str, at: ast.AST, function: _Function) -> Iterator[tuple[ast.expr, ast.AST]]:
        """What statements before a place bind a name to, up to one that always does; the rows of a loop around it."""
        node = at
        while node is not function:
            inner, node = node, self.parents[node]
            if isinstance(node, ast.For) and name in _bindings(node.target):
                over = self._constant(node.iter.id) if isinstance(node.iter, ast.Name) else node.iter
                rows = over.elts if isinstance(over, (ast.Tuple, ast.List)) else []
                found = [value for row in rows for value in _assigned(node.target, row, name)]
                # of a loop over what is computed the name is all that is known
                yield from ((value, node) for value in found or [ast.Constant(f"{OPEN}{name}{CLOSE}")])
                return
            for statement in reversed(_before(node, inner)):
                for part in ast.walk(statement):
                    if isinstance(part, ast.Assign):
                        yield from ((value, part) for value in _assigned(part.targets[0], part.value, name))
                if isinstance(statement, ast.Assign) and name in _bindings(statement.targets[0]):
                    return

    def _around(self, node: ast.AST) -> _Function | None:
        while node in self.parents:
            node = self.parents[node]
            if isinstance(node, _Function):
                return node
        return None


def _before(node: ast.AST, inner: ast.AST) -> list[ast.stmt]:
    """Statements of the block of ``node`` that holds ``inner``, before it."""
    for block in ("body", "orelse", "finalbody"):
        statements = getattr(node, block, [])
        if isinstance(statements, list) and inner in statements:
            return list(statements[: statements.index(inner)])
    return []


def _bindings(target: ast.expr) -> set[str]:
    return {node.id for node in ast.walk(target) if isinstance(node, ast.Name)}


def _assigned(target: ast.expr, value: ast.expr, name: str) -> Iterator[ast.expr]:
    if isinstance(target, ast.Name) and target.id == name:
        yield value
    elif (
        isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts)
    ):
        for part, own in zip(target.elts, value.elts, strict=True):
            yield from _assigned(part, own, name)


def _named(value: ast.expr) -> str:
    """A few words for an expression."""
    if isinstance(value, ast.Name):
        return value.id.strip("_").lower().replace("_", " ") if value.id.strip("_").isupper() else value.id
    if isinstance(value, ast.Attribute):
        if value.attr == "__name__":
            return "type"
        return f"{_named(value.value)}.{value.attr}".removeprefix("self.")
    if isinstance(value, ast.Subscript):
        return _named(value.value)
    if isinstance(value, ast.Starred):
        return _named(value.value)
    if isinstance(value, ast.Call):
        name = Module.called(value)
        if name == "len":
            return "number"
        first = -1 if name == "map" else 0
        inner = value.args[first] if value.args else getattr(value.func, "value", value.func)
        return _named(inner)
    if isinstance(value, (ast.List, ast.Tuple)) and value.elts:
        return _named(value.elts[0])
    if isinstance(value, ast.BinOp):
        return _named(value.left)
    if isinstance(value, (ast.GeneratorExp, ast.ListComp)):
        return _named(value.elt)
    if isinstance(value, (ast.IfExp, ast.BoolOp)):
        return _named(value.body if isinstance(value, ast.IfExp) else value.values[0])
    return "value" if not isinstance(value, ast.Constant) else str(value.value)
