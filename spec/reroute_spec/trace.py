"""What a routed prefill decided, in a form that outlives tensors, models and processes (RR-POOL-006)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from .errors import RerouteError
from .plan import Plan, Stage
from .schedule import check_keys
from .select import margin, select


@dataclass(frozen=True)
class DecisionRecord:
    """One decision of one request. Rows are named by visual ordinal (0 .. N-1), lists ascend.

    Attributes:
        layer: block at whose input the decision fell.
        stage: 1 for the first decision.
        pool: the candidates C_j.
        scores: one per candidate, aligned with ``pool``.
        selected: A_j, the rows that run this stage.
        deferred: every other routable row (removed for good under ``delete``).
        reentered: A_j minus A_{j-1}; A_0 is all rows, so the first decision has none.
        margin: smallest relative gap at the threshold over spans, or None where nothing was left out.
        would_select: what the scores would have selected, where ``selected`` was replayed; else None.
    """

    layer: int
    stage: int
    pool: tuple[int, ...]
    scores: tuple[float, ...]
    selected: tuple[int, ...]
    deferred: tuple[int, ...]
    reentered: tuple[int, ...]
    margin: float | None
    would_select: tuple[int, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data; tuples become lists."""
        return {
            f.name: list(value) if isinstance(value := getattr(self, f.name), tuple) else value
            for f in fields(self)
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], path: str = "decision") -> DecisionRecord:
        """Reads what ``to_dict`` wrote.

        Raises:
            RerouteError: an unknown or missing field, or one of another type.
        """
        check_keys(path, data, [f.name for f in fields(cls)])
        values: dict[str, Any] = {name: _count(f"{path}.{name}", data[name]) for name in ("layer", "stage")}
        for name in ("pool", "selected", "deferred", "reentered"):
            values[name] = _counts(f"{path}.{name}", data[name])
        would = data["would_select"]
        values["would_select"] = None if would is None else _counts(f"{path}.would_select", would)
        scores, gap = data["scores"], data["margin"]
        for name, numbers in (("scores", scores), ("margin", [] if gap is None else [gap])):
            if not isinstance(numbers, list) or not all(map(_is_number, numbers)):
                raise RerouteError(
                    f"{path}.{name}", f"{data[name]!r} holds no numbers", "see schemas/trace.json"
                )
        return cls(**values, scores=tuple(float(x) for x in scores), margin=gap)


@dataclass(frozen=True)
class RoutingTrace:
    """All decisions of one turn of a request (RR-POOL-006).

    Attributes:
        num_rows: S, real prompt rows.
        visual_rows: prompt row of every ordinal.
        kv_rows: per block, rows in its cache after the turn.
        decisions: one record per decision, in order; empty where N = 0.
    """

    num_rows: int
    visual_rows: tuple[int, ...]
    kv_rows: tuple[int, ...]
    decisions: tuple[DecisionRecord, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data in the form of ``schemas/trace.json``."""
        return {
            "num_rows": self.num_rows,
            "visual_rows": list(self.visual_rows),
            "kv_rows": list(self.kv_rows),
            "decisions": [record.to_dict() for record in self.decisions],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RoutingTrace:
        """Reads what ``to_dict`` wrote.

        Raises:
            RerouteError: an unknown or missing field, or one of another type.
        """
        check_keys("trace", data, [f.name for f in fields(cls)])
        records = data["decisions"]
        if not isinstance(records, list):
            raise RerouteError("decisions", f"is a {type(records).__name__}", "give a list of records")
        return cls(
            num_rows=_count("num_rows", data["num_rows"]),
            visual_rows=_counts("visual_rows", data["visual_rows"]),
            kv_rows=_counts("kv_rows", data["kv_rows"]),
            decisions=tuple(
                DecisionRecord.from_dict(record, f"decisions[{index}]")
                for index, record in enumerate(records)
            ),
        )


def _count(field: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RerouteError(field, f"{value!r} is no row or count", "give an integer >= 0")
    return value


def _is_number(value: object) -> bool:
    """One that a float holds, which not every integer of JSON is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, float) or abs(value) < 1 << 1023


def _counts(field: str, values: object) -> tuple[int, ...]:
    if not isinstance(values, list):
        raise RerouteError(field, f"is a {type(values).__name__}", "give a list of integers >= 0")
    return tuple(_count(f"{field}[{index}]", value) for index, value in enumerate(values))


def select_in_spans(plan: Plan, stage: int, pool: Sequence[int], scores: Sequence[float]) -> tuple[int, ...]:
    """A_j of decision ``stage``: per span the budget's best candidates, their union ascending (RR-SEL-001).

    Args:
        plan: the request's plan.
        stage: 1 for the first decision.
        pool: candidates as ordinals, ascending.
        scores: one per candidate.
    """
    budgets = _stage(plan, stage).budgets
    selected: list[int] = []
    for span, k in zip(plan.spans, budgets, strict=True):
        places = [place for place, ordinal in enumerate(pool) if ordinal in span]
        selected += [pool[places[i]] for i in select([scores[place] for place in places], k)]
    return tuple(selected)


def record(
    plan: Plan,
    stage: int,
    pool: Sequence[int],
    scores: Sequence[float],
    selected: Sequence[int],
    previous: Sequence[int],
    would_select: Sequence[int] | None = None,
) -> DecisionRecord:
    """The record of a decision from what only the run knows; the derived lists are computed here.

    Args:
        plan, stage, pool, scores: as for :func:`select_in_spans`.
        selected: A_j, ascending ordinals.
        previous: A_{j-1}; all ordinals for the first decision.
        would_select: see :class:`DecisionRecord`.
    """
    chosen, before = set(selected), set(previous)
    margins = []
    for span in plan.spans:
        places = [place for place, ordinal in enumerate(pool) if ordinal in span]
        margins.append(
            margin([scores[p] for p in places], [i for i, p in enumerate(places) if pool[p] in chosen])
        )
    return DecisionRecord(
        layer=_stage(plan, stage).first,
        stage=stage,
        pool=tuple(pool),
        scores=tuple(scores),
        selected=tuple(selected),
        deferred=tuple(ordinal for ordinal in range(plan.num_visual) if ordinal not in chosen),  # RR-POOL-005
        reentered=tuple(ordinal for ordinal in selected if ordinal not in before),
        margin=min((m for m in margins if m is not None), default=None),  # RR-POOL-006
        would_select=None if would_select is None else tuple(would_select),
    )


def check_selection(
    plan: Plan, stage: int, pool: Sequence[int], selected: Sequence[int], field: str
) -> tuple[int, ...]:
    """A given (replayed) selection, refused unless it is one this decision could have made.

    Raises:
        RerouteError: rows outside the pool, out of order, or not as many as the budget.
    """
    rows = tuple(selected)
    if list(rows) != sorted(set(rows)) or not set(rows) <= set(pool):
        raise RerouteError(
            field, f"{list(rows)} is no ascending choice of candidates", f"choose from {list(pool)}"
        )
    for span, k in zip(plan.spans, _stage(plan, stage).budgets, strict=True):
        if sum(row in span for row in rows) != k:
            raise RerouteError(
                field, f"{list(rows)} does not hold {k} rows", f"the plan keeps {k} of span {span}"
            )
    return rows


def _stage(plan: Plan, index: int) -> Stage:
    return next(stage for stage in plan.stages if stage.index == index)
