"""From a schedule and a prompt's layout to every row count, before any tensor exists (RR-POOL, RR-KV-001)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from .budget import budget
from .errors import RerouteError
from .schedule import Schedule, ScoreRule


@dataclass(frozen=True)
class Stage:
    """Blocks between two decisions.

    Attributes:
        index: 0 for the dense blocks before the first decision, j for the blocks of decision j.
        first, last: its blocks, both inclusive.
        kept: visual rows that run its blocks.
        budgets: rows selected per span; one entry (the request) unless ``scope = image``. Empty in stage 0.
        pools: candidates per span, aligned with ``budgets``.
        scored: rows of U that the decision's softmax runs over; 0 in stage 0.
    """

    index: int
    first: int
    last: int
    kept: int
    budgets: tuple[int, ...] = ()
    pools: tuple[int, ...] = ()
    scored: int = 0


@dataclass(frozen=True)
class Plan:
    """Every shape of one request's prefill.

    Attributes:
        num_rows: S, real prompt rows.
        visual_rows: the routable rows V, ascending prompt indices; a row's place here is its ordinal.
        spans: ordinals of each span, the request as one span unless ``scope = image``.
        stages: the stages that hold at least one block, in order.
        kv_rows: per block, the rows it runs and, where it has plain attention, its cache holds after prefill.
    """

    num_rows: int
    visual_rows: tuple[int, ...]
    spans: tuple[range, ...]
    stages: tuple[Stage, ...]
    kv_rows: tuple[int, ...]
    score: ScoreRule = field(default_factory=ScoreRule)

    @property
    def num_visual(self) -> int:
        """N, routable visual rows."""
        return len(self.visual_rows)

    @property
    def num_layers(self) -> int:
        """Blocks of the decoder."""
        return len(self.kv_rows)

    @property
    def average_visual(self) -> Fraction:
        """Mean over blocks of the routable rows that run (§12 of the method's cost); exact."""
        text = self.num_rows - self.num_visual
        return Fraction(sum(rows - text for rows in self.kv_rows), self.num_layers)


def plan(
    schedule: Schedule, num_layers: int, visual: Sequence[bool], images: Sequence[int] | None = None
) -> Plan:
    """Row counts of every stage and block.

    Args:
        schedule: validated against ``num_layers`` here.
        num_layers: blocks of the decoder.
        visual: one flag per real prompt row (padding is never a row). The last row is never routable: it asks,
            even where it is visual (RR-POOL-001).
        images: feature count of every image or video, in prompt order, summing to the flagged rows. Needed for
            ``scope = image`` only.

    Raises:
        RerouteError: an empty prompt, a layer beyond the decoder, or images that do not add up.
    """
    if not isinstance(schedule, Schedule):
        raise RerouteError("schedule", f"is a {type(schedule).__name__}", "give a Schedule")
    schedule.validate(num_layers)  # before any tensor exists  RR-CFG-008
    if len(visual) == 0:
        raise RerouteError("visual", "is empty", "a prompt has at least one row")
    for row, flag in enumerate(visual):
        if flag is not True and flag is not False:
            raise RerouteError(
                f"visual[{row}]", f"{flag!r} is a {type(flag).__name__}", "give True or False per row"
            )
    visual_rows = tuple(row for row, flag in enumerate(visual[:-1]) if flag)  # RR-POOL-001 RR-POOL-002
    spans = _spans(schedule, visual, len(visual_rows), images)
    text = len(visual) - len(visual_rows)
    stages = _stages(schedule, num_layers, text, spans)
    # RR-KV-001
    kv_rows = tuple(text + stage.kept for stage in stages for _ in range(stage.first, stage.last + 1))
    return Plan(len(visual), visual_rows, spans, stages, kv_rows, schedule.score)


def _spans(
    schedule: Schedule, visual: Sequence[bool], routable: int, images: Sequence[int] | None
) -> tuple[range, ...]:
    """Ordinals per span. Spans follow feature counts, not gaps: two images of LLaVA may touch (RR-BUD-003)."""
    if schedule.scope == "request":
        return (range(routable),) if routable else ()
    flagged = sum(visual)
    if images is None and flagged:
        raise RerouteError("images", "is missing with scope 'image'", "give the feature count of every image")
    counts = list(images or ())
    for index, count in enumerate(counts):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise RerouteError(f"images[{index}]", f"{count!r} is no feature count", "give an integer >= 1")
    if sum(counts) != flagged:
        raise RerouteError(
            "images", f"hold {sum(counts)} features", f"they must add up to the {flagged} visual rows"
        )
    spans, start = [], 0
    for count in counts:
        spans.append(range(start, min(start + count, routable)))  # RR-BUD-003
        start += count
    return tuple(span for span in spans if len(span))


def _stages(schedule: Schedule, num_layers: int, text: int, spans: tuple[range, ...]) -> tuple[Stage, ...]:
    routable = sum(len(span) for span in spans)
    # nothing to decide: the request runs unrouted  RR-BUD-002 RR-CFG-009
    if routable == 0 or not schedule.decisions:
        return (Stage(0, 0, num_layers - 1, routable),)
    starts = [decision.layer for decision in schedule.decisions]
    ends = [*(start - 1 for start in starts[1:]), num_layers - 1]
    stages = [Stage(0, 0, starts[0] - 1, routable)] if starts[0] > 0 else []
    pools = tuple(len(span) for span in spans)
    for index, (decision, first, last) in enumerate(
        zip(schedule.decisions, starts, ends, strict=True), start=1
    ):
        budgets = tuple(
            budget(decision.keep, len(span), min_keep=schedule.min_keep, pool=pool)
            for span, pool in zip(spans, pools, strict=True)
        )
        # U is every row under `reroute`, whatever the pool; under `delete` the rows still there (RR-SCORE-002)
        scored = text + (routable if schedule.action == "reroute" else sum(pools))
        stages.append(Stage(index, first, last, sum(budgets), budgets, pools, scored))
        if schedule.pool == "survivors":  # else every row is a candidate again  RR-POOL-003 RR-POOL-004
            pools = budgets
    return tuple(stages)


def visual_flags(num_visual: int, num_text: int, before: int = 0) -> list[bool]:
    """Flags of a prompt with ``num_visual`` visual rows after ``before`` of its ``num_text`` text rows."""
    return [False] * before + [True] * num_visual + [False] * (num_text - before)
