"""Turns comparisons into verdicts: tolerances, margins, violations, and the diagnosis that names the rule behind a wrong value.

This room may import ``targets`` and every room before it, and the reference. It must not import ``judging``, which uses
it. To add a misreading of a rule about model families, list it in ``MISREADINGS`` of ``misreadings.py``, which makes it
a mutant too, and enter the check of a rule that is new there in ``_CHECK_OF`` of ``mutants/families.py``. To add a
misreading of scores, list it in ``SCORE_MISREADINGS`` of ``diagnosis.py``.
"""
