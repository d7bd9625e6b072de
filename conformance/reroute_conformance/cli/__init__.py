"""Holds the command line ``vlm-reroute``, with one module per command or group of commands.

A command reads its arguments, calls the other rooms and prints what they give. This room may import every room of the
suite, and no room may import it. A command imports what is heavy inside its function, so that ``--help`` answers at
once. To add a command, write its function in a module here and list it in ``entry.py``; options that several commands
share stand in ``options.py``.
"""

from .entry import app, main

__all__ = ["app", "main"]
