"""The executable definition of recoverable visual token routing: plain Python, no tensors.

Start with :class:`Schedule`; :func:`plan` turns one and a prompt's layout into every row count, :func:`select` is the
decision itself, :class:`RoutingTrace` records what was decided. The numbered rules are the chapters in ``spec/``.
"""

from .budget import Keep, budget
from .cost import BlockCost, Cost, DecodeCost, PrefixCost, cost, decode_cost, prefix_cost
from .errors import RerouteError
from .fit import Fit, fit_average
from .model_config import decoder_shape, shape_from_config
from .plan import Plan, Stage, plan
from .presets import presets
from .schedule import Decision, Schedule, ScoreRule
from .select import select
from .shapes import DECODER_SHAPES, DecoderShape, HybridShape
from .trace import DecisionRecord, RoutingTrace

SPEC_VERSION = "0.1"
"""Of the rules and the data formats; spec/README.md says what changes it."""

__all__ = [
    "DECODER_SHAPES",
    "SPEC_VERSION",
    "BlockCost",
    "Cost",
    "Decision",
    "DecisionRecord",
    "DecodeCost",
    "DecoderShape",
    "Fit",
    "HybridShape",
    "Keep",
    "Plan",
    "PrefixCost",
    "RerouteError",
    "RoutingTrace",
    "Schedule",
    "ScoreRule",
    "Stage",
    "budget",
    "cost",
    "decode_cost",
    "decoder_shape",
    "fit_average",
    "plan",
    "prefix_cost",
    "presets",
    "select",
    "shape_from_config",
]
