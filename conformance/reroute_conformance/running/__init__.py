"""Runs checks against a target: it finds the target, draws cases, judges them, and shrinks and saves failures.

This room may import ``mutants``, ``checks`` and every room before them. It must not import ``coverage``, which stands
beside it, nor a room that reports, measures or reads a command line; ``reporting`` reads the dataclasses of
``results.py``. To add a way to name a target, add a branch to ``load_target`` in ``finding.py``. To add a way to run
checks, write a module here that calls ``run_check`` of ``runner.py``, and call it from a command in ``cli``.
"""
