"""The YAML configurations of the paper's public release (elmma/mllm-reroute), read as schedules.

An experiment file of the release holds ``routing`` beside ``defaults`` and ``eval``, which say what to evaluate and are not
read here. Three methods occur:

====== =========================================== ==========================================================
method keys                                        read as
====== =========================================== ==========================================================
fastv  ``scoring_layer``, ``keep_ratio``           one decision
pdrop  ``drop_layers``, ``keep_ratios``            one decision per layer; ``monotonic`` (true unless given)
none   ``keep_ratio`` 1.0                          no decisions
====== =========================================== ==========================================================

``action`` ``physical_delete`` is ``delete``; ``compact_route`` and ``compact_route_stagewise``, which differ in speed alone, are
``reroute``. A monotonic reroute admits survivors only (``pool = survivors``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import RerouteError, unknown

_ACTIONS = {"physical_delete": "delete", "compact_route": "reroute", "compact_route_stagewise": "reroute"}
_KEYS = {
    "fastv": (("method", "action", "scoring_layer", "keep_ratio"), ()),
    "pdrop": (("method", "action", "drop_layers", "keep_ratios"), ("monotonic",)),
    "none": (("method", "action"), ("keep_ratio",)),
}


def is_release_config(data: object) -> bool:
    """Whether the data is of the release's form: it has ``routing``, which no schedule has."""
    return isinstance(data, Mapping) and "routing" in data


def schedule_data(config: Mapping[str, Any]) -> dict[str, Any]:
    """A release configuration as a schedule's plain data, for ``Schedule.from_dict``.

    Args:
        config: the parsed file, ratios as text. An integer ratio (``1``) is the ratio, as in the release.

    Raises:
        RerouteError: an unknown or missing key, or values of a wrong type, by their path in the file. What the schedule
            then refuses (a ratio above 1, layers out of order) is named by the schedule's field.
    """
    for key in config:
        if key not in ("defaults", "routing", "eval"):
            raise unknown(str(key), key, ["defaults", "routing", "eval"])
    routing = config["routing"]
    if not isinstance(routing, Mapping):
        raise RerouteError(
            "routing", f"is a {type(routing).__name__}", "give a mapping with method and action"
        )
    method = routing.get("method")
    if not isinstance(method, str) or method not in _KEYS:
        raise unknown("routing.method", method, [*_KEYS])
    required, optional = _KEYS[method]
    for key in routing:
        if key not in (*required, *optional):
            raise unknown(f"routing.{key}", key, [*required, *optional])
    for key in required:
        if key not in routing:
            raise RerouteError(f"routing.{key}", "is missing", f"method {method} needs {', '.join(required)}")
    if method == "none":
        return _unrouted(routing)
    action = routing["action"]
    if not isinstance(action, str) or action not in _ACTIONS:
        raise unknown("routing.action", action, [*_ACTIONS])
    data: dict[str, Any] = {"action": _ACTIONS[action], "decisions": _decisions(method, routing)}
    if method == "pdrop":
        monotonic = routing.get("monotonic", True)
        if not isinstance(monotonic, bool):
            raise RerouteError("routing.monotonic", f"is {monotonic!r}", "write true or false")
        if not monotonic and data["action"] == "delete":
            raise RerouteError(
                "routing.monotonic", "is false with physical_delete", "removed rows cannot come back"
            )
        if monotonic:
            data["pool"] = "survivors"
    return data


def _unrouted(routing: Mapping[str, Any]) -> dict[str, Any]:
    if routing["action"] != "none":
        raise unknown("routing.action", routing["action"], ["none"])
    if str(routing.get("keep_ratio", 1)) not in ("1", "1.0"):
        raise RerouteError(
            "routing.keep_ratio", f"is {routing['keep_ratio']!r}", "method none keeps all: 1.0"
        )
    return {"action": "reroute", "decisions": []}


def _decisions(method: str, routing: Mapping[str, Any]) -> list[dict[str, Any]]:
    if method == "fastv":
        layers, keeps = [routing["scoring_layer"]], [routing["keep_ratio"]]
        names = ["routing.scoring_layer"], ["routing.keep_ratio"]
    else:
        for key in ("drop_layers", "keep_ratios"):
            if not isinstance(routing[key], list):
                raise RerouteError(f"routing.{key}", f"is a {type(routing[key]).__name__}", "give a list")
        layers, keeps = routing["drop_layers"], routing["keep_ratios"]
        if len(layers) != len(keeps):
            raise RerouteError(
                "routing.keep_ratios",
                f"has {len(keeps)} entries",
                f"give one for each of {len(layers)} layers",
            )
        names = (
            [f"routing.drop_layers[{index}]" for index in range(len(layers))],
            [f"routing.keep_ratios[{index}]" for index in range(len(keeps))],
        )
    for name, layer in zip(names[0], layers, strict=True):
        if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0:
            raise RerouteError(name, f"{layer!r} is no block", "give an integer >= 0")
    for name, keep in zip(names[1], keeps, strict=True):
        if isinstance(keep, bool) or not isinstance(keep, (str, int)):
            raise RerouteError(name, f"{keep!r} is no ratio", "give a decimal in (0, 1]")
    return [{"layer": layer, "keep": str(keep)} for layer, keep in zip(layers, keeps, strict=True)]
