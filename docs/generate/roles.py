"""What mkdocstrings loads, with the roles of its docstrings turned into links."""

from __future__ import annotations

from typing import Any

from griffe import Extension, Object

from generate.docstrings import plain


class Roles(Extension):
    """Changes every docstring as it is loaded."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Called once per object."""
        if obj.docstring is not None:
            obj.docstring.value = plain(obj.docstring.value)
