"""The executable definition of recoverable visual token routing: plain Python, no tensors.

Start with :class:`Schedule`; :func:`plan` turns one and a prompt's layout into every row count, :func:`select` is the
decision itself, :class:`RoutingTrace` records what was decided. The numbered rules are the chapters in ``spec/``.
"""

from .budget import Keep, budget
from .cost import DECODER_SHAPES, BlockCost, Cost, DecoderShape, cost
from .errors import RerouteError
from .plan import Plan, Stage, plan
from .presets import presets
from .schedule import Decision, Schedule, ScoreRule
from .select import select
from .trace import DecisionRecord, RoutingTrace

__version__ = "0.1.0"

__all__ = [
    "DECODER_SHAPES",
    "BlockCost",
    "Cost",
    "Decision",
    "DecisionRecord",
    "DecoderShape",
    "Keep",
    "Plan",
    "RerouteError",
    "RoutingTrace",
    "Schedule",
    "ScoreRule",
    "Stage",
    "budget",
    "cost",
    "plan",
    "presets",
    "select",
]
