"""Gives a module another class, and later gives its own class back."""

from __future__ import annotations

from torch import nn

from .refusals import is_hooked


def become(module: nn.Module, new: type[nn.Module]) -> None:
    """Make ``module`` an instance of ``new``, under accelerate's hook where it has one."""
    module.__class__ = new
    if is_hooked(module):
        module.__dict__["_old_forward"] = new.forward.__get__(module)


class Swapped:
    """A module that has been given another class, until :meth:`remove` gives its own back."""

    def __init__(self, module: nn.Module, new: type[nn.Module]) -> None:
        self._module, self._old = module, type(module)
        become(module, new)

    def remove(self) -> None:
        """Give its class back."""
        become(self._module, self._old)
