"""Saves failing cases as vectors that anybody can read, and reads them back as cases of the suite.

Where a vector can express the case, the file has its inputs and, but for a session, what the reference makes of them.
The suite's own form of the case is always there, so that ``vlm-reroute replay`` judges it by the same check.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from reroute_spec import SPEC_VERSION, RerouteError
from reroute_spec.canonical import CanonicalConfig

from ..cases.case import Case, ConfigCase, RoutedCase, SelectCase, load_case
from ..cases.decoder import DecoderCase, GivenCase
from ..cases.mrope import MropeCase
from ..cases.sessions import SessionCase
from ..checks import Check, checks
from ..targets.messages import operations_of, requests_of
from ..vectors.case import VectorCase, forget_vectors
from ..vectors.files import CASE_FILE, TENSOR_FILE, Vector, read_vector, tensor_bytes, write_vector
from ..vectors.judge import judge_vector
from ..vectors.making.decoders import config_data
from ..vectors.making.expected import with_expected


def folder_name(check: Check, case: Case) -> str:
    """Where a failing case is saved: the same for the same case."""
    return f"{check.name}-{case.digest()}"


def is_saved(path: Path) -> bool:
    """Whether a folder is one that :func:`save_case` wrote, and has nothing else in it."""
    names = {"-".join(path.name.split("-")[:-1])} & {check.name for check in checks()}
    inside = {entry.name for entry in path.iterdir()} if path.is_dir() else set[str]()
    return bool(names) and CASE_FILE in inside and inside <= {CASE_FILE, TENSOR_FILE}


def save_case(check: Check, rule: str, case: Case, folder: Path) -> Path:
    """Write a case that broke a rule and return its folder.

    What a vector can say is said: inputs, and what the reference makes of them. In any case the suite's own data is
    there, so that ``replay`` judges the case by the same check.
    """
    vector = _as_vector(check, rule, case)
    suite: dict[str, Any] = {"check": check.name, "rule": rule, "case": case.to_dict()}
    if vector.tensors:
        suite["tensors"] = sha256(tensor_bytes(vector.tensors)).hexdigest()
    path = folder / folder_name(check, case)
    write_vector(replace(vector, data={**vector.data, "suite": suite}), path)
    return path


def read_case(path: Path) -> tuple[Check, Case]:
    """The check and the case of a folder, or of its ``case.json``: one that was saved, or any vector.

    Raises:
        RerouteError: no such case, a damaged one, or one of another version of the suite.
    """
    folder = path.parent if path.name == CASE_FILE else path
    vector = read_vector(folder.absolute())
    suite = vector.data.get("suite")
    forget_vectors()
    if suite is None:
        case = VectorCase.of(str(folder.absolute()))
        rules = tuple(vector.data["rules"])
        return Check("vector", vector.data["kind"], "core", rules, (case,), 1, judge_vector), case
    check = next((check for check in checks() if check.name == suite["check"]), None)
    if check is None:
        raise _unusable(path, f"there is no check {suite['check']!r}")
    try:
        saved = load_case(suite["case"])
    except RerouteError:
        raise
    except Exception as error:  # a case of another form, whatever it is
        raise _unusable(path, repr(error)) from None
    if folder_name(check, saved) != vector.data["id"]:
        raise _unusable(path, f"it holds another case than its id {vector.data['id']!r} says")
    return check, saved


def _unusable(path: Path, problem: str) -> RerouteError:
    return RerouteError(
        "CASE", f"{path} is no saved case ({problem})", "give a folder that conform wrote, or a vector"
    )


def _as_vector(check: Check, rule: str, case: Case) -> Vector:
    about: dict[str, Any] = {
        "id": folder_name(check, case),
        "kind": check.kind,
        "rules": [rule],
        "spec_version": SPEC_VERSION,
        "oracle": "reference",
    }
    if isinstance(case, VectorCase):
        return _copy(case.vector, about)
    say: dict[type[Case], Callable[[Any], tuple[str, dict[str, Any], dict[str, torch.Tensor]]]] = {
        SelectCase: _select,
        ConfigCase: _config,
        DecoderCase: _routed,
        GivenCase: _routed,
        MropeCase: _routed,
    }
    if isinstance(case, SessionCase) and isinstance(model := case.model(), tuple):
        return _session(case, model, about)
    if type(case) not in say:
        return Vector(about)
    kind, inputs, tensors = say[type(case)](case)
    return with_expected(Vector({**about, "kind": kind, "inputs": inputs}, tensors), mode=nullcontext())


def _copy(vector: Vector, about: dict[str, Any]) -> Vector:
    """A vector of v1 under another id, what it shares with others in its own file."""
    inputs, tensors = vector.data["inputs"], dict(vector.tensors)
    if "decoder" in inputs:
        tensors |= {f"weights.{name}": weight for name, weight in vector.weights().items()}
        requests = [dict(request) for request in inputs["requests"]]
        for b, request in enumerate(requests):
            for name in ("embeddings", "positions"):
                if name in request:
                    tensors[f"requests.{b}.{name}"] = vector.tensor(request[name]["tensor"])
                    request[name] = {"tensor": f"requests.{b}.{name}"}
        decoder = {**inputs["decoder"], "weights": "weights."}
        inputs = {**inputs, "decoder": decoder, "requests": requests}
    note = {"note": vector.data["note"]} if "note" in vector.data else {}
    kept = {"kind": vector.data["kind"], "oracle": vector.data["oracle"], **note}
    return Vector({**about, **kept, "inputs": inputs, "expected": vector.data["expected"]}, tensors)


def _session(
    case: SessionCase, model: tuple[CanonicalConfig, dict[str, torch.Tensor]], about: dict[str, Any]
) -> Vector:
    """A vector with the operations that a session gives to a target.

    It holds no expected values, because the reference computes them operation by operation.
    """
    told, tensors = operations_of([case.step(index) for index in range(len(case.operations))])
    inputs = {
        "schedule": case.schedule().to_dict(),
        "decoder": {"config": config_data(model[0]), "weights": "weights."},
        "operations": told,
    }
    tensors |= {f"weights.{name}": weight for name, weight in model[1].items()}
    return Vector({**about, "inputs": inputs}, tensors)


def _select(case: SelectCase) -> tuple[str, dict[str, Any], dict[str, torch.Tensor]]:
    return "select", {"scores": {"float32_bits": case.bits}, "k": case.k}, {}


def _config(case: ConfigCase) -> tuple[str, dict[str, Any], dict[str, torch.Tensor]]:
    inputs = {
        "schedule": case.schedule,
        "num_layers": case.num_layers,
        "visual": case.visual(),
        "images": case.images,
    }
    return "config", inputs, {}


def _routed(case: RoutedCase) -> tuple[str, dict[str, Any], dict[str, torch.Tensor]]:
    config, weights = case.model()  # type: ignore[misc]  # a canonical decoder
    requests, tensors = requests_of(case.inputs(), case.decisions, case.continuation())
    tensors |= {f"weights.{name}": weight for name, weight in weights.items()}
    inputs = {
        "schedule": case.schedule,
        "decoder": {"config": config_data(config), "weights": "weights."},
        "requests": requests,
    }
    return "trace" if case.decisions is None else "route", inputs, tensors
