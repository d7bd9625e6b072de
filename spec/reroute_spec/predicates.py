"""The checks of the rules, run as they stand in the text: Python expressions over the names that ``spec/README.md`` defines."""

from __future__ import annotations

import ast
import math
import re
from fractions import Fraction
from functools import cache
from itertools import pairwise
from types import CodeType
from typing import Any

from .budget import budget
from .rules import rule

_BUILTINS = (
    abs, all, any, bool, enumerate, float, int, isinstance, len, list, max, min, range, set, sorted, str, sum, zip,
)  # fmt: skip
VOCABULARY: dict[str, Any] = {
    **{function.__name__: function for function in _BUILTINS},
    **{name: getattr(math, name) for name in ("copysign", "floor", "inf", "isclose", "isnan")},
    "Fraction": Fraction,
    "budget": budget,
    "fullmatch": re.fullmatch,
    "pairwise": pairwise,
}
"""What every check may use without being given it."""


def names(rule_id: str) -> frozenset[str]:
    """The names that a rule's check has to be given.

    Raises:
        RerouteError: no such rule.
    """
    return free_names(rule(rule_id).check)


def free_names(check: str) -> frozenset[str]:
    """The names of a check that are neither bound in it nor part of :data:`VOCABULARY`; none of an empty one."""
    nodes = [node for node in ast.walk(ast.parse(check or "True", mode="eval")) if isinstance(node, ast.Name)]
    bound = {node.id for node in nodes if isinstance(node.ctx, ast.Store)}
    return frozenset({node.id for node in nodes} - bound - VOCABULARY.keys())


def holds(rule_id: str, /, **given: Any) -> bool:
    """Whether a rule's check is true of the given values.

    Args:
        rule_id: such as ``RR-SEL-003``; not an undefined one, which has no check.
        given: exactly the names of :func:`names`.

    Raises:
        RerouteError: no such rule.
        TypeError: a name too many or too few.
    """
    code, expected = _compiled(rule_id)
    if given.keys() != expected:
        raise TypeError(f"the check of {rule_id} takes {sorted(expected)}, given {sorted(given)}")
    # one namespace: inside a generator expression, an evaluated expression sees globals only
    return bool(eval(code, {"__builtins__": {}, **VOCABULARY, **given}))


@cache
def _compiled(rule_id: str) -> tuple[CodeType, frozenset[str]]:
    return compile(rule(rule_id).check, rule_id, "eval"), names(rule_id)
