"""Writes and reads what passes between the suite and a command: JSON messages, requests, traces and tensors.

Every form that the protocol does not have is an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import torch
from referencing import Registry, Resource
from reroute_spec import RerouteError, RoutingTrace
from reroute_spec.canonical import CanonicalConfig
from reroute_spec.schemas import schema
from safetensors.torch import load
from torch import Tensor

from .answers import MalformedError, UnansweredError
from .process import plain

_LARGEST_FILE = 2**30  # bytes of tensors that are read of one answer


def line_of(message: Mapping[str, Any]) -> bytes:
    """A message as a line."""
    return json.dumps(message, allow_nan=False).encode() + b"\n"


def short(text: str) -> str:
    """A target's words, such that any terminal and any file takes them."""
    return plain(text[:2000])


@cache
def validator(kind: str) -> jsonschema.Draft202012Validator:
    """The schema of the messages of one type, so that an error is about their fields."""
    registry: Registry[Any] = Registry().with_resources(
        (content["$id"], Resource.from_contents(content))
        for content in map(schema, ("protocol", "vector", "trace"))
    )
    place = [entry["title"] for entry in schema("protocol")["oneOf"]].index(kind)
    return jsonschema.Draft202012Validator(
        {"$ref": f"urn:vlm-reroute:protocol:1#/oneOf/{place}"}, registry=registry
    )


def read_message(line: bytes, expected: Sequence[str]) -> dict[str, Any]:
    """A message of one of the types ``expected``.

    Raises:
        UnansweredError: anything else.
    """

    def constant(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    shown = plain(line[:80].decode("utf-8", "backslashreplace"))
    try:
        message = json.loads(line.decode("utf-8"), parse_constant=constant)
        kind = message.get("type") if isinstance(message, dict) else None
        if not isinstance(kind, str) or kind not in expected:
            raise UnansweredError(f"the target said {shown!r}, expected a message {' or '.join(expected)}")
        problem = next(validator(kind).iter_errors(message), None)
    except (ValueError, RecursionError) as error:
        raise UnansweredError(f"the target said {shown!r}, which is no JSON in UTF-8 ({error})") from None
    if problem is not None:
        raise UnansweredError(f"{kind} of the target, {problem.json_path}: {short(problem.message[:300])}")
    return message  # type: ignore[no-any-return]  # a dict: it has a type


def requests_of(
    inputs: Mapping[str, Any],
    decisions: Sequence[Sequence[Sequence[int]]] | None,
    continuation: Tensor | None,
    prefix: str = "",
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """A batch as the requests of a vector, and its tensors, whose names begin with ``prefix``.

    Padding goes as it is: the target has to leave it alone.
    """
    embeddings = inputs["inputs_embeds"]
    batch, length = embeddings.shape[:2]
    mask = inputs.get("attention_mask")
    requests, tensors = [], {}
    for b in range(batch):
        rows = torch.arange(length) if mask is None else mask[b].nonzero()[:, 0]
        first, last = int(rows[0]), int(rows[-1])
        if last - first + 1 != len(rows):
            raise RerouteError("attention_mask", f"request {b} has gaps", "pad on the left or on the right")
        key = f"{prefix}requests.{b}.embeddings"
        tensors[key] = embeddings[b].contiguous()
        request: dict[str, Any] = {
            "embeddings": {"tensor": key},
            "visual": inputs["visual_mask"][b, rows].tolist(),
            "pad_left": first,
            "pad_right": length - 1 - last,
        }
        if inputs.get("images") is not None:
            request["images"] = list(inputs["images"][b])
        if inputs.get("position_ids") is not None:
            key = f"{prefix}requests.{b}.positions"
            tensors[key] = inputs["position_ids"][..., b, :][..., rows].to(torch.int64).contiguous()
            request["positions"] = {"tensor": key}
        if decisions is not None:
            request["decisions"] = [list(rows_) for rows_ in decisions[b]]
        if continuation is not None:
            request["continuation"] = continuation[b].tolist()
        requests.append(request)
    return requests, tensors


def operations_of(
    operations: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """The operations of a session as those of a vector, and their tensors."""
    told, tensors = [], dict[str, Tensor]()
    for index, operation in enumerate(operations):
        if "inputs" in operation:
            requests, own = requests_of(operation["inputs"], None, None, f"operations.{index}.")
            told.append({"op": operation["op"], "requests": requests})
            tensors |= own
        elif "tokens" in operation:
            told.append({"op": operation["op"], "tokens": operation["tokens"].tolist()})
        else:
            told.append({name: list(x) if isinstance(x, tuple) else x for name, x in operation.items()})
    return told, tensors


def read_traces(data: Sequence[Any], count: int) -> list[RoutingTrace]:
    """Traces whose form the schema has checked; integral numbers become integers, scores floats."""
    if len(data) != count:
        raise MalformedError(f"{len(data)} traces of {count} requests")

    def read(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: read(entry, name) for name, entry in value.items()}
        if isinstance(value, list):
            return [read(entry, key) for entry in value]
        if isinstance(value, (int, float)):
            return float(value) if key in ("scores", "margin") else int(value)
        return value

    try:
        return [RoutingTrace.from_dict(read(trace)) for trace in data]
    except (OverflowError, ValueError) as error:
        raise MalformedError(f"a trace holds a number that no float holds ({error})") from None


@dataclass(frozen=True)
class Reply:
    """The tensors of a command's answer.

    The axes that the decoder fixes are checked here. How many rows a tensor has is for the rules to judge.

    Attributes:
        config: the decoder's configuration.
        names: the key in the file for the name of every quantity.
        found: the tensors of the file by key.
        prefix: the beginning of the names of quantities.
        dtype: the dtype of the case, which every tensor must have.
    """

    config: CanonicalConfig
    names: Mapping[str, str]
    found: Mapping[str, Tensor]
    prefix: str = ""
    dtype: torch.dtype = torch.float32

    def take(self, b: int, quantity: str, *axes: int | None) -> Tensor:
        """A quantity of request ``b``; None stands for an axis of rows."""
        name = f"{self.prefix}requests.{b}.{quantity}"
        tensor = self.found.get(self.names.get(name, ""))
        if tensor is None:
            raise MalformedError(f"{name} is missing")
        if tensor.dtype != self.dtype:
            expected = str(self.dtype).removeprefix("torch.")
            raise MalformedError(f"{name} is {tensor.dtype}, expected {expected}")
        right = tensor.ndim == len(axes)
        if not right or any(size not in (None, have) for size, have in zip(axes, tensor.shape, strict=True)):
            wanted = ", ".join("rows" if size is None else str(size) for size in axes)
            raise MalformedError(f"{name} is {list(tensor.shape)}, expected [{wanted}]")
        if tensor.isnan().any():
            raise MalformedError(f"{name} holds NaN")
        return tensor

    def forward(self, b: int, trace: RoutingTrace) -> dict[str, Any]:
        """What a request's prefill or turn gave."""
        shape = self.config.shape
        ends = [record.layer for record in trace.decisions] + [shape.num_layers]
        return {
            "trace": trace,
            "residuals": {
                layer: self.take(b, f"residuals.{layer}", None, shape.hidden_size) for layer in ends
            },
            "logits": self.take(b, "logits", None, self.config.vocab_size),
            **self.held(b),
        }

    def held(self, b: int) -> dict[str, Any]:
        """What the blocks have cached of a request."""
        shape = self.config.shape
        return {
            name: [
                self.take(b, f"{name}.{layer}", shape.num_key_value_heads, None, shape.head_dim)
                for layer in range(shape.num_layers)
            ]
            for name in ("keys", "values")
        }


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file that the target wrote, copied: the file may change under a mapping."""
    if path.is_symlink() or not path.is_file():
        raise MalformedError("the target wrote no file of tensors")
    if path.stat().st_size > _LARGEST_FILE:
        raise MalformedError(f"the target wrote more than {_LARGEST_FILE} bytes of tensors")
    try:
        tensors: dict[str, Tensor] = load(path.read_bytes())
        return tensors
    except Exception as error:
        raise MalformedError(f"the target's tensors cannot be read ({error})") from None
