"""Runs a process that is asked by lines on its standard input and answers by lines on its standard output.

Whatever the process does, the suite goes on: a process that dies, hangs or says too much gives an error.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, cast

from .answers import UnansweredError

LONGEST_LINE = 16 * 2**20
"""How many bytes of one line are read. A target that sends more without an end of line is given up."""

_CHUNK = 2**16
_STDERR_TAIL = 2**12
_GRACE = 1.0  # seconds to end by itself


class LineProcess:
    """A running command that is asked one line and answers one line.

    No pipe is ever waited for alone, so that neither side can block the other for good.

    Args:
        command: program and arguments.

    Raises:
        OSError: the command cannot be started.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # what it starts itself is ended with it
        )
        self._stdin, self._stdout, self._stderr = (
            cast(IO[bytes], pipe)
            for pipe in (self._process.stdin, self._process.stdout, self._process.stderr)
        )
        for pipe in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(pipe.fileno(), False)
        self._received = bytearray()
        self._said = b""  # the end of standard error
        self._end = weakref.finalize(self, _kill, self._process)  # at the latest when the suite ends

    def exchange(self, line: bytes, timeout: float) -> bytes:
        """Say ``line``, which ends in a newline, and return the next line without it.

        Raises:
            UnansweredError: none within ``timeout`` seconds, one that is too long, or the process has ended.
        """
        self._read()
        if self._received:
            raise self._unanswered("went on after its answer, or answered before it was asked")
        deadline, pending, searched, open_ = time.monotonic() + timeout, memoryview(line), 0, True
        with selectors.DefaultSelector() as ready:
            for pipe in (self._stdout, self._stderr):
                ready.register(pipe, selectors.EVENT_READ)
            ready.register(self._stdin, selectors.EVENT_WRITE)
            while True:
                end = self._received.find(b"\n", searched)
                searched = len(self._received) if end < 0 else end
                if end > LONGEST_LINE or len(self._received) > LONGEST_LINE + _CHUNK:
                    raise self._unanswered(f"said a line of more than {LONGEST_LINE} bytes, or many at once")
                if end >= 0 and not (pending and open_):  # what it said before it ended still counts
                    answer = bytes(self._received[:end])
                    del self._received[: end + 1]
                    return answer
                if not open_:
                    raise self._unanswered(self._ended())
                left = deadline - time.monotonic()
                if left <= 0:
                    raise self._unanswered(f"did not answer within {timeout:g} s", hung=True)
                for key, _ in ready.select(left):
                    if key.fileobj is self._stdin:
                        pending = self._write(pending)
                        if not pending:
                            ready.unregister(self._stdin)
                    elif key.fileobj is self._stderr:
                        if not self._listen():
                            ready.unregister(self._stderr)
                    elif not self._read():
                        ready.unregister(self._stdout)
                        open_ = False

    def stop(self, farewell: bytes = b"") -> None:
        """End the process and all that it started: by itself after a ``farewell``, else at once."""
        if farewell and self._process.poll() is None:
            with suppress(OSError):
                self._stdin.write(farewell)
            with suppress(OSError):
                self._stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE)
        self._end()

    def _write(self, pending: memoryview) -> memoryview:
        try:
            return pending[os.write(self._stdin.fileno(), pending[:_CHUNK]) :]
        except BlockingIOError:
            return pending
        except OSError:  # it does not listen any more
            return pending[:0]

    def _read(self) -> bool:
        """Take what there is of the answer; False at its end."""
        with suppress(BlockingIOError):
            chunk = os.read(self._stdout.fileno(), _CHUNK)
            self._received += chunk
            return bool(chunk)
        return True

    def _listen(self) -> bool:
        """Take what there is on standard error; False at its end."""
        with suppress(BlockingIOError):
            chunk = os.read(self._stderr.fileno(), _CHUNK)
            self._said = (self._said + chunk)[-_STDERR_TAIL:]
            return bool(chunk)
        return True

    def _ended(self) -> str:
        try:
            code = self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            return "closed its standard output"
        if code >= 0:
            return f"ended with exit code {code} instead of an answer"
        with suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name} instead of answering"
        return f"was ended by signal {-code} instead of answering"

    def _unanswered(self, problem: str, *, hung: bool = False) -> UnansweredError:
        for _ in range(_STDERR_TAIL):  # bounded: it may never stop talking
            before = self._said
            if not self._listen() or self._said == before:
                break
        words = plain(self._said.decode("utf-8", "backslashreplace")).strip()
        lines = words.splitlines()[-8:]
        said = "; the last it said on standard error:\n    " + "\n    ".join(lines) if lines else ""
        return UnansweredError(f"the target {problem}{said}", hung=hung)


def plain(text: str) -> str:
    """Text that any terminal and any file takes: what is not printable is escaped."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    process.wait()
