"""Measures time and memory of targets, each on the same work and on the same machine.

``works``, ``models`` and ``suites`` define the work, ``subjects`` and ``admission`` choose who does it, ``timing``,
``machine``, ``floors`` and ``memory`` measure, ``run`` does a whole run, and ``saved_runs`` reads one from a file. This
room may import every other room of the suite but ``cli``; it must not import ``presenting``, which imports it. To add a
suite, write a function that returns its cases in ``suites.py``, list it in ``SUITES`` there, and give it a title in
``presenting/tables.py``.
"""
