"""The one way this project refuses input: name the field, show the value, say what would be right."""

from __future__ import annotations

from difflib import get_close_matches


class RerouteError(ValueError):
    """Input that the specification refuses (RR-ERR-001).

    Attributes:
        field: path of the offending field, such as ``decisions[1].keep``.
        remedy: what would be right.
    """

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        super().__init__(field, problem, remedy)  # RR-ERR-001
        self.field = field
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}; {self.remedy}"


def unknown(field: str, value: object, known: list[str]) -> RerouteError:
    """The error for a name outside a closed vocabulary, with the nearest known name where there is one."""
    near = get_close_matches(str(value), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return RerouteError(field, f"{value!r} is not known", f"{hint}known: {', '.join(map(repr, known))}")
