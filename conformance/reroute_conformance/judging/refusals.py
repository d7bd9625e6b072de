"""What a target said where it refused, told apart from a crash and from an answer that cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ..targets.answers import MalformedError, SkippedError
from ..verdicts.verdict import Verdict


def refusal_of(call: Callable[[], Any]) -> tuple[Any, Any]:
    """A target's answer and None, or None and the error that it refused with.

    Raises:
        MalformedError, SkippedError: neither accepted nor refused.
    """
    try:
        return call(), None
    except (MalformedError, SkippedError):
        raise
    except Exception as refused:
        return None, refused.__cause__ if hasattr(refused.__cause__, "field") else refused


def judge_refusal(verdict: Verdict, where: str, error: Any, field: str) -> None:
    """Whether a refusal that is due names its field and a remedy (RR-ERR-001)."""
    said = SimpleNamespace(field=getattr(error, "field", ""), remedy=getattr(error, "remedy", ""))
    detail = f"refused, but the error names field {said.field!r} and remedy {said.remedy!r}: {error}"
    if (
        verdict.require("RR-ERR-001", where, detail, accepted=False, error=said, touched=False)
        and said.field != field
    ):
        verdict.violate("RR-ERR-001", where, f"the error names field {said.field!r}, not {field!r}: {error}")
