"""Results that take long, kept in a folder by what they follow from, so that a run that was stopped goes on."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from reroute_spec import Schedule

from .items import Item, inputs

Arrays = dict[str, np.ndarray]


class Kept:
    """Arrays by weights, items, schedule, versions and what they are. The code itself is no part of that.

    Args:
        folder: made where it is missing; None keeps nothing.
        asked: the items of every result.
    """

    def __init__(self, folder: Path | None, asked: Sequence[Item]) -> None:
        self._folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._items = hashlib.sha256(repr(asked).encode())
            for first in range(0, len(asked), 100):
                few = asked[first : first + 100]
                for question in ("box", "there"):
                    given = inputs([item.scene for item in few], [getattr(item, question) for item in few])
                    for tensor in given.values():
                        self._items.update(tensor.numpy().tobytes())

    def arrays(
        self, what: str, weights: str, schedule: Schedule | None, make: Callable[[], Arrays]
    ) -> Arrays:
        """What was kept, or is made now and kept. A file that cannot be read is made again."""
        if self._folder is None:
            return make()
        path = self._folder / f"{self.key(what, weights, schedule)}.npz"
        try:
            with np.load(path) as saved:
                return dict(saved)
        except (OSError, ValueError, zipfile.BadZipFile):
            made = make()
        part = path.with_suffix(".part.npz")
        np.savez_compressed(part, **made)  # type: ignore[arg-type]
        part.replace(path)
        return made

    def key(self, what: str, weights: str, schedule: Schedule | None) -> str:
        """The name of a result's file."""
        said: list[Any] = [
            what,
            weights,
            self._items.hexdigest(),
            torch.__version__,
            transformers.__version__,
        ]
        said.append(None if schedule is None else schedule.to_dict())
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:20]
