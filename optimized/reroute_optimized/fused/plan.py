"""Computes every offset and index table of a packed turn from its layout: what kernels need of requests, stages and decisions.

All numbers are those of the requests' plans. All tables are uploaded before the first block runs, and prompts of the
same layout share them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import torch
from torch import Tensor

from ..turn.layout import DecisionLayout, Layout, decided_stage
from ..turn.pages import PAGE


@dataclass(frozen=True)
class Starts:
    """The places at which the members of a packed table begin.

    Attributes:
        counts: entries of each member, on the host.
        table: [members + 1] int32, the sums of the counts from 0 on.
    """

    counts: tuple[int, ...]
    table: Tensor

    @classmethod
    def of(cls, counts: Iterable[int], device: torch.device) -> Starts:
        """Members of ``counts`` entries each."""
        counts = tuple(counts)
        sums = torch.tensor([0, *accumulate(counts)], dtype=torch.int32, device=device)
        return cls(counts, sums)

    @property
    def total(self) -> int:
        """Entries of all members."""
        return sum(self.counts)

    @property
    def most(self) -> int:
        """Entries of the largest member."""
        return max(self.counts, default=0)


@dataclass(frozen=True)
class Rectangle:
    """An index table that lays a packed table out as a rectangle with one row for each request.

    Attributes:
        index: [B, width] entries of the packed table; one past its end where a request has none.
    """

    index: Tensor

    @classmethod
    def of(
        cls, counts: Sequence[int], width: int, device: torch.device, *, to_the_right: bool = False
    ) -> Rectangle:
        """A rectangle of ``width`` places that packs every request's entries to the left, or to the right."""
        total, rows, start = sum(counts), [], 0
        for count in counts:
            own, empty = list(range(start, start + count)), [total] * (width - count)
            rows.append(empty + own if to_the_right else own + empty)
            start += count
        return cls(torch.tensor(rows, dtype=torch.long, device=device).view(len(counts), width))

    def __call__(self, packed: Tensor, fill: float | int) -> Tensor:
        """``packed`` [n, ...] as [B, width, ...]."""
        extra = packed.new_full((1, *packed.shape[1:]), fill)
        return torch.cat([packed, extra])[self.index]


@dataclass(frozen=True)
class Asking:
    """The last rows of every request, which ask at a decision.

    Attributes:
        starts: where those of every request begin.
        rows: [Q] where they stand among the packed rows.
    """

    starts: Starts
    rows: Tensor

    @classmethod
    def of(cls, counts: Sequence[int], most: int, device: torch.device) -> Asking:
        """The last ``most`` of ``counts`` rows, fewer where there are fewer."""
        asking = [min(most, count) for count in counts]
        ends = accumulate(counts)
        rows = [row for n, end in zip(asking, ends, strict=True) for row in range(end - n, end)]
        return cls(Starts.of(asking, device), torch.tensor(rows, dtype=torch.long, device=device))


@dataclass(frozen=True)
class PackedDecision:
    """One decision (G segments: requests, or their images under ``scope = image``; V candidates, K selected).

    Attributes:
        shape: the layout of the decision on rectangles.
        candidates, selected: where the candidates and the selected of every segment begin.
        ordinals: [V] ordinals of the candidates where all of them are candidates, counted from 0 in every request.
        request_of_candidate: [V] request of every candidate.
        segment_of_selected: [K] for every selected candidate, where the candidates of its segment begin.
        candidate_rectangle, selected_rectangle: rectangles of the candidates and of the selected, one row for each
            request.
        segment_rectangle: rectangle [B, most segments] of the segments.
    """

    shape: DecisionLayout
    candidates: Starts
    selected: Starts
    ordinals: Tensor
    request_of_candidate: Tensor
    segment_of_selected: Tensor
    candidate_rectangle: Rectangle
    selected_rectangle: Rectangle
    segment_rectangle: Rectangle


@dataclass(frozen=True)
class PackedStage:
    """Blocks ``first`` to ``last`` on packed rows.

    Attributes:
        rows: where the rows that every request runs begin.
        asking: the rows that ask at a decision which scores this stage's rows.
        counts: [M] place of every row in its request.
        decides: [M, 1] whether the row's request decides here; None where all do.
        page, line: [M] int64, which of its requests' pages (``width`` a request) each row is in, and where in it.
        width: most pages of a request.
        attention: rectangle that packs rows to the left, so that causal order alone hides its padding; None where all
            requests run as many.
        unpack: [M] where the packed rows stand in that rectangle, flattened.
        output: rectangle that packs rows to the right, as results are given back.
        places: [M] where the packed rows stand in that one, flattened.
        decision: the decision at the input of ``first``; None for the dense stage.
    """

    first: int
    last: int
    rows: Starts
    asking: Asking
    counts: Tensor
    decides: Tensor | None
    page: Tensor
    line: Tensor
    width: int
    attention: Rectangle | None
    unpack: Tensor | None
    output: Rectangle
    places: Tensor
    decision: PackedDecision | None

    @property
    def real(self) -> Tensor | None:
        """[B, width] which of ``output`` are rows; None where all are."""
        return None if self.attention is None else self.output.index < self.rows.total


@dataclass(frozen=True, eq=False)  # itself a key of graphs
class PackedPlan:
    """The index tables of a batch of B prompts, packed (T real rows, N_b visual rows of request b).

    Attributes:
        columns: [T] every row's place in the flattened rectangle [B * S].
        rows: where the rows of every request begin.
        asking: the rows that ask at a decision over all rows.
        always: [T] bool, rows that run every block.
        visual: where the visual rows of every request begin.
        visual_rows: [sum of N_b] row of every ordinal.
        stages: the stages in order; they cover all blocks.
        prompt: rectangle [B, S] of the rows, each in its column.
    """

    columns: Tensor
    rows: Starts
    asking: Asking
    always: Tensor
    visual: Starts
    visual_rows: Tensor
    stages: tuple[PackedStage, ...]
    prompt: Rectangle

    def stage_of(self, layer: int) -> PackedStage:
        """The stage that a block is in."""
        return next(stage for stage in self.stages if stage.first <= layer <= stage.last)

    @classmethod
    def of(cls, layout: Layout, asking: int, device: torch.device) -> PackedPlan:
        """The packed form of ``layout``; the last ``asking`` rows of a request ask."""
        width = layout.num_columns
        columns = [b * width + c for b, own in enumerate(layout.columns) for c in own]
        rows = Starts.of((len(own) for own in layout.columns), device)
        begin = [0, *accumulate(rows.counts)]
        visual = [[begin[b] + row for row in plan.visual_rows] for b, plan in enumerate(layout.plans)]
        flat = list(chain.from_iterable(visual))
        always = torch.ones(rows.total, dtype=torch.bool)
        always[flat] = False
        place = [[rows.total] * width for _ in layout.columns]
        for b, own in enumerate(layout.columns):
            for row, column in enumerate(own):
                place[b][column] = begin[b] + row
        return cls(
            columns=torch.tensor(columns, dtype=torch.long, device=device),
            rows=rows,
            asking=Asking.of(rows.counts, asking, device),
            always=always.to(device),
            visual=Starts.of(map(len, visual), device),
            visual_rows=torch.tensor(flat, dtype=torch.int32, device=device),
            stages=tuple(_stage(layout, index, asking, device) for index in range(len(layout.stages))),
            prompt=Rectangle(torch.tensor(place, dtype=torch.long, device=device)),
        )


def _stage(layout: Layout, index: int, asking: int, device: torch.device) -> PackedStage:
    stage = layout.stages[index]
    counts, width = stage.rows, stage.width
    ragged = len(set(counts)) > 1
    places = [(b, row) for b, count in enumerate(counts) for row in range(count)]
    pages = -(-width // PAGE)
    decides = None
    if stage.decision is not None and 0 in stage.decision.candidates:
        flags = [[stage.decision.candidates[b] > 0] for b, _ in places]
        decides = torch.tensor(flags, device=device)

    def index_table(entries: Iterable[int]) -> Tensor:
        return torch.tensor(list(entries), dtype=torch.long, device=device)

    return PackedStage(
        first=stage.first,
        last=stage.last,
        rows=Starts.of(counts, device),
        asking=Asking.of(counts, asking, device),
        counts=index_table(row for _, row in places),
        decides=decides,
        page=index_table(b * pages + row // PAGE for b, row in places),
        line=index_table(row % PAGE for _, row in places),
        width=pages,
        attention=Rectangle.of(counts, width, device) if ragged else None,
        unpack=index_table(b * width + row for b, row in places) if ragged else None,
        output=Rectangle.of(counts, width, device, to_the_right=True),
        places=index_table((b + 1) * width - counts[b] + row for b, row in places),
        decision=None if stage.decision is None else _decision(layout, stage.first, stage.decision, device),
    )


def _decision(layout: Layout, layer: int, shape: DecisionLayout, device: torch.device) -> PackedDecision:
    stages = [decided_stage(plan, layer) for plan in layout.plans]
    pools = [list(stage.pools) if stage else [0] for stage in stages]
    budgets = [list(stage.budgets) if stage else [0] for stage in stages]
    candidates = Starts.of(chain.from_iterable(pools), device)
    selected = Starts.of(chain.from_iterable(budgets), device)
    requests = [b for b, own in enumerate(pools) for _ in range(sum(own))]
    begins = list(accumulate(candidates.counts, initial=0))
    segments = [begins[g] for g, count in enumerate(selected.counts) for _ in range(count)]
    return PackedDecision(
        shape=shape,
        candidates=candidates,
        selected=selected,
        ordinals=torch.tensor(
            [ordinal for n in shape.candidates for ordinal in range(n)], dtype=torch.int32, device=device
        ),
        request_of_candidate=torch.tensor(requests, dtype=torch.long, device=device),
        segment_of_selected=torch.tensor(segments, dtype=torch.int32, device=device),
        candidate_rectangle=Rectangle.of([sum(own) for own in pools], max(shape.candidates), device),
        selected_rectangle=Rectangle.of([sum(own) for own in budgets], max(shape.kept), device),
        segment_rectangle=Rectangle.of(list(map(len, pools)), max(map(len, pools)), device),
    )
