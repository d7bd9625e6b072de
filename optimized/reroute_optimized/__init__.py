"""The fast path: routes a transformers model in place, stage by stage, without a host read between first block and output.

:func:`apply` and :func:`remove`, or :func:`routed` around a request; what was decided is on the :class:`Routed` they give.
:meth:`Routed.prefix` computes once what many prompts begin with.
"""

from .api import Routed, apply, remove, routed
from .kernels import ops as ops
from .prefix.handle import Prefix

__all__ = ["Prefix", "Routed", "apply", "remove", "routed"]
