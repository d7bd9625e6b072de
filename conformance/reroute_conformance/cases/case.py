"""Defines the basic kinds of cases: small, plain descriptions of what a target is given, from which tensors are made.

A case is data that can be saved as JSON and read back. Its tensors come from seeds, so that the same case gives the
same tensors every time. The modules of the other kinds of cases enter their classes in ``KINDS``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Self

import torch
from reroute_reference import CanonicalDecoder
from reroute_spec import Schedule
from torch import Tensor, nn

from ..protocol import Model

NUM_SEEDED_ROWS = 128


@dataclass(frozen=True)
class Row:
    """One request of a batch, given by its layout, a seed and its padding.

    Attributes:
        layout: a letter for every row: ``t`` is a text row and ``v`` a visual row. For a model with an image processor
            it has ``t`` for a text row and a letter for a whole image: ``I``, and for the Qwen families all letters of
            ``GRIDS``.
        seed: seed of the embeddings, or of words and pixels.
        pad_left, pad_right: how many columns of padding stand before and after the request.
    """

    layout: str
    seed: int = 0
    pad_left: int = 0
    pad_right: int = 0


@dataclass(frozen=True)
class Case:
    """The base class of all cases: a case can be written as plain data, read back, and named by its content.

    Attributes:
        kind: the name of this kind of case in :data:`KINDS` and in saved data.
    """

    kind: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain data that :func:`load_case` reads back."""
        return {"kind": self.kind, **asdict(self)}

    def digest(self) -> str:
        """A short name of the content."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what ``to_dict`` wrote."""
        return cls(**{f.name: data[f.name] for f in fields(cls)})


@dataclass(frozen=True)
class SelectCase(Case):
    """Scores, and how many of them a target has to select.

    The scores are given as float32 bit patterns, so that signed zeros, subnormals and NaN survive JSON.

    Attributes:
        bits: the bit patterns, as signed 32-bit integers.
        k: how many scores are to be selected.
    """

    kind: ClassVar[str] = "select"
    bits: list[int] = field(default_factory=list)
    k: int = 0

    def scores(self) -> Tensor:
        """The scores, [n] float32."""
        return torch.tensor(self.bits, dtype=torch.int32).view(torch.float32)


@dataclass(frozen=True)
class ConfigCase(Case):
    """A schedule as data, right or wrong, and the layout of the request that a target has to plan by it.

    Attributes:
        schedule: the schedule as data.
        num_layers: number of blocks of the decoder.
        layout: the rows of the request, ``t`` for text and ``v`` for visual rows.
        images: the feature count of every image.
    """

    kind: ClassVar[str] = "config"
    schedule: dict[str, Any] = field(default_factory=dict)
    num_layers: int = 1
    layout: str = "t"
    images: list[int] = field(default_factory=list)

    def visual(self) -> list[bool]:
        """A flag per row."""
        return [letter == "v" for letter in self.layout]


@dataclass(frozen=True)
class RoutedCase(Case):
    """A batch that runs through a decoder: a prefill, after which tokens may be fed.

    Subclasses say which model it is and what the inputs are.

    Attributes:
        network_rules: the rules about the decoder itself that every run of the case exercises.
        rotary_rule: the rule that is broken where the keys of the first block are wrong.
        schedule: the schedule as data.
        rows: the requests of the batch.
        new_tokens: how many tokens are fed after the prefill.
        decisions: selections to replay, per request and decision; None where the scores decide.
        poison: the request and the real row whose embedding is NaN; None for no such row.
    """

    network_rules: ClassVar[tuple[str, ...]] = ()
    rotary_rule: ClassVar[str] = "RR-BLOCK-002"
    schedule: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    new_tokens: int = 0
    decisions: list[list[list[int]]] | None = None
    poison: list[int] | None = None  # (request, real row) whose embedding is NaN

    @property
    def precision(self) -> torch.dtype:
        """What it is computed in."""
        return torch.float32

    def routing(self) -> Schedule:
        """The schedule."""
        return Schedule.from_dict(self.schedule)

    def model(self) -> Model:
        """What the target is given."""
        raise TypeError(f"{type(self).__name__} describes no model")

    def reference_model(self, dtype: torch.dtype) -> nn.Module | CanonicalDecoder:
        """The same model for the reference, in ``dtype``."""
        raise TypeError(f"{type(self).__name__} describes no model")

    def inputs(self) -> dict[str, Any]:
        """The batch."""
        raise TypeError(f"{type(self).__name__} describes no inputs")

    def continuation(self) -> Tensor | None:
        """Tokens to feed after the prefill, [B, T]."""
        if not self.new_tokens:
            return None
        return torch.stack([tokens_of(row.seed, self.vocabulary())[: self.new_tokens] for row in self.rows])

    def vocabulary(self) -> int:
        """Tokens below this may be fed."""
        raise TypeError(f"{type(self).__name__} describes no vocabulary")

    def size(self, row: Row) -> int:
        """Real rows of a request."""
        return len(row.layout)

    def alone(self, request: int) -> Row:
        """A request with all the padding that it has in its batch."""
        row = self.rows[request]
        length = max(other.pad_left + self.size(other) + other.pad_right for other in self.rows)
        place = place_of(row, length, self.size(row))
        return Row(row.layout, row.seed, place.start, length - place.stop)

    def only(self, request: int, *, padded: bool) -> Self:
        """The case of one request alone, with or without its padding."""
        row = self.alone(request)
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["rows"] = [row if padded else Row(row.layout, row.seed)]
        values["decisions"] = None if self.decisions is None else [self.decisions[request]]
        return type(self)(**values)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what ``to_dict`` wrote."""
        return super().from_dict({**data, "rows": [Row(**row) for row in data["rows"]]})


KINDS: dict[str, type[Case]] = {case.kind: case for case in (SelectCase, ConfigCase)}
"""Every kind of case by its name; the modules of the other kinds add theirs."""


def load_case(data: Mapping[str, Any]) -> Case:
    """The case that ``to_dict`` wrote."""
    return KINDS[data["kind"]].from_dict(data)


def generator_of(seed: int) -> torch.Generator:
    """A generator of its own, so that nothing else that is drawn changes what a case draws."""
    return torch.Generator().manual_seed(seed)


def tokens_of(seed: int, vocabulary: int) -> Tensor:
    """[128] tokens that may be fed to a model with ``vocabulary`` words."""
    lowest = min(3, vocabulary - 1)  # past the special tokens
    return torch.randint(lowest, vocabulary, (NUM_SEEDED_ROWS,), generator=generator_of(seed + 1))


def place_of(row: Row, length: int, size: int | None = None) -> slice:
    """Where a request stands in its padded batch row; what its own padding leaves open is padded on its side."""
    size = len(row.layout) if size is None else size
    start = row.pad_left if row.pad_right else length - size
    return slice(start, start + size)
