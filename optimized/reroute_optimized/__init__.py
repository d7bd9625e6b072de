"""Routes a transformers vision-language model in place: this is the fast implementation of the specification.

:func:`apply` routes a model and :func:`remove` gives it back as it was; :func:`routed` does both around a ``with``
block. :func:`apply` returns a :class:`Routed`, on which the decisions of the last prefill can be read.
:meth:`Routed.prefix` computes the beginning that many prompts share once. The model runs stage by stage, and on a GPU
nothing is read on the host between the first block and the output.

The modules stand in rooms, one folder each but for ``api``. From what a user calls down to the kernels the rooms are
``conforming`` and ``integrations``, ``api``, ``prefix`` and ``showing``, ``hooks``, ``fused`` and ``nuwa``, ``stages``,
``turn``, ``parallel``, ``model``, ``kernels``. A room imports only rooms that stand after it, and no room imports
``reroute_conformance`` or more of ``reroute_reference`` than ``families``. To add a room, list it among import-linter's
layers in ``pyproject.toml``; to add a public name, import it here and list it in ``__all__``.
"""

from .api import Routed, apply, remove, routed
from .kernels import ops as ops
from .prefix.handle import Prefix

__all__ = ["Prefix", "Routed", "apply", "remove", "routed"]
