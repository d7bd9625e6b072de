"""Draws whole sessions: operations as plain data, from a Hypothesis state machine that knows which of them make sense when.

The operations are prefill, later turns of text or images, decode, crop, and requests that are moved in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from reroute_spec import Schedule
from torch import Tensor

from ..protocol import Model
from . import strategies
from .case import KINDS, Case, RoutedCase, Row, load_case
from .decoder import DecoderCase, decoder_config

_MOST_REQUESTS = 4
_PLACES = st.integers(0, _MOST_REQUESTS - 1)


@dataclass(frozen=True)
class SessionCase(Case):
    """A session: operations that are done one after another on one model.

    Attributes:
        base: a routed case as data, which gives the model and the schedule. Its own rows are not run.
        operations: the operations as data, each with ``op`` (see ``Target.session``). The rows of a ``prefill`` or
            ``turn`` are layouts with seeds and padding. The tokens of a ``decode`` come from a ``seed``.
    """

    kind: ClassVar[str] = "session"
    base: dict[str, Any] = field(default_factory=dict)
    operations: list[dict[str, Any]] = field(default_factory=list)

    def routed(self, rows: list[Row]) -> RoutedCase:
        """The base with other rows."""
        case = load_case(self.base)
        assert isinstance(case, RoutedCase)
        return replace(case, rows=rows)

    def schedule(self) -> Schedule:
        """The schedule of every prefill and later turn."""
        return self.routed([]).routing()

    def model(self) -> Model:
        """What the target is given."""
        return self.routed([]).model()

    def case_of(self, index: int) -> RoutedCase:
        """The prefill or turn of an operation as a case of its own."""
        return self.routed([Row(**row) for row in self.operations[index]["rows"]])

    def step(self, index: int) -> dict[str, Any]:
        """An operation with its tensors, fresh ones every time."""
        operation = self.operations[index]
        if operation["op"] in ("prefill", "turn"):
            inputs = self.case_of(index).inputs()
            if operation["op"] == "turn":
                del inputs["attention_mask"]  # no padding
            return {"op": operation["op"], "inputs": inputs}
        if operation["op"] == "decode":
            generator = torch.Generator().manual_seed(operation["seed"])
            highest = self.routed([]).vocabulary()
            count = operation["requests"]
            return {"op": "decode", "tokens": torch.randint(3, highest, (count,), generator=generator)}
        return dict(operation)

    def until(self, index: int) -> Self:
        """The same session, ended before an operation."""
        return replace(self, operations=self.operations[:index])


KINDS[SessionCase.kind] = SessionCase


def rows_of(inputs: Mapping[str, Any], start: int, end: int) -> dict[str, Any]:
    """Columns ``start`` to ``end`` of a turn of text."""
    return {
        name: value[:, start:end] if isinstance(value, Tensor) and value.ndim >= 2 else value
        for name, value in inputs.items()
    }


class SessionMachine(RuleBasedStateMachine):
    """A Hypothesis state machine that draws sessions.

    Each of its rules writes down an operation that could be asked for at that point. Some of these operations must be
    refused. A subclass sets ``judge`` (see :func:`machine`).

    Attributes:
        judge: a function that is given the case when the session ends.
        image_layouts: layouts of later turns with images.
    """

    judge: ClassVar[Callable[[SessionCase], None]]
    image_layouts: ClassVar[st.SearchStrategy[str]] = strategies.layouts(max_size=8)

    def __init__(self) -> None:
        super().__init__()
        self.base: dict[str, Any] = {}
        self.operations: list[dict[str, Any]] = []
        self.requests = 0

    def bases(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> RoutedCase:
        """The model and schedule of a session."""
        layers = draw(st.integers(1, 4))
        kv_heads = draw(st.sampled_from([1, 2]))
        config = decoder_config(layers, heads=2, kv_heads=kv_heads, head_dim=draw(st.sampled_from([4, 8])))
        schedule = draw(strategies.schedules(layers))
        return DecoderCase(schedule, [], config=config, seed=draw(st.integers(0, 7)))

    @initialize(data=st.data())
    def start(self, data: st.DataObject) -> None:
        """A model, a schedule and a first request."""
        self.data = data
        self.base = self.bases(data.draw).to_dict()
        self._prefill(data)

    @rule(data=st.data())
    def next_request(self, data: st.DataObject) -> None:
        """Another batch on the same model: with images, or of text alone."""
        self._prefill(data)

    @rule(count=st.integers(1, 3), seed=st.integers(0, 99))
    def turn_of_text(self, count: int, seed: int) -> None:
        """Several rows of text at once, as many for every request."""
        self._turn(["t" * count] * self.requests, seed)

    @rule(data=st.data(), seed=st.integers(0, 99))
    def turn_with_images(self, data: st.DataObject, seed: int) -> None:
        """New rows, some of them visual; equally long, since a turn is not padded."""
        layout = data.draw(self.image_layouts)
        self._turn(
            [layout, *[data.draw(st.permutations(layout).map("".join)) for _ in range(self.requests - 1)]],
            seed,
        )

    @rule(seed=st.integers(0, 99))
    def decode(self, seed: int) -> None:
        """A token for every request."""
        self.operations.append({"op": "decode", "seed": seed, "requests": self.requests})

    @rule(rows=st.sampled_from([0, 1, 1, 1, 2, 3, 40]))
    def crop(self, rows: int) -> None:
        """Drop rows: as many as may be dropped, or more, which has to be refused."""
        self.operations.append({"op": "crop", "rows": rows})

    @precondition(lambda self: self.requests > 1)
    @rule(order=st.permutations(range(_MOST_REQUESTS)))
    def reorder(self, order: list[int]) -> None:
        """Requests change places, as beams do."""
        self.operations.append(
            {"op": "reorder", "order": [place for place in order if place < self.requests]}
        )

    @rule(places=st.lists(_PLACES, min_size=1, max_size=3))
    def select(self, places: list[int]) -> None:
        """Some requests go on, some twice."""
        order = [place % self.requests for place in places]
        self.operations.append({"op": "select", "order": order})
        self.requests = len(order)

    @precondition(lambda self: 2 * self.requests <= _MOST_REQUESTS)
    @rule()
    def repeat(self) -> None:
        """Every request goes on twice."""
        self.operations.append({"op": "repeat", "times": 2})
        self.requests *= 2

    def teardown(self) -> None:
        """The session is judged whole, a last token showing what the operations before it left behind."""
        if self.operations and not self.data.conjecture_data.frozen:  # else Hypothesis broke off
            self.decode(0)
            type(self).judge(SessionCase(self.base, self.operations))

    def _prefill(self, data: st.DataObject) -> None:
        rows = data.draw(strategies.batch_rows(self.prompts(), batch=True))[: _MOST_REQUESTS - 1]
        self.operations.append({"op": "prefill", "rows": [vars(row) for row in rows]})
        self.requests = len(rows)

    def prompts(self) -> st.SearchStrategy[str]:
        """Layouts of a prefill."""
        return strategies.layouts(max_size=10)

    def _turn(self, layouts: list[str], seed: int) -> None:
        rows = [vars(Row(layout, 10 * seed + b)) for b, layout in enumerate(layouts)]
        self.operations.append({"op": "turn", "rows": rows})


def machine(drawn: type[SessionMachine], judge: Callable[[SessionCase], None]) -> type[SessionMachine]:
    """A machine whose sessions ``judge`` is given."""
    return type(drawn.__name__, (drawn,), {"judge": staticmethod(judge)})
