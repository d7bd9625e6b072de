"""Routes models inside other people's programs, with one folder for each program.

This room may import ``api`` and every room after it, but not ``conforming``, which stands beside it. No other room
imports it, and the package works without it. To add a program, write a folder here, make the program's package an extra
in ``pyproject.toml``, list an entry point there if the program looks for one, and say in ``docs/how-to`` how it is run.
"""
