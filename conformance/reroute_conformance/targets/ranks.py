"""Runs a target in several processes of one gloo group, asks all of them the same, and gets an answer from each."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from signal import SIG_IGN, SIGINT, signal
from tempfile import TemporaryDirectory
from typing import Any, cast

from reroute_spec import RerouteError

from ..protocol import Target
from .answers import UnansweredError

ALONE = {
    "hf": "transformers models do not travel between processes whole",
    "nuwa": "transformers models do not travel between processes whole",
    "shards": "it starts processes of its own",
}
"""Profiles that a target in several processes is not asked for, and why."""
_START = 120.0
"""Seconds to import torch, the target and what it needs."""
_GRACE = 5.0
"""Seconds beyond the group's timeout, so that a process that waits for another can say so itself."""


class RankError(Exception):
    """One process of a target raised an error.

    Attributes:
        field, remedy: as the error of the process had them, empty where it did not.
    """

    def __init__(self, said: str, field: str = "", remedy: str = "") -> None:
        super().__init__(said, field, remedy)
        self.field, self.remedy = field, remedy

    def __str__(self) -> str:
        return str(self.args[0])


class RankedTarget:
    """A target in ``count`` processes, each of which loads it for itself and has a place in the same gloo group.

    Args:
        load: makes the target. It is called in every process, so it has to survive pickling.
        count: number of processes.
        timeout: seconds that one answer may take, and that a collective may take.

    Attributes:
        name, profiles, dtypes, device, unavailable: the target's own. ``profiles`` leaves out those that several
            processes cannot be asked for.

    Raises:
        RerouteError: there is no such target, or it cannot be loaded in the processes.
    """

    def __init__(self, load: Callable[[], Target], count: int, timeout: float = 60.0) -> None:
        self.count, self._load, self._timeout = count, load, timeout
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        self._folder = TemporaryDirectory(prefix="vlm-reroute-")
        self._starts = 0
        try:
            said = self._started()
        except UnansweredError as error:
            self.close()
            raise RerouteError("--nproc", str(error), "see conformance/README.md") from None
        for each in said:
            if isinstance(each, RerouteError):
                self.close()
                raise each
        vars(self).update(said[0])

    def ask(self, request: bytes) -> list[Any]:
        """What every process answers, or the :class:`RankError` that it raised.

        Args:
            request: a member's name, its arguments and its named arguments, pickled.

        Raises:
            UnansweredError: one died, or did not answer in time; the next request finds fresh ones.
        """
        if not self._processes:
            self._started()
        for pipe in self._pipes:
            with suppress(OSError):  # whoever does not listen any more is found dead
                pipe.send_bytes(request)
        answers = self._heard(self._timeout + _GRACE)
        raised = [isinstance(answer, RankError) for answer in answers]
        if any(raised) and not all(raised):
            self.close()  # the others may wait for it in a collective, which nobody enters any more
        return answers

    def views(self, asked: list[tuple[bytes, list[Any]]]) -> list[Target]:
        """The target as each of its processes answers for it.

        Args:
            asked: filled with the requests of one case, and what every process answered to each.
        """
        return [cast(Target, _View(self, rank, asked)) for rank in range(self.count)]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []

    def _started(self) -> list[Any]:
        """Start the processes and hear what each has loaded."""
        context = get_context("spawn")  # they begin like the command line does
        self._starts += 1
        meeting = (Path(self._folder.name) / str(self._starts)).as_uri()
        for rank in range(self.count):
            here, there = context.Pipe()
            given = (rank, self.count, self._load, meeting, self._timeout, there)
            process = context.Process(target=_serve, args=given, daemon=True)
            process.start()
            there.close()
            self._processes.append(process)
            self._pipes.append(here)
        return self._heard(_START)

    def _heard(self, patience: float) -> list[Any]:
        """What every process says."""
        until, heard = time.monotonic() + patience, dict[int, Any]()
        while len(heard) < self.count:
            waiting = [pipe for rank, pipe in enumerate(self._pipes) if rank not in heard]
            ready = wait(waiting, max(until - time.monotonic(), 0))
            if not ready:
                silent = [rank for rank in range(self.count) if rank not in heard]
                self._give_up(
                    f"process {silent[0]} of {self.count} did not answer within {patience:g} s", True
                )
            for pipe in cast(list[Connection], ready):
                rank = self._pipes.index(pipe)
                try:
                    heard[rank] = pickle.loads(pipe.recv_bytes())
                except (EOFError, OSError):
                    self._processes[rank].join(_GRACE)
                    code = self._processes[rank].exitcode
                    self._give_up(f"process {rank} of {self.count} ended with exit code {code}")
                except Exception as error:  # what it sent may be of any class
                    self._give_up(f"process {rank} of {self.count} sent what cannot be read ({error})")
        return [heard[rank] for rank in range(self.count)]

    def _give_up(self, problem: str, hung: bool = False) -> None:
        self.close()
        raise UnansweredError(f"{problem} instead of answering", hung=hung)


class _View:
    """A target in several processes, seen as one of its processes answers for it.

    Args:
        target: the target in all its processes.
        rank: the process whose answers are returned.
        asked: the case's requests so far, and what every process answered to each. The view of the first process asks
            and notes the answers. The view of another process finds them there as long as it is asked the same.
    """

    def __init__(self, target: RankedTarget, rank: int, asked: list[tuple[bytes, list[Any]]]) -> None:
        self._target, self._rank, self._asked, self._next = target, rank, asked, 0

    def __getattr__(self, member: str) -> Any:
        if member in vars(self._target):  # what it says of itself
            return getattr(self._target, member)

        def call(*args: Any, **named: Any) -> Any:
            answer = self._answers(pickle.dumps((member, args, named)))[self._rank]
            if isinstance(answer, RankError):
                raise answer
            return answer

        return call

    def _answers(self, request: bytes) -> list[Any]:
        place, self._next = self._next, self._next + 1
        if self._rank and place < len(self._asked) and self._asked[place][0] == request:
            return self._asked[place][1]
        answers = self._target.ask(request)
        if not self._rank:
            self._asked.append((request, answers))
        return answers


def _serve(
    rank: int, count: int, load: Callable[[], Target], meeting: str, timeout: float, pipe: Connection
) -> None:
    """One process: join the group, load the target, answer until nobody asks any more."""
    signal(SIGINT, SIG_IGN)  # whoever is interrupted at the keyboard ends these, too
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
    import torch.distributed as dist

    patience = timedelta(seconds=timeout)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count, timeout=patience)
    target, said = _loaded(load)
    pipe.send_bytes(said)
    with suppress(EOFError, OSError):
        while True:
            pipe.send_bytes(_answered(rank, target, pipe.recv_bytes()))


def _loaded(load: Callable[[], Target]) -> tuple[Any, bytes]:
    """The target, and in bytes what it says of itself, or what was wrong."""
    try:
        target = load()
        own = {"name": target.name, "profiles": frozenset(target.profiles) - ALONE.keys()}
        for claim in ("dtypes", "device", "unavailable"):
            if hasattr(target, claim):
                own[claim] = getattr(target, claim)
        return target, pickle.dumps(own)
    except RerouteError as error:
        return None, pickle.dumps(error)


def _answered(rank: int, target: Any, message: bytes) -> bytes:
    try:
        member, args, named = pickle.loads(message)
        return pickle.dumps(getattr(target, member)(*args, **named))
    except (Exception, SystemExit) as error:
        field, remedy = (str(getattr(error, name, "")) for name in ("field", "remedy"))
        return pickle.dumps(RankError(f"process {rank}: {type(error).__name__}: {error}", field, remedy))
