"""Measures what a conforming implementation costs, beside others and beside the least it can cost, for ``vlm-reroute bench``.

``measuring`` takes the figures and ``presenting`` makes tables, plots and pages of them. This room may import every
other room but ``cli``, and it reaches an implementation through the target protocol alone. It gives no time of a target
that fails the smoke, and no figure without its machine. To add a suite, see ``measuring``; to add a form in which a run
is shown, see ``presenting``.
"""
