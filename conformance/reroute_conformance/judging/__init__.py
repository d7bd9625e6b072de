"""Judges what a target answered: a judge takes a case and a target, asks the target, and returns a verdict.

This room may import ``verdicts`` and every room before it, and the reference. It must not import ``vectors``,
``checks`` or any room after them: it does not know which cases are drawn, nor how often. To add a judge, write a
function of a case and a target that returns a ``Verdict`` in the module of its kind of case, and name it in a ``Check``
in ``checks``.
"""
