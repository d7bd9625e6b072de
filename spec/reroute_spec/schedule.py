"""A schedule: where a request decides, how many visual rows each decision keeps, and how rows are scored (RR-CFG)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from .budget import Keep, format_keep, parse_keep
from .errors import RerouteError, unknown
from .published import fitted_preset
from .release_config import is_release_config, schedule_data
from .schedule_file import SUFFIXES, read_schedule_file

Action = Literal["reroute", "delete"]
Pool = Literal["all", "survivors"]
Scope = Literal["request", "image"]
Positions = Literal["preserve", "renumber"]

_VOCABULARY: dict[str, list[str]] = {
    "action": ["reroute", "delete"],
    "pool": ["all", "survivors"],
    "scope": ["request", "image"],
    "positions": ["preserve", "renumber"],
    "score.source": ["own", "previous"],
    "score.query": ["last", "last_n"],
    "score.heads": ["mean", "max"],
}


def _check_name(field_name: str, value: object) -> None:
    if not isinstance(value, str) or value not in _VOCABULARY[field_name]:
        raise unknown(field_name, value, _VOCABULARY[field_name])


def _check_int(field_name: str, value: object, least: int) -> int:
    """An integer of data; JSON 1.0 reads as 1."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise RerouteError(
            field_name, f"{value!r} is not an integer >= {least}", f"give an integer >= {least}"
        )
    return value


def check_keys(
    path: str,
    data: object,
    known: Sequence[str],
    required: Sequence[str] | None = None,
    root: str = "schedule",
) -> Mapping[str, Any]:
    """Refuse what is no object of ``known`` fields, the ``required`` ones among them.

    Args:
        path: of the object in its document, for the error; empty where it is the whole document, called ``root``.
        data: to be looked at.
        known: names of its fields.
        required: those that may not be missing; None: all.
        root: see ``path``.

    Raises:
        RerouteError: naming the field.
    """
    where, required = path or root, known if required is None else required
    if not isinstance(data, Mapping):
        raise RerouteError(where, f"is a {type(data).__name__}", f"give an object with {', '.join(known)}")
    for key in data:
        if key not in known:  # RR-CFG-001
            raise unknown(f"{path}.{key}" if path else str(key), key, list(known))
    for key in required:
        if key not in data:
            raise RerouteError(
                f"{path}.{key}" if path else key, "is missing", f"{where} needs {', '.join(required)}"
            )
    return data


@dataclass(frozen=True)
class Decision:
    """One decision: at the input of block ``layer``, keep ``keep`` of the request's visual rows.

    Args:
        layer: block index, from 0.
        keep: a ratio as string or Fraction (``"0.2644"``, of the original N), or a row count as int.
    """

    layer: int
    keep: Keep

    def __init__(self, layer: int, keep: Keep | str) -> None:
        object.__setattr__(self, "layer", _check_int("decision.layer", layer, 0))
        object.__setattr__(self, "keep", parse_keep(keep, "decision.keep"))


@dataclass(frozen=True)
class ScoreRule:
    """How candidates are scored (semantics of RR-SCORE).

    Args:
        source: ``own``: the decision block's own projections on its input; ``previous``: the attention
            probabilities of the block before.
        query: ``last``: the last prompt row; ``last_n``: each of the last ``n`` rows, averaged.
        heads: ``mean`` or ``max`` over heads.
        n: rows of ``last_n``; 1 for ``last``.
    """

    source: Literal["own", "previous"] = "own"
    query: Literal["last", "last_n"] = "last"
    heads: Literal["mean", "max"] = "mean"
    n: int = 1

    def __post_init__(self) -> None:
        for name in ("source", "query", "heads"):
            _check_name(f"score.{name}", getattr(self, name))
        object.__setattr__(self, "n", _check_int("score.n", self.n, 1))
        if self.query == "last" and self.n != 1:
            raise RerouteError(
                "score.n", f"{self.n} rows with query 'last'", "use query 'last_n', or leave n out"
            )


@dataclass(frozen=True)
class Schedule:
    """What is decided where. Plain, immutable data; equal schedules decide equally.

    ``pool`` follows from the action unless given: ``all`` for ``reroute``, ``survivors`` for ``delete``.
    ``label`` says where a schedule comes from and takes no part in equality.

    Raises:
        RerouteError: whatever RR-CFG refuses, naming the field.
    """

    action: Action
    decisions: tuple[Decision, ...]
    score: ScoreRule = ScoreRule()
    pool: Pool = None  # type: ignore[assignment]  # filled in from the action
    scope: Scope = "request"
    positions: Positions = "preserve"
    min_keep: int = 1
    label: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        _check_name("action", self.action)
        if self.pool is None:
            object.__setattr__(self, "pool", "survivors" if self.action == "delete" else "all")
        for name in ("pool", "scope", "positions"):
            _check_name(name, getattr(self, name))
        if not isinstance(self.score, ScoreRule):
            raise RerouteError("score", f"is a {type(self.score).__name__}", "give a ScoreRule")
        if not isinstance(self.label, str):
            raise RerouteError("label", f"is a {type(self.label).__name__}", "give a string")
        if isinstance(self.decisions, str) or not isinstance(self.decisions, Sequence):
            raise RerouteError(
                "decisions", f"is a {type(self.decisions).__name__}", "give a sequence of Decision"
            )
        for index, decision in enumerate(self.decisions):
            if not isinstance(decision, Decision):
                raise RerouteError(
                    f"decisions[{index}]", f"is a {type(decision).__name__}", "give a Decision"
                )
        object.__setattr__(self, "decisions", tuple(self.decisions))
        object.__setattr__(self, "min_keep", _check_int("min_keep", self.min_keep, 1))
        self._check_decisions()
        self._check_combinations()

    def _check_decisions(self) -> None:
        for index in range(1, len(self.decisions)):
            before, here = self.decisions[index - 1], self.decisions[index]
            if here.layer <= before.layer:  # RR-CFG-002
                raise RerouteError(
                    f"decisions[{index}].layer",
                    f"{here.layer} after {before.layer}",
                    "layers strictly increase from decision to decision",
                )
            if isinstance(here.keep, int) != isinstance(before.keep, int):  # RR-CFG-004
                raise RerouteError(
                    f"decisions[{index}].keep",
                    f"{format_keep(here.keep)!r} after {format_keep(before.keep)!r} mixes ratios and row counts",
                    "give every keep as a ratio (string) or every keep as a row count (integer)",
                )
            if self.action == "delete" and here.keep > before.keep:  # RR-CFG-006
                raise RerouteError(
                    f"decisions[{index}].keep",
                    f"{format_keep(here.keep)!r} grows from {format_keep(before.keep)!r} under action 'delete'",
                    "removed rows cannot come back: keeps never grow, or use action 'reroute'",
                )

    def _check_combinations(self) -> None:
        if self.action == "delete" and self.pool == "all":
            raise RerouteError(
                "pool",
                "'all' with action 'delete'",
                "use 'survivors' (or leave pool out): removed rows are gone",
            )
        if self.positions == "renumber" and self.action != "delete":  # RR-CFG-007
            raise RerouteError(
                "positions",
                "'renumber' with action 'reroute'",
                "use 'preserve': only 'delete' can renumber rows",
            )
        if self.score.source == "previous":
            if self.decisions and self.decisions[0].layer == 0:
                raise RerouteError(
                    "score.source",
                    "'previous' with a decision at block 0",
                    "decide from block 1 on, or use 'own'",
                )
            if self.pool == "all" and len(self.decisions) > 1:
                raise RerouteError(
                    "score.source",
                    "'previous' with pool 'all' and more than one decision: deferred rows did not run in the block before",
                    "use 'own', or pool 'survivors'",
                )

    def dense_layers(self, num_layers: int) -> int:
        """Blocks before the first decision: they run every row of every request. All where nothing is decided."""
        return self.decisions[0].layer if self.decisions else num_layers

    def validate(self, num_layers: int, attention_layers: Collection[int] | None = None) -> Schedule:
        """Check the schedule against a decoder and return it (RR-CFG-003).

        Args:
            num_layers: its blocks.
            attention_layers: the blocks with plain q/k attention, which alone can hold a decision; all unless given.

        Raises:
            RerouteError: a decision layer at or beyond ``num_layers``, or at a block without plain attention.
        """
        _check_int("num_layers", num_layers, 1)
        for index, decision in enumerate(self.decisions):
            if decision.layer >= num_layers:  # RR-CFG-003
                raise RerouteError(
                    f"decisions[{index}].layer",
                    f"{decision.layer} in a decoder of {num_layers} blocks",
                    f"give a block from 0 to {num_layers - 1}",
                )
            read = (
                (decision.layer - 1, decision.layer) if self.score.source == "previous" else (decision.layer,)
            )
            for layer in read:
                if attention_layers is not None and layer not in attention_layers:  # RR-SCORE-006
                    what = "is" if layer == decision.layer else f"scores by block {layer}, which is"
                    raise RerouteError(
                        f"decisions[{index}].layer",
                        f"{decision.layer} {what} a block without plain attention",
                        f"decide at one of {', '.join(map(str, sorted(attention_layers)))}",
                    )
        return self

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Schedule:
        """A schedule from plain data (the JSON form). Unknown keys are refused."""
        known = [f.name for f in fields(cls)]
        data = check_keys("", data, known, required=("action", "decisions"))
        if isinstance(data["decisions"], (str, Mapping)) or not isinstance(data["decisions"], Sequence):
            raise RerouteError(
                "decisions",
                f"is a {type(data['decisions']).__name__}",
                "give a list of objects with layer and keep",
            )
        decisions = []
        for index, entry in enumerate(data["decisions"]):
            path = f"decisions[{index}]"
            entry = check_keys(path, entry, ["layer", "keep"])
            layer = _check_int(f"{path}.layer", entry["layer"], 0)
            decisions.append(Decision(layer, parse_keep(entry["keep"], f"{path}.keep")))
        rest = {key: value for key, value in data.items() if key not in ("decisions", "score")}
        if rest.get("pool", "") is None:
            raise unknown("pool", None, _VOCABULARY["pool"])
        if "score" in data:
            rest["score"] = ScoreRule(
                **check_keys("score", data["score"], [f.name for f in fields(ScoreRule)], required=())
            )
        return cls(decisions=tuple(decisions), **rest)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that ``from_dict`` reads back to an equal schedule; every field is written."""
        data: dict[str, Any] = {  # RR-CFG-014
            "action": self.action,
            "decisions": [{"layer": d.layer, "keep": format_keep(d.keep)} for d in self.decisions],
            "score": {f.name: getattr(self.score, f.name) for f in fields(ScoreRule)},
            "pool": self.pool,
            "scope": self.scope,
            "positions": self.positions,
            "min_keep": self.min_keep,
        }
        if self.label:
            data["label"] = self.label
        return data

    @classmethod
    def load(
        cls,
        preset_or_path: str | Path,
        num_layers: int = 32,
        attention_layers: Collection[int] | None = None,
    ) -> Schedule:
        """A preset by name, fitted to a decoder, or a schedule from a file, checked against the decoder.

        Args:
            preset_or_path: a name of :func:`reroute_spec.presets`, or a path ending in ``.json``, ``.yaml`` or ``.yml``.
                YAML may also be a configuration of the paper's public release.
            num_layers: blocks of the decoder. Presets follow it, explicit schedules are only checked.
            attention_layers: its blocks with plain attention, where not all have it. Likewise.
        """
        if not isinstance(preset_or_path, (str, Path)):
            problem = f"is a {type(preset_or_path).__name__}"
            raise RerouteError(
                "schedule",
                problem,
                "give a Schedule, the name of a preset or the path of a .json or .yaml file",
            )
        path = Path(preset_or_path)
        if path.suffix.lower() in SUFFIXES:
            return cls.from_file(path).validate(num_layers, attention_layers)
        if path.is_file():
            raise RerouteError(
                "schedule", f"{path} does not end in {', '.join(SUFFIXES)}", "give a JSON or YAML file"
            )
        return cls.from_dict(fitted_preset(str(preset_or_path), num_layers, attention_layers))

    @classmethod
    def from_file(cls, path: Path) -> Schedule:
        """A schedule from a JSON or YAML file; a key given twice is refused."""
        data = read_schedule_file(path)
        if is_release_config(data) and path.suffix.lower() != ".json":
            label = f"{path.stem}, configuration of the public release"
            return cls.from_dict({**schedule_data(data), "label": label})
        return cls.from_dict(data)
