"""What ``Routed.show()`` gives: a view that a notebook displays and that saves itself."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from reroute_spec import RerouteError
from reroute_spec.view import View

SUFFIXES = (".html", ".png", ".json")
_DPI = 150
_WRITABLE = "give a writable path"


@dataclass(frozen=True)
class Shown:
    """A view to look at: a notebook displays it, elsewhere :meth:`save` it."""

    view: View

    @classmethod
    def read(cls, path: str | Path) -> Shown:
        """What :meth:`save` wrote as JSON, or a trace by itself.

        Raises:
            RerouteError: it cannot be read, is no view, or of another version; the field is named.
        """
        try:
            data = json.loads(Path(path).read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise RerouteError(
                "path", f"{path} cannot be read ({error})", "give a saved trace, as JSON"
            ) from None
        return cls(View.from_dict(data))

    def html(self) -> str:
        """The page."""
        from .page import page  # needs jinja2, which a saved view does not

        return page(self.view)

    def figure(self, *, dark: bool = False) -> Any:
        """A matplotlib figure: all decisions beside each other."""
        from .figure import figure  # needs matplotlib, which a page does not

        return figure(self.view, dark=dark)

    def save(self, path: str | Path) -> None:
        """Write the page, the figure or the data; an existing file is replaced.

        Args:
            path: ending in ``.html``, ``.png`` or ``.json``.

        Raises:
            RerouteError: another suffix, a path that cannot be written, or a library that is not installed.
        """
        path = check_path(path)
        write: dict[str, Callable[[], bytes]] = {
            ".html": lambda: self.html().encode(),
            ".png": self._png,
            ".json": lambda: (json.dumps(self.view.to_dict(), indent=1) + "\n").encode(),
        }
        made = write[path.suffix.lower()]()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(made)
        except OSError as error:
            raise RerouteError("path", f"{path} cannot be written ({error})", _WRITABLE) from None

    def _png(self) -> bytes:
        import io
        import warnings

        file, drawn = io.BytesIO(), self.figure()
        with warnings.catch_warnings():
            # a prompt may be in a script that matplotlib's font lacks: boxes say so
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            drawn.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
        return file.getvalue()

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that neither its styles nor its script meet those of the notebook."""
        height = 760 if len(self.view.runs) == 2 else 900
        return (
            f'<iframe srcdoc="{escape(self.html())}" title="vlm-reroute trace" sandbox="allow-scripts allow-downloads" '
            f'style="width: 100%; height: {height}px; border: 0"></iframe>'
        )


def check_path(path: str | Path) -> Path:
    """Refuse a path that :meth:`Shown.save` would not write, before anything is run for it.

    Raises:
        RerouteError: naming ``path``, or ``html`` or ``figure`` where the library for it is not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise RerouteError(
            "path", f"{path} does not end in .html, .png or .json", "its suffix says what is written"
        )
    if os.path.isdir(path):  # pathlib's own raises where a name is too long
        raise RerouteError("path", f"{path} is a folder", "give a file")
    there = next(own for own in (path, *path.absolute().parents) if os.path.exists(own))
    if there != path and not os.path.isdir(there):
        raise RerouteError("path", f"{path} cannot be written ({there} is no folder)", _WRITABLE)
    if not os.access(there, os.W_OK):
        raise RerouteError("path", f"{path} cannot be written ({there} is read-only)", _WRITABLE)
    if path.suffix.lower() == ".html":
        from .page import check_jinja2  # as above

        check_jinja2()
    elif path.suffix.lower() == ".png":
        from .figure import check_matplotlib  # as above

        check_matplotlib()
    return path
