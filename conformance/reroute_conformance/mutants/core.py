"""Lists the mutants of schedules, selection, budgets, rows, scores, blocks and caches.

The checks that find them run the canonical decoder and the tiny LLaVA.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from . import faulty_functions as f
from . import faulty_targets as t
from .mutant import Mutant, answering, asking


def _selection(name: str, rule: str, key: Any) -> Mutant:
    return Mutant(name, rule, "select", f.selecting(f.refusing_nan(f.order_by(key))))


def _routing(name: str, rule: str, check: str, **functions: Any) -> Mutant:
    return Mutant(
        name, rule, check, {f"reroute_reference.routing.{at}": put for at, put in functions.items()}
    )


def _budget(name: str, rule: str, check: str, rows: Any) -> Mutant:
    return Mutant(name, rule, check, {"reroute_spec.plan.budget": f.wrong_budget(rows)})


def _network(name: str, rule: str, patches: dict[str, Any]) -> Mutant:
    return Mutant(
        name, rule, "budgets", {f"reroute_reference.decoder.{at}": put for at, put in patches.items()}
    )


def _decode(name: str, rule: str, extend: Any) -> Mutant:
    return Mutant(name, rule, "trace-cache", {"reroute_reference.model.extend": extend})


def _no_rope(given: dict[str, Any], name: str, value: float) -> Any:
    return torch.full_like(given[name], value)


def _mends(name: str, rule: str, change: Any) -> Mutant:
    return answering(name, rule, "config", t.of_other_data(change))


CORE_MUTANTS = (
    _mends("unknown-field-ignored", "RR-CFG-001", lambda data: data.pop("budget", None)),
    _mends(
        "layers-sorted",
        "RR-CFG-002",
        t.layers_sorted,
    ),
    _mends("layer-from-the-end", "RR-CFG-003", t.each_decision(t.layer_from_the_end)),
    _mends("ratio-capped", "RR-CFG-004", t.each_decision(t.ratio_capped)),
    _mends("float-read-as-decimal", "RR-CFG-005", t.each_decision(t.float_read)),
    _mends("pool-of-delete-ignored", "RR-CFG-006", t.pool_of_delete),
    _mends("renumber-of-reroute-ignored", "RR-CFG-007", t.positions_preserved),
    answering("refuses-without-a-field", "RR-CFG-008", "config", t.RefusesWithoutAField),
    asking("decides-without-decisions", "RR-CFG-009", "budgets", t.decides_anyway),
    answering("empty-decisions-recorded", "RR-BUD-002", "trace", t.of_other_answers(t.empty_decisions)),
    _selection("higher-ordinal-wins-ties", "RR-SEL-003", lambda s, i: (-s, -i)),
    _selection("lowest-scores", "RR-SEL-001", lambda s, i: (s, i)),
    _selection("negative-zero-below-zero", "RR-SEL-002", lambda s, i: (-s, math.copysign(1, s) < 0, i)),
    Mutant("best-first", "RR-SEL-004", "select", f.selecting(f.refusing_nan(f.best_first))),
    Mutant(
        "nan-accepted",
        "RR-SEL-005",
        "select-nan",
        f.selecting(f.order_by(lambda s, i: (math.inf if math.isnan(s) else -s, i))),
    ),
    Mutant(
        "higher-ordinal-wins-ties-in-a-run",
        "RR-SEL-003",
        "trace-ties",
        {"reroute_spec.trace.select": f.refusing_nan(f.order_by(lambda s, i: (-s, -i)))},
    ),
    answering("would-select-is-what-ran", "RR-NUM-003", "route", t.of_other_answers(t.would_select_what_ran)),
    answering(
        "scores-that-depend-on-what-was-drawn", "RR-NUM-004", "repeat", t.of_other_answers(t.noisy_values)
    ),
    answering("field-that-is-none", "RR-ERR-001", "config", t.NamesAnotherField),
    _budget("k-rounded-instead-of-floored", "RR-BUD-001", "budgets", lambda keep, n, pool: round(keep * n)),
    _budget("budget-in-binary-floats", "RR-BUD-001", "budgets", lambda keep, n, pool: int(float(keep) * n)),
    _budget("keep-all", "RR-BUD-001", "budgets", lambda keep, n, pool: n),
    _budget(
        "ratio-of-survivors-instead-of-the-original-n",
        "RR-BUD-004",
        "trace-delete",
        lambda keep, n, pool: math.floor(keep * pool),
    ),
    asking("spans-ignored", "RR-BUD-003", "llava", lambda schedule: replace(schedule, scope="request")),
    _routing("last-row-routable", "RR-POOL-001", "llava", plan=f.last_row_routable),
    _routing("first-image-only", "RR-POOL-002", "llava", plan=f.first_image_only),
    asking(
        "remove-instead-of-defer",
        "RR-POOL-003",
        "trace",
        lambda schedule: replace(schedule, pool="survivors"),
    ),
    asking(
        "removed-rows-come-back",
        "RR-POOL-004",
        "trace-delete",
        lambda schedule: replace(schedule, action="reroute", pool="all"),
    ),
    _routing("everything-re-enters", "RR-POOL-005", "trace", record=f.everything_reenters),
    Mutant("margin-not-relative", "RR-POOL-006", "trace", {"reroute_spec.trace.margin": f.absolute_margin}),
    _routing(
        "score-without-rope",
        "RR-SCORE-001",
        "trace",
        score=f.score_with(cos=lambda g: _no_rope(g, "cos", 1.0), sin=lambda g: _no_rope(g, "sin", 0.0)),
    ),
    _routing(
        "score-from-the-wrong-block",
        "RR-SCORE-001",
        "budgets",
        score=f.score_with(layer=lambda given: max(given["layer"] - 1, 0)),
    ),
    _routing(
        "softmax-over-visual-rows-only", "RR-SCORE-002", "trace", score=f.score_with(alive=f.visual_and_last)
    ),
    _routing("scores-in-half-precision", "RR-SCORE-003", "trace", attention_scores=f.in_half_precision),
    _routing("largest-head", "RR-SCORE-004", "trace", attention_scores=f.largest_head),
    _routing("stale-scores-from-an-earlier-decision", "RR-SCORE-008", "trace-again", score=f.stale_scores()),
    _routing(
        "row-before-the-last-asks",
        "RR-SCORE-009",
        "trace",
        score=f.score_with(alive=lambda given: given["alive"][:-1]),
    ),
    _routing(
        "deferred-rows-run-through-the-mlp", "RR-BLOCK-001", "route", routed_block=f.deferred_through_mlp
    ),
    _routing("rope-renumbered-after-compaction", "RR-BLOCK-002", "route", routed_block=f.renumbered),
    _routing("attention-in-two-windows", "RR-BLOCK-003", "route", routed_block=f.in_two_windows),
    _network(
        "final-norm-without-weight", "RR-BLOCK-004", {"CanonicalDecoder.final_norm": f.norm_without_weight}
    ),
    _network("rope-of-neighbouring-channels", "RR-BLOCK-005", {"apply_rotary": f.neighbours_paired}),
    _network("gelu-for-silu", "RR-BLOCK-006", {"F.silu": torch.nn.functional.gelu}),
    asking(
        "bypass-instead-of-delete",
        "RR-BLOCK-007",
        "budgets",
        lambda schedule: replace(schedule, action="reroute"),
    ),
    answering("output-of-survivors-only", "RR-BLOCK-008", "trace", t.of_other_answers(t.survivors_only)),
    _routing("kv-rows-for-the-full-length", "RR-KV-001", "route", routed_block=f.all_rows_cached),
    answering("kv-missing-a-row", "RR-KV-001", "route", t.of_other_answers(t.without_last_key)),
    _decode("decoded-rows-forgotten", "RR-KV-002", f.decoded_rows_forgotten),
    _decode("decode-position-from-the-cache-length", "RR-KV-004", f.decode_at_cache_length),
    answering("state-leak-to-the-next-request", "RR-KV-006", "llava", t.Leaking),
    answering("write-back-misplaced", "RR-EQV-001", "example", t.of_other_answers(t.misplaced_write_back)),
    _routing("delete-renumbers", "RR-EQV-003", "one-decision", routed_block=f.renumbered),
    answering("row-0s-decision-for-the-whole-batch", "RR-EQV-004", "trace-batch", t.FirstRowDecides),
    answering("padding-counts-as-rows", "RR-EQV-005", "trace-batch", t.PaddingCounts),
    asking(
        "monotone-reroute-by-removal",
        "RR-EQV-006",
        "counterexample",
        lambda schedule: replace(schedule, action="delete", pool="survivors"),
    ),
    answering("given-decisions-ignored", "RR-NUM-003", "route", t.IgnoresReplay),
    answering("bits-that-depend-on-what-was-drawn", "RR-NUM-004", "repeat", t.of_other_answers(t.noisy)),
    answering("raises-on-one-candidate", "RR-ERR-003", "budgets", t.RaisesOnOneVisualRow),
    answering(
        "shortcut-where-all-is-kept", "RR-EQV-002", "keep-all", t.of_other_answers(t.shortcut_where_all_run)
    ),
    answering("outputs-in-float16", "RR-NUM-001", "precision", t.of_other_answers(t.in_float16)),
    _routing("scores-in-fixed-point", "RR-NUM-002", "trace-peaked", score=f.on_a_fixed_grid),
)
