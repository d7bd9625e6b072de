"""Another name of :mod:`reroute_optimized.kernels.ops`, under which programs outside this repository import the operators."""

import sys

from .kernels import ops
from .kernels.ops import *  # noqa: F403  for type checkers

sys.modules[__name__] = ops
