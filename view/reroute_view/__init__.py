"""Draws what was decided: a trace and its picture as a page, as a figure, as data. Needs no torch, and no model."""

from .shown import Shown

__all__ = ["Shown"]
