"""Asks an implementation: reaches it in this process, as a command or in several processes, and reads its answers.

This room may import ``cases`` and the rooms before it, and the reference. It must not import ``verdicts`` or any room
after it: it checks the form of an answer, not its content. To add a way to reach an implementation, write a class with
the members of ``protocol.Target`` in a module here, and let ``load_target`` in ``running/finding.py`` make one.
"""

from .reference_target import ReferenceTarget, reference

__all__ = ["ReferenceTarget", "reference"]
