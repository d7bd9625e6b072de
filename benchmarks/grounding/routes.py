"""What is compared: every method and its reroute form at equal computed rows, at budgets that were fixed before any test item was seen.

Decision layers are those of the presets (RR-CFG-010): layer d of the published list for 32 blocks becomes ``floor(d * blocks / 32 + 1/2)``,
the formula that gives the published list for 28. At 12 blocks 3, 7, 15, 23 become 1, 3, 6, 9, PDrop's 2 becomes 1, Nüwa's 16 becomes 6.

A budget is the share of the visual rows that FastV keeps from its decision on. The other methods get ratios by which they run as many rows
on average over all blocks, as nearly as whole rows allow; PDrop and its reroute form in the shape of the published tier whose average is
nearest. Nüwa's second stage decides at half the depth, so it cannot run as few rows: it and its reroute form keep the budget's share from
there on, and are equal to each other alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from reroute_spec import Decision, DecoderShape, RerouteError, Schedule, cost, fit_average, plan

from .questions import PROMPT_ROWS
from .scenes import ROWS

BUDGETS = tuple(Fraction(share, 100) for share in (50, 33, 20, 11, 6, 3))

PAIRS = (
    ("reroute-fastv", "fastv"),
    ("reroute-pdrop", "pdrop"),
    ("reroute-fastv", "pdrop"),
    ("reroute-every-block", "fastv"),
    ("reroute-nuwa", "nuwa"),
)
"""Compared item by item, at the same budget. Not with ``pdrop-late``: it differs in positions too."""

VISUAL = [False] + [True] * ROWS + [False] * (PROMPT_ROWS - 1 - ROWS)


@dataclass(frozen=True)
class Route:
    """A method at a budget, fitted to a decoder.

    Attributes:
        method: its name in tables and plots.
        budget: share of rows that FastV keeps.
        schedule: what runs.
        average: visual rows per block, over all blocks.
        flops, kv: FLOPs and KV bytes of the prefill's blocks against unrouted, by the cost model.
    """

    method: str
    budget: Fraction
    schedule: Schedule
    average: Fraction
    flops: float
    kv: float

    @property
    def name(self) -> str:
        """The method and the budget in per cent."""
        return f"{self.method} {float(100 * self.budget):g}%"


def routes(shape: DecoderShape, budgets: tuple[Fraction, ...] = BUDGETS) -> list[Route]:
    """Everything that is compared on a decoder. What cannot reach a budget's rows is left out there."""
    blocks = shape.num_layers
    found = []
    for budget in budgets:
        fastv = _keeping("fastv-64", blocks, budget)
        average = plan(fastv, blocks, VISUAL).average_visual
        flat = _keeping("reroute-fastv-64", blocks, budget)
        first = fastv.decisions[0].layer
        every = replace(flat, decisions=tuple(Decision(layer, budget) for layer in range(first, blocks)))
        made = {
            "fastv": fastv,
            "reroute-fastv": flat,
            "reroute-every-block": every,
            "pdrop": _fitted([f"pdrop-{tier}" for tier in (192, 128, 64)], blocks, average),
            "pdrop-late": _fitted(["pdrop-original"], blocks, average),
            "reroute-pdrop": _fitted([f"reroute-pdrop-{tier}" for tier in (192, 128, 64)], blocks, average),
            "nuwa": _keeping("nuwa-64", blocks, budget),
            "reroute-nuwa": _keeping("reroute-nuwa-64", blocks, budget),
        }
        for method, schedule in made.items():
            if schedule is not None:
                found.append(_route(method, budget, schedule, shape))
    return found


def _route(method: str, budget: Fraction, schedule: Schedule, shape: DecoderShape) -> Route:
    made = plan(schedule, shape.num_layers, VISUAL)
    price = cost(made, shape)
    return Route(
        method, budget, schedule, made.average_visual, float(price.flops_ratio), float(price.kv_ratio)
    )


def _keeping(preset: str, blocks: int, share: Fraction) -> Schedule:
    """A preset's layers and score, keeping one share at each decision. Of Nüwa this is its second stage alone."""
    scaled = Schedule.load(preset, blocks)
    return replace(scaled, decisions=tuple(Decision(d.layer, share) for d in scaled.decisions))


def _fitted(presets: list[str], blocks: int, average: Fraction) -> Schedule | None:
    """The preset with the nearest average, scaled to that average; None where no factor gets within a row of it."""
    scaled = [Schedule.load(preset, blocks) for preset in presets]
    nearest = min(scaled, key=lambda s: abs(plan(s, blocks, VISUAL).average_visual - average))
    try:
        fit = fit_average(nearest, blocks, ROWS, average)
    except RerouteError:
        return None
    return fit.schedule if abs(fit.after.average_visual - average) <= 1 else None
