"""Asks a command in any language as a target, by JSON lines on its standard input and output (spec/FORMATS.md, Protocol).

Tensors travel in safetensors files beside the lines.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from reroute_spec import SPEC_VERSION, RerouteError, Schedule
from reroute_spec.canonical import CanonicalConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from ..protocol import Answer, Decisions, Inputs, Model
from .answers import MalformedError, SkippedError, UnansweredError
from .messages import (
    Reply,
    line_of,
    operations_of,
    read_message,
    read_tensors,
    read_traces,
    requests_of,
    short,
)
from .process import LineProcess, plain

_LONGEST_TIMEOUT = 86400  # a day
_MODELS = "a command cannot run transformers models"
_PYTHON_ONLY = {
    "hf": _MODELS,
    "nuwa": _MODELS,
    "prefix": "the protocol has no cases of shared prefixes",
    "shards": "the protocol has no cases of sharded heads",
}
"""Profiles that no command can claim, and why."""


class RefusalError(Exception):
    """A command refused what it was asked, with an ``error`` reply or as a step of a session (RR-ERR-001).

    Attributes:
        field, remedy: as the command gave them, empty where it did not.
    """

    def __init__(self, field: str, message: str, remedy: str) -> None:
        super().__init__(f"{field}: {message}; {remedy}" if field else message)
        self.field = field
        self.remedy = remedy


class CommandTarget:
    """A process that answers as a target. After it gave no answer, a fresh one is started for the next case.

    Args:
        command: program and arguments, written as for a shell. No shell runs.
        timeout: seconds that one answer may take.

    Attributes:
        name: the name that the command gives itself.
        profiles, dtypes: what the command claims. It is asked nothing in a dtype that it does not name.
        device: where the command says that it computes.
        unavailable: what the command says that it cannot be asked for here, and why.

    Raises:
        RerouteError: the command cannot be started, does not introduce itself, or claims what no command can.
    """

    def __init__(self, command: str, timeout: float = 60.0) -> None:
        if not 0 < timeout <= _LONGEST_TIMEOUT:
            remedy = f"give a number above 0, at most {_LONGEST_TIMEOUT}"
            raise RerouteError("--timeout", f"{timeout:g} seconds", remedy)
        try:
            self._command = shlex.split(command)
        except ValueError as error:
            raise RerouteError(
                "--cmd", f"{command!r} cannot be split ({error})", "close its quotes"
            ) from None
        if not self._command:
            raise RerouteError("--cmd", "is empty", "give a program and its arguments")
        self._timeout, self._seq = timeout, 0
        self._process: LineProcess | None = None
        self._folder = TemporaryDirectory(prefix="vlm-reroute-")
        try:
            said = self._introduced()
        except UnansweredError as error:
            self.close()
            raise RerouteError("--cmd", str(error), "see the protocol in spec/FORMATS.md") from None
        self.name = " ".join(plain(said["name"]).split())
        if "float32" not in said["dtypes"]:
            raise self._refused("dtypes", "do not name float32", "the suite runs in float32")
        for profile, reason in _PYTHON_ONLY.items():
            if profile in said["profiles"]:
                raise self._refused("profiles", f"name {profile}", f"{reason}: leave it out")
        self.profiles = frozenset(said["profiles"])
        self.dtypes = frozenset(said["dtypes"])
        self.device = ", ".join(said.get("devices", ()))
        self.unavailable = {name: short(reason) for name, reason in said.get("unavailable", {}).items()}

    def select(self, scores: Tensor, k: int) -> Sequence[int]:
        """See :class:`~reroute_conformance.protocol.Target`."""
        bits = scores.to(torch.float32).view(torch.int32).tolist()
        result = self._ask("select", {"scores": {"float32_bits": bits}, "k": k}, "selected")
        return [int(place) for place in result["selected"]]

    def plan(
        self, schedule: Mapping[str, Any], num_layers: int, visual: Sequence[bool], images: Sequence[int]
    ) -> Sequence[int]:
        """See :class:`~reroute_conformance.protocol.Target`."""
        inputs = {"schedule": schedule, "num_layers": num_layers, "visual": visual, "images": images}
        rows = self._ask("config", inputs, "kv_rows")["kv_rows"]
        if len(rows) != 1:
            raise MalformedError(f"kv_rows are of {len(rows)} requests, a config case has one")
        return [int(count) for count in rows[0]]

    def run(
        self,
        model: Model,
        inputs: Inputs,
        schedule: Schedule,
        *,
        decisions: Decisions = None,
        continuation: Tensor | None = None,
    ) -> list[Answer]:
        """See :class:`~reroute_conformance.protocol.Target`."""
        if not isinstance(model, tuple):
            raise RerouteError("model", "is a module", "a command runs canonical decoders only")
        config, weights = model
        dtype = next(iter(weights.values())).dtype
        requests, tensors = requests_of(inputs, decisions, continuation)
        data = {"schedule": schedule.to_dict(), "requests": requests}
        kind = "trace" if decisions is None else "route"
        result, found = self._ask_tensors(kind, model, data, tensors, "traces")
        traces = read_traces(result["traces"], len(requests))
        reply = Reply(config, result["tensors"], found, dtype=dtype)
        tokens = 0 if continuation is None else continuation.shape[1]
        return [
            {
                **reply.forward(b, trace),
                "decode_logits": reply.take(b, "decode_logits", tokens, config.vocab_size)
                if continuation is not None
                else torch.empty(0, config.vocab_size),
            }
            for b, trace in enumerate(traces)
        ]

    def session(
        self, model: Model, schedule: Schedule, operations: Sequence[Mapping[str, Any]]
    ) -> list[list[Answer] | Exception]:
        """See :class:`~reroute_conformance.protocol.Target`."""
        if not isinstance(model, tuple):
            raise RerouteError("model", "is a module", "a command runs canonical decoders only")
        told, tensors = operations_of(operations)
        data = {"schedule": schedule.to_dict(), "operations": told}
        result, found = self._ask_tensors("session", model, data, tensors, "steps")
        steps = result["steps"]
        if len(steps) != len(operations):
            raise MalformedError(f"{len(steps)} steps of {len(operations)} operations")
        return [
            self._step(operation, step, Reply(model[0], result["tensors"], found, f"steps.{index}."))
            for index, (operation, step) in enumerate(zip(operations, steps, strict=True))
        ]

    def _step(
        self, operation: Mapping[str, Any], step: Mapping[str, Any], reply: Reply
    ) -> list[Answer] | Exception:
        """What one operation showed, or why it was refused."""
        if "refused" in step:
            said = step["refused"]
            return RefusalError(*(short(said.get(name, "")) for name in ("field", "message", "remedy")))
        count = len(step["lengths"])
        if "inputs" in operation:
            traces = read_traces(step.get("traces", []), count)
            shown = [reply.forward(b, trace) for b, trace in enumerate(traces)]
        else:
            shown = [reply.held(b) for b in range(count)]
        if operation["op"] == "decode":
            shown = [
                {**entry, "logits": reply.take(b, "logits", 1, reply.config.vocab_size)}
                for b, entry in enumerate(shown)
            ]
        return [
            {**entry, "length": int(length)} for entry, length in zip(shown, step["lengths"], strict=True)
        ]

    def schedule(
        self, given: str | Mapping[str, Any], num_layers: int, attention_blocks: Sequence[int] | None = None
    ) -> Mapping[str, Any]:
        """See :class:`~reroute_conformance.protocol.Target`."""
        inputs: dict[str, Any] = {
            "preset" if isinstance(given, str) else "schedule": given,
            "num_layers": num_layers,
        }
        if attention_blocks is not None:
            inputs["attention_blocks"] = list(attention_blocks)
        schedule: Mapping[str, Any] = self._ask("preset", inputs, "schedule")["schedule"]
        return schedule

    def generate(self, model: nn.Module, inputs: Inputs, schedule: Schedule, max_new_tokens: int) -> Tensor:
        """Not part of the protocol."""
        raise RerouteError("generate", "is not part of the protocol", "leave the profile hf out")

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.stop(line_of({"type": "bye"}))
            self._process = None
        self._folder.cleanup()

    def _ask(
        self, kind: str, inputs: Inputs, *needed: str, dtype: str = "float32", **files: str
    ) -> dict[str, Any]:
        """The content of the ``result`` of one case.

        Raises:
            SkippedError, RefusalError: the target said so.
            UnansweredError: nothing answered the case; the next one then finds a fresh process.
            MalformedError: a result without what was asked for.
        """
        if self._process is None:
            self._introduced()
        self._seq += 1
        case = {"type": "case", "seq": self._seq, "kind": kind, "inputs": inputs, "dtype": dtype, **files}
        answer = self._exchange(case, "result", "skipped", "error")
        if answer["seq"] != self._seq:
            self._abandon()
            raise UnansweredError(f"the target answered case {answer['seq']!r}, asked was {self._seq}")
        if answer["type"] == "skipped":
            raise SkippedError(short(answer["reason"]))
        if answer["type"] == "error":
            said = (answer.get("field", ""), answer["message"], answer.get("remedy", ""))
            raise RefusalError(*(short(text) for text in said))
        missing = [name for name in needed if name not in answer["result"]]
        if missing:
            raise MalformedError(f"the result of a {kind} case has no {', '.join(missing)}")
        result: dict[str, Any] = answer["result"]
        return result

    def _ask_tensors(
        self,
        kind: str,
        model: tuple[CanonicalConfig, dict[str, Tensor]],
        inputs: Inputs,
        tensors: dict[str, Tensor],
        needed: str,
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """As :meth:`_ask`, of a decoder in its weights' dtype, with the tensors that go and those that come back."""
        config, weights = model
        dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
        if dtype not in self.dtypes:
            raise SkippedError(f"its capabilities do not name {dtype}")
        inputs = {**inputs, "decoder": {"config": config.to_dict(), "weights": "weights."}}
        tensors = tensors | {f"weights.{name}": weight.contiguous() for name, weight in weights.items()}
        given, output = (Path(self._folder.name) / f"case.{end}.safetensors" for end in ("in", "out"))
        save_file(tensors, given)
        try:
            files = {"tensors": str(given), "output": str(output)}
            result = self._ask(kind, inputs, needed, "tensors", dtype=dtype, **files)
            return result, read_tensors(output)
        finally:
            for path in (given, output):
                with suppress(OSError):
                    path.unlink()

    def _introduced(self) -> dict[str, Any]:
        """Start the process and hear what it is."""
        try:
            self._process = LineProcess(self._command)
        except (OSError, ValueError) as error:
            raise UnansweredError(f"the target cannot be started ({error})") from None
        hello = {"type": "hello", "protocol": 1, "spec_version": SPEC_VERSION}
        return self._exchange(hello, "capabilities")

    def _exchange(self, message: Mapping[str, Any], *expected: str) -> dict[str, Any]:
        assert self._process is not None
        try:
            return read_message(self._process.exchange(line_of(message), self._timeout), expected)
        except UnansweredError:
            self._abandon()
            raise

    def _abandon(self) -> None:
        """Give the process up: it may be anywhere in its own work."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def _refused(self, field: str, problem: str, remedy: str) -> RerouteError:
        self.close()
        return RerouteError(f"--cmd, {field} of {self.name}", problem, remedy)
