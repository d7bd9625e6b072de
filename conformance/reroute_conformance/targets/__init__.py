"""Asking an implementation: how a target is reached, and how its answers are read."""

from .reference_target import ReferenceTarget, reference

__all__ = ["ReferenceTarget", "reference"]
