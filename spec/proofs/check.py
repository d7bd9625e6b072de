"""Run Coq over ``Route.v`` and refuse every theorem that rests on an assumption, or was never asked what it rests on."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("Route.v")
CLOSED = "Closed under the global context"


def statements(source: str) -> list[tuple[str, str, list[str]]]:
    """Kind, name and cited rules of every theorem and example, in order."""
    found = []
    for match in re.finditer(r"^(Theorem|Example) (\w+)", source, re.MULTILINE):
        comment = source[: match.start()].rpartition("(**")[2]
        rules = re.findall(r"RR-[A-Z]+-\d{3}", comment) if match[1] == "Theorem" else []
        found.append((match[1], match[2], rules))
    return found


def faults(source: str, answers: str) -> list[str]:
    """What is wrong with what Coq answered to the last lines of the source; empty when all is proved."""
    names = [name for _, name, _ in statements(source)]
    asked = re.findall(r"^Print Assumptions (\w+)\.", source, re.MULTILINE)
    found = [f"{name} is not asked for its assumptions" for name in names if name not in asked]
    found += [
        f"{name} has no rule" for kind, name, rules in statements(source) if kind == "Theorem" and not rules
    ]
    lines = [line for line in answers.splitlines() if line.strip()]
    if lines != [CLOSED] * len(asked):
        found.append(f"assumptions were found: {[line for line in lines if line != CLOSED] or len(lines)}")
    return found


def main() -> int:
    """Check the proofs, print each theorem with its rules, and return an exit status."""
    if shutil.which("coqc") is None:
        print("proofs: coqc is missing; install Debian's package coq (apt-get install coq)", file=sys.stderr)
        return 1
    source = SOURCE.read_text("utf-8")
    with tempfile.TemporaryDirectory() as folder:  # compiled files stay out of the tree
        copy = shutil.copy(SOURCE, folder)
        coq = subprocess.run(["coqc", "-q", copy], cwd=folder, capture_output=True, text=True, timeout=600)
    found = faults(source, coq.stdout) if coq.returncode == 0 else [coq.stderr.strip()]
    if found:
        print("proofs: Route.v fails:", *found, sep="\n  ", file=sys.stderr)
        return 1
    proved = statements(source)
    for kind, name, rules in proved:
        print(f"{kind.lower():8} {name} [{', '.join(rules) or 'premises'}]")
    theorems = sum(kind == "Theorem" for kind, _, _ in proved)
    print(
        f"coq: {theorems} theorems and {len(proved) - theorems} examples, all closed under the global context"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
